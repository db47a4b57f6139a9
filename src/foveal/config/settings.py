"""Every setting of a run, in one tree."""

from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from foveal.config.data_settings import DataSettings, Fraction, Settings

Beta = Annotated[float, Field(ge=0, lt=1)]


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

    deterministic: bool = False
    """Whether GPUs add in one order, so that the same cards end in the same bits, at some of the
    speed; an operation without such a kernel ends the run. Processors do so anyway."""

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

    recompute: Literal["none", "light", "blocks", "auto"] = "auto"
    """What is computed again in the backward pass instead of kept: light, all but what matrix
    products and attention made, for a few percent of the speed; blocks, whole layers, for a
    quarter; auto, the cheapest of the three that fits this device's memory."""

    max_bad_steps: PositiveInt = 5
    """Steps in a row with a loss or gradient that is not finite before the run stops."""


class PreferenceSettings(Settings):
    """How pairs of answers are learnt from, where `objective` is preferences."""

    loss: Literal["dpo", "ipo", "cdpo", "orpo"] = "dpo"
    """dpo: chosen answers gain on rejected ones, compared with the model that the run began from;
    ipo: up to a margin and no further, by the token; cdpo: dpo, where some pairs may be the wrong
    way round; orpo: without comparing, and the chosen answers are learnt too."""

    beta: PositiveFloat = 0.1
    """How dear it is to leave the model that the run began from: lower moves further. ipo's tau;
    orpo's lambda, of which higher moves further."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the pairs that are taken to be the wrong way round; cdpo's alone."""

    answer_weight: NonNegativeFloat = 0.0
    """Adds so much of the ordinary loss on the chosen answers, by the token; 0: none; orpo has it
    once by itself."""

    @property
    def compares(self) -> bool:
        """Whether the loss asks how likely the answers were before the run."""
        return self.loss != "orpo"

    @model_validator(mode="after")
    def _smooths_or_not(self) -> Self:
        if (self.loss == "cdpo") != (self.label_smoothing > 0):
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} does not go with loss={self.loss}; cdpo "
                "needs one above 0, such as 0.1, and no other loss reads it"
            )
        return self


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


class ShardingSettings(Settings):
    """How engine fsdp2 brings a block's weights together."""

    gather: Literal["float32", "precision"] = "float32"
    """Format in which linear layers travel: precision, the run's own, half the bytes for the same
    numbers. All else and all gradients travel in float32."""

    group: Literal["all", "node"] = "all"
    """Processes that one copy is cut over: all; node, those of one node, which holds a whole copy
    so that gradients alone cross between nodes, once a step."""


class Base(Settings):
    """What a recipe was built on when it was read, and what that says otherwise."""

    file: Path
    """The recipe named by `base:`; without one, the recipe to which settings were given."""

    otherwise: dict[str, Any] = Field(default={})
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

    objective: Literal["answers", "preferences"] = "answers"
    """What is learnt: every answer; or, of each turn with `rejected` answers, to prefer its own."""

    preference: PreferenceSettings = PreferenceSettings()
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

    sharding: ShardingSettings = ShardingSettings()

    attention: Literal["auto", "blocks", "sdpa", "eager", "flex", "flash_attention_2"] = "auto"
    """How attention is computed; auto: the fastest that this machine has."""

    published: dict[str, Fraction | str] | None = None
    """Published scores to stand beside this run's, 0 to 1 by metric, and their `source`."""

    @field_validator("model")
    @classmethod
    def _with_home(cls, model: str) -> str:
        return expanduser(model)  # as of all paths

    @property
    def learns_pairs(self) -> bool:
        """Whether answers are compared with rejected ones."""
        return self.objective == "preferences"


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
