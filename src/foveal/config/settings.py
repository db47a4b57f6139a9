"""Every setting of a run, in one tree."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: fixed once read, and an unknown name is an error."""

    model_config = ConfigDict(
        allow_inf_nan=False, extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class DataFile(Settings):
    """One of several sets of examples, and how often they are shown."""

    path: Path
    """As `data.train` alone."""

    weight: PositiveFloat = 1.0
    """How often an epoch shows each example; 0.5: half of them, the next epoch the other half."""


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


class DataSettings(Settings):
    """Which examples, and how they become rows."""

    train: Path | tuple[DataFile, ...] | None = None
    """What to learn from: a JSONL file; a Parquet file, or a folder of them, with the pictures in
    it; `hf://OWNER/NAME:SPLIT` on the hub; or a list of those, `[{path: ..., weight: 2}, ...]`."""

    validation: Path | None = None
    """What to evaluate on, before and after, named in the same ways; none: no evaluation."""

    images: Path | None = None
    """Folder that image paths start from; none: `images` beside the JSONL file, or its folder."""

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


class LoraSettings(Settings):
    """Low-rank adapters; scale = alpha / rank, with rslora alpha / sqrt(rank)."""

    rank: PositiveInt = 64
    """Width of an adapter; a rule may give its layers another one."""

    alpha: PositiveFloat = 128.0
    """Numerator of the scale; a rule may give its layers another one."""

    dropout: Fraction = 0.0
    """Share of an adapter's inputs set to zero while it learns."""

    rslora: bool = False
    """Divide alpha by the rank's square root: large ranks learn as fast as small ones."""

    dora: bool = False
    """Learn the length of each weight's rows apart from their direction."""

    initialization: Literal["default", "gaussian", "orthogonal"] = "default"
    """First values: default, as nn.Linear's; gaussian, as in the recipe; both begin as the model
    was. orthogonal moves it a little, and needs even ranks and layers that are not quantized."""


class QuantizationSettings(Settings):
    """How rules with `quantize: true` hold linear layers: 4 bits (nf4), through bitsandbytes."""

    compute: Literal["float32", "bf16", "fp16"] | None = None
    """Number format that these layers compute in; none: that of `precision`."""

    double: bool = True
    """Quantize the scales of the 64-weight blocks too: 4.13 bits a weight instead of 4.5."""


class Rule(Settings):
    """What becomes of the weights whose name matches; the first rule that matches decides."""

    match: str
    """Pattern over `part.name`, as in `vision.*` or `language.layers.*.mlp.*`."""

    learn: bool = True
    """Whether the weights learn; false: they stay as they are."""

    learning_rate: PositiveFloat | None = None
    """Highest rate of these weights; none: train.learning_rate."""

    weight_decay: NonNegativeFloat | None = None
    """Decay of these weights; none: train.weight_decay."""

    adapter: bool = False
    """Whether linear layers stay as they are and learn through a low-rank adapter."""

    rank: PositiveInt | None = None
    """Width of these adapters; none: lora.rank."""

    alpha: PositiveFloat | None = None
    """Numerator of their scale; none: lora.alpha."""

    quantize: bool = False
    """Whether linear layers are held in 4 bits; never the head, nor anything but linear layers."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.quantize and self.learn and not self.adapter:
            raise ValueError("weights in 4 bits cannot learn; add adapter: true or learn: false")
        if not self.adapter and (self.rank or self.alpha):
            raise ValueError("rank and alpha are an adapter's; add adapter: true")
        return self


class TrainSettings(Settings):
    """How long and how fast the model learns."""

    seed: NonNegativeInt = 0
    """Start of every random choice."""

    epochs: PositiveFloat = 1.0
    """Passes over the training examples; 0.1 is a tenth of one pass."""

    max_steps: PositiveInt | None = None
    """Steps after which to stop, whatever the epochs."""

    examples_per_step: PositiveInt = 64
    """Examples behind one optimizer step, over all processes together."""

    tokens_per_pass: PositiveInt = 8192
    """Tokens of one forward pass of one process; lower it when memory runs out."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "muon"] = "adamw"
    """adamw keeps 8 bytes a learning weight, adamw_8bit 2, adafactor next to none; muon keeps 4 for
    the matrices of hidden layers, which learn in about half the steps from random weights."""

    learning_rate: PositiveFloat = 4e-5
    """Highest rate, reached after warm-up."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after warm-up."""

    warmup_steps: NonNegativeInt = 50
    """Steps in which the rate climbs from zero."""

    weight_decay: NonNegativeFloat = 0.01
    """Decay of weights that multiply; norms and biases are decayed too, as in the recipe."""

    beta1: Beta = 0.9
    """AdamW's memory of gradients."""

    beta2: Beta = 0.95
    """AdamW's memory of squared gradients."""

    epsilon: PositiveFloat = 1e-7
    """AdamW's guard against division by zero."""

    gradient_clip: PositiveFloat = 1.0
    """Largest norm of all gradients together; longer ones are shortened to it."""

    loss_weighting: Literal["token", "example"] = "token"
    """Whether each answer token or each example weighs the same."""

    save_every_steps: PositiveInt = 500
    """Steps from checkpoint to checkpoint; the last step is always saved."""

    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""

    best_metric: str | None = None
    """Score whose best checkpoint is kept too, of those evaluated; such as `anls`, or none."""

    evaluate_every_steps: PositiveInt | None = None
    """Steps from validation to validation; none: before and after alone."""

    stop_after_worse: PositiveInt | None = None
    """Validations in a row without a better best_metric after which the run ends; none: it goes on
    to its last step."""

    recompute: Literal["none", "blocks", "auto"] = "auto"
    """Recompute activations in the backward pass: saves memory, costs a third of the speed."""

    max_bad_steps: PositiveInt = 5
    """Steps in a row with a loss or gradient that is not finite before the run stops."""


class EvaluateSettings(Settings):
    """How answers are made and scored."""

    answer: Literal["auto", "generate", "choices"] = "auto"
    """choices: the likeliest label of a closed set, which costs one pass, is always a label and
    says how sure it is; generate: word by word, as published scores were made; auto: choices where
    the data or evaluate.choices names a closed set, else generate."""

    choices: tuple[str, ...] = ()
    """Labels that every answer is one of, where the data does not name any; spaces around them,
    empty ones and repetitions are dropped."""

    max_new_tokens: PositiveInt = 64
    """Longest answer, in tokens."""

    tokens_per_batch: PositiveInt = 16384
    """Tokens that are read or held at once, an image's once for all its questions; lower it when
    memory runs out."""

    max_examples: PositiveInt | None = None
    """First examples of the validation file to use; none: all of them."""

    metrics: tuple[str, ...] = ("accuracy", "anls")
    """Scores to compute."""

    @field_validator("choices")
    @classmethod
    def _trimmed(cls, choices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for choice in choices if (label := choice.strip())))


class LogSettings(Settings):
    """Where a run is followed, beside its folder."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Who is sent each step, the scores, the recipe and the report: tensorboard, into the run's
    folder; wandb, mlflow and trackio as their own environment variables say, without a network
    too. A run that goes on stays one run there, and no step is sent twice."""

    project: str = "foveal"
    """Project there (mlflow: experiment); the run is called as its folder is."""

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trackers))


class Base(Settings):
    """What a recipe was built on when it was read, and what that says otherwise."""

    file: Path
    """The recipe named by `base:`; without one, the recipe to which settings were given."""

    otherwise: dict[str, Any] = {}
    """Setting -> its value in that file, for each that has another one here."""


class Recipe(Settings):
    """Every setting of a run."""

    base: Base | None = None
    """Path of a recipe, from this one's folder, to take from whatever is not said here."""

    model: str
    """Folder or hub name to start from, or `phi3-vision-tiny`: small, with random weights."""

    run: Path
    """Folder of the run; a checkpoint in it is resumed."""

    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    log: LogSettings = LogSettings()
    lora: LoraSettings = LoraSettings()
    quantization: QuantizationSettings = QuantizationSettings()

    strategy: Literal["full", "frozen_vision", "lora", "qlora"] | tuple[Rule, ...] = "full"
    """What learns: a name, or rules of your own."""

    precision: Literal["float32", "bf16", "fp16"] = "bf16"
    """Number format of the forward and backward pass."""

    engine: Literal["auto", "single", "ddp", "fsdp2", "zero2"] = "auto"
    """How processes share the work: ddp, a whole model in each; fsdp2, weights, gradients and
    optimizer cut over all; zero2, DeepSpeed's, a whole model in each but the optimizer cut; auto:
    one process alone, ddp under torchrun."""

    attention: Literal["auto", "blocks", "sdpa", "eager", "flex", "flash_attention_2"] = "auto"
    """How attention is computed; auto: the fastest that this machine has."""

    published: dict[str, Fraction | str] | None = None
    """Published scores to stand beside this run's, 0 to 1 by metric, and their `source`."""


def setting_names(settings: type[BaseModel], prefix: str = "") -> list[str]:
    """List every setting below `settings`, dots between the names."""
    names: list[str] = []
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
