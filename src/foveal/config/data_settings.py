"""Which examples a run learns from, and how they become rows."""

from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: fixed once read, and an unknown name is an error."""

    model_config = ConfigDict(
        allow_inf_nan=False, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _mean_what_they_say(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what would be taken for something else: yes for 1, nothing for this folder."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool:
            raise PydanticCustomError("truth", "is a truth, which this setting is not")
        if value == "" and Path in (kind, *get_args(kind)):
            raise PydanticCustomError("empty_path", "give a path; for this folder, a dot")
        if isinstance(value, str | Path) and Path in (kind, *get_args(kind)):
            return expanduser(value)  # a shell does so for whole words alone
        return value


class DataFile(Settings):
    """One of several sets of examples, and how often they are shown."""

    path: Path
    """As `data.train` alone."""

    weight: PositiveFloat = 1.0
    """How often an epoch shows each example; 0.5: half of them, the next epoch the other half."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


class Columns(Settings):
    """Names of a table's columns, as in `{question: ask}`; others are found by usual names."""

    images: str | None = None
    """Column of the picture or pictures: bytes, or paths from the table's folder."""

    question: str | None = None
    """Column of what is asked."""

    answer: str | None = None
    """Column of the answer that is learnt."""

    answers: str | None = None
    """Column of all accepted answers; without an `answer`, one of them is learnt."""

    choices: str | None = None
    """Column of the closed set that the answer is one of."""

    system: str | None = None
    """Column of what the model is told before the question."""

    messages: str | None = None
    """Column of whole conversations, in place of question and answer."""

    ask: str | None = None
    """No column: what every row is asked, where none asks, as with pictures and their captions."""


class DataSettings(Settings):
    """Which examples, and how they become rows."""

    train: Path | tuple[DataFile, ...] | None = None
    """What to learn from: a JSONL file; a Parquet file, or a folder of them, with the pictures in
    it; `hf://OWNER/NAME:SPLIT` on the hub; one of these files by its URL, `s3://BUCKET/FILE`; or a
    list of those, `[FILE, {path: FILE, weight: 2}, ...]`."""

    validation: Path | None = None
    """What to evaluate on, before and after, named in the same ways; none: no evaluation."""

    images: Path | None = None
    """Folder that image paths start from; none: `images` beside the JSONL file, or its folder. Also
    one of an object store, `s3://BUCKET/FOLDER`, `gs://...` or `hf://datasets/OWNER/NAME`; what is
    below it may be named by its whole URL."""

    object_cache: Path | None = None
    """Folder that keeps what was fetched from object stores, for all runs that name it; none:
    `~/.cache/foveal/objects`."""

    object_cache_gb: PositiveFloat = 50
    """Most that it keeps, in GB; what was opened longest ago goes first."""

    cache: Path | None = None
    """Folder that keeps encoded examples and image sizes, about 300 bytes an example, for all runs
    that name it; none: `.cache` in the run's folder, for its own processes and restarts."""

    columns: Columns = Columns()
    """Which columns of Parquet rows hold what."""

    turns: Literal["recipe", "template"] = "recipe"
    """What stands between two turns of a conversation: `<|end|>`, `<|endoftext|>` and a new `<s>`,
    as in the published recipe; or `<|end|>` alone, as in the published chat template."""

    share_images: bool = True
    """Put the questions of one image behind it in one row; exact, and several times faster."""

    order: Literal["shuffled", "as_is"] = "shuffled"
    """Which examples meet in a step: images at random with all their questions, or file order."""

    boxes: Literal["pixels", "thousandths"] | None = None
    """What the four numbers of a box, `[x1, y1, x2, y2]`, count in the data: pixels of the upright
    picture, or thousandths of its width and height. The model learns them in its own numbers, and
    its answers are moved back; none: four numbers are no box."""

    frames: PositiveInt = 8
    """Most frames that a clip is shown by, spread evenly over it."""

    frames_per_second: PositiveFloat | None = None
    """Frames for each second of a clip, as long as they are no more than `frames`; none: always
    `frames`, whatever its length."""

    clips: Literal["images", "video"] = "images"
    """How a model is shown a clip: each frame as an image, or, by Qwen-VL alone, as an input of
    its own: two frames to a token, with their times; never fewer than two frames."""

    num_crops: PositiveInt = 16
    """Most crops that an image is cut into, besides its global view; 4 suits several images."""

    image_settings: dict[str, Any] = {}
    """How images are read by a model of transformers, in the names of its own image processor, as
    in `{max_pixels: 1003520}`; exports bring them along. Phi's dial is num_crops."""

    workers: NonNegativeInt = 2
    """Processes that open pictures ahead of the model; 0: none."""

    max_bad_fraction: Fraction = 0.1
    """Share of the examples that may be left out for broken pictures before the run stops."""

    @property
    def image_budget(self) -> int | dict[str, Any]:
        """How much of an image is read: settings of the model's own, or most crops."""
        return self.image_settings or self.num_crops

    @property
    def train_files(self) -> tuple[DataFile, ...]:
        """What to learn from, as a list."""
        if isinstance(self.train, Path):
            return (DataFile(path=self.train),)
        return self.train or ()
