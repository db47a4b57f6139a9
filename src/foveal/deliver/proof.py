"""A written folder, loaded again from disk, beside the run's own model: are they the same?"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from foveal.adapt.adapters import merge_adapters
from foveal.config import Recipe
from foveal.data.batch import build_batch
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import Dataset, build_dataset
from foveal.data.encode import encode
from foveal.data.example import Example, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.objects import image_base
from foveal.data.row_planning.groups import Group, Row
from foveal.data.turn_processor import TurnProcessor, read_as
from foveal.deliver.export_source import RunSource, load_base, load_tuned
from foveal.deliver.merge import through_four_bits
from foveal.deliver.open import put_adapter
from foveal.deliver.weight_only import WeightFormat, WeightOnly
from foveal.errors import DataError, RunError
from foveal.evaluate.intervals import Score
from foveal.evaluate.predict import predict
from foveal.evaluate.prediction import Prediction, Scores, score_predictions
from foveal.evaluate.questions import Opener, ask_examples, question_groups
from foveal.machine import DTYPES, Precision, pick_device
from foveal.models.family import LoadedModel
from foveal.models.forward import hidden_states
from foveal.models.loading import load
from foveal.storage import write_json

FILE = "proof.json"

COMPARED = 8
"""Examples whose logits and answers are compared."""

SAME = {"float32": 1e-4, "bf16": 1e-3, "fp16": 1e-3}
"""Most that logits may differ from the run's own weights in the same number format, as a share of
the largest logit: the two are merged and summed in other orders, no more."""

ROUNDED = {"float32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Most that the number format may move logits, as a share of the largest: the weights keep 24, 8
or 11 bits, and errors of a few dozen layers add up."""


@dataclass(frozen=True)
class ScoreCheck(Score):
    """A score of the written folder beside the run's interval."""

    run: float
    """The run's own score."""

    @property
    def holds(self) -> bool:
        """Whether it lies within."""
        return self.low <= self.value <= self.high  # never true of what is no number


@dataclass(frozen=True)
class Proof:
    """What was compared, and what came out; differences are of logits."""

    dtype: Precision
    data: str
    examples: Sequence[str]
    largest_logit: float
    difference: float
    """To the run's own weights in the same number format, at most."""

    difference_limit: float
    rounding_difference: float
    """To the run's float32 weights, at most."""

    rounding_limit: float | None
    """None: fewer bits may move logits as far as the scores allow."""
    equal_answers: int
    """Greedy, of as many as there are examples' turns."""

    answers: int
    answers_changed_by_rounding: int
    scores: Mapping[str, ScoreCheck]
    scores_note: str | None = None
    """Which scores were not compared, and why."""

    weights: WeightFormat | None = None
    """Number format of the decoder's linear layers, where it is another than `dtype`."""

    four_bit_difference: float | None = None
    """Of the run's 4-bit base to the full-precision one that it was merged onto."""

    def problems(self) -> list[str]:
        """Say what failed, one line each; empty: proven."""
        found = []
        if not self.difference <= self.difference_limit:
            found.append(
                f"logits differ by {self.difference:.2e} from the run's own, "
                f"limit {self.difference_limit:.2e}"
            )
        limit = math.inf if self.rounding_limit is None else self.rounding_limit
        if not self.rounding_difference <= limit:
            found.append(
                f"{self.dtype} moves logits by {self.rounding_difference:.2e}, "
                f"limit {limit:.2e}; --dtype float32 keeps them"
            )
        if self.equal_answers < self.answers:
            found.append(f"{self.answers - self.equal_answers} of {self.answers} answers differ")
        found += [
            f"{name} is {one.value:.3f}, outside the run's [{one.low:.3f}, {one.high:.3f}]"
            for name, one in self.scores.items()
            if not one.holds
        ]
        return found

    def lines(self) -> list[str]:
        """Tell what was measured."""
        form = self.weights or self.dtype
        limit = "no limit" if self.rounding_limit is None else f"limit {self.rounding_limit:.2e}"
        lines = [
            (
                f"logits on {len(self.examples)} examples: at most {self.difference:.2e} from the "
                f"run's own (limit {self.difference_limit:.2e}), "
                f"from float32 {self.rounding_difference:.2e} "
                f"({limit}); largest logit {self.largest_logit:.1f}"
            ),
            (
                f"greedy answers: {self.equal_answers} of {self.answers} equal; "
                f"{self.answers_changed_by_rounding} changed by {form}"
            ),
        ]
        lines += [
            f"{name}: {one.value:.3f}, {one.value - one.run:+.3f} against the run's {one.run:.3f}, "
            f"its interval [{one.low:.3f}, {one.high:.3f}]"
            for name, one in self.scores.items()
        ]
        if self.scores_note:
            lines.append(f"scores: {self.scores_note}")
        if self.four_bit_difference is not None:
            lines.append(
                f"the 4-bit base that it learnt on moves logits by {self.four_bit_difference:.2e} "
                "against this one"
            )
        return lines

    def write(self, folder: Path) -> None:
        """Write proof.json."""
        tree = asdict(self) | {"problems": self.problems()}
        write_json(folder / FILE, tree, indent=2)


def compare_scores(found: Scores, run: Scores | None) -> tuple[dict[str, ScoreCheck], str | None]:
    """Put scores of the written folder beside the run's intervals.

    An interval that holds every score there is would prove nothing, and is left out.

    Returns:
        What was compared; and what could not be compared as it should be, if anything.
    """
    if run is None:
        return {}, "not compared, the recipe names no data.validation"
    checks, notes = {}, []
    for name, wanted in run.items():
        if name not in found:
            notes.append(f"{name} is not compared, the recipe's evaluation does not give it")
            continue
        low, high = _interval(wanted)
        if low > 0.0 or high < 1.0:
            checks[name] = ScoreCheck(found[name].value, low, high, found[name].count, wanted.value)
        elif wanted.count:
            few = f"{wanted.count} answers are too few for an interval"
            notes.append(f"{name} proves nothing, {few}")
        if (count := found[name].count) != wanted.count:
            notes.append(f"{name} has {count} answers, the run's had {wanted.count}")
    return checks, "; ".join(notes) or None


def _interval(wanted: Score) -> tuple[float, float]:
    """Widen an interval of equal answers, and keep it within 0 and 1 as all scores are.

    Equal scores of n answers give the bootstrap no width, yet say little of an answer in 3 / n
    (the rule of three: Hanley and Lippman-Hand 1983, JAMA 249).
    """
    margin = 3 / wanted.count if wanted.low == wanted.high else 0.0
    return max(0.0, wanted.low - margin), min(1.0, wanted.high + margin)


@dataclass(frozen=True)
class Evidence:
    """Real examples to compare models on."""

    file: Path
    examples: tuple[Example, ...]
    dataset: Dataset
    recipe: Recipe
    """How the run read them, and how it answers."""

    @property
    def compared(self) -> list[int]:
        """Places of the few whose logits are compared, spread over the file."""
        count = min(COMPARED, len(self.examples))
        return [place * len(self.examples) // count for place in range(count)]

    def look(self, loaded: LoadedModel) -> "_Seen":
        """Ask a model about the few."""
        logits = self.logits(loaded)
        if not all(bool(one.isfinite().all()) for one in logits):
            return _Seen(logits)  # no model can be asked then, and the logits alone fail the proof
        answers = [one.prediction for one in self._predict(loaded, self.compared)]
        return _Seen(logits, answers)

    @torch.no_grad()
    def logits(self, loaded: LoadedModel) -> list[Tensor]:
        """Work out what a model expects at each token of the given answers.

        Returns:
            (answer tokens, vocab) for each compared example, float32, on the CPU.
        """
        model, family = loaded.model.eval(), loaded.family
        logits = []
        for place in self.compared:
            row = Row((Group((place,), int(self.dataset.sizes.tokens[place])),))
            batch = build_batch(row, self.dataset, loaded.processor).to(model.device)
            hidden = hidden_states(model, family, batch, groups=batch.groups)
            logits.append(family.head(model)(hidden[batch.predictors]).float().cpu())
        return logits

    def scores(self, loaded: LoadedModel) -> Scores:
        """Answer and score all examples, as the run's own evaluation does."""
        metrics = self.recipe.evaluate.metrics
        return score_predictions(self._predict(loaded, range(len(self.examples))), metrics)

    def _predict(self, loaded: LoadedModel, only: Iterable[int]) -> list[Prediction]:
        read_as(loaded.processor, self.recipe.data)
        settings = self.recipe.evaluate
        with Opener(self.dataset, loaded.processor) as opener:
            questions = list(ask_examples(only, self.examples, opener, settings))
            costs = loaded.family.row_costs(loaded.processor)
            groups = question_groups(questions, self.dataset, costs)
            shared = [one for group in groups for one in group.questions]
            made = {one.key: one for some in predict(loaded, shared, settings) for one in some}
        return [made[question.key] for question in questions]


@dataclass(frozen=True)
class _Seen:
    """What one model gave."""

    logits: list[Tensor]
    answers: Sequence[str] = ()
    """None where its numbers are not finite."""

    def apart(self, logits: Sequence[Tensor]) -> float:
        pairs = zip(self.logits, logits, strict=True)
        return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())

    def equal_answers(self, other: "_Seen") -> int:
        return sum(a == b for a, b in zip(self.answers, other.answers, strict=False))


def find_examples(recipe: Recipe, processor: TurnProcessor) -> Evidence:
    """Read a run's validation examples, or a few that it learnt from.

    Raises:
        RunError: their file is not there.
        DataError: it or an image cannot be read.
    """
    data, limit = recipe.data.validation, recipe.evaluate.max_examples
    if data is None and recipe.data.train_files:
        data, limit = recipe.data.train_files[0].path, COMPARED
    data = data and unpacked(data, recipe.run / ".cache", recipe.data.columns)
    if data is None or not data.is_file():
        raise RunError(
            f"{data}: the run's examples are not there, and without them nothing can be proven; "
            "bring the file back, or export with --no-proof"
        )
    examples = tuple(islice(read_examples(data), limit))
    if not examples:
        raise DataError(f"{data}: no examples; write one conversation a line")
    folder = ImageFolder(data, image_base(recipe.data))
    read_as(processor, recipe.data)
    encoded = [encode(example, processor, folder) for example in examples]
    return Evidence(data, examples, build_dataset(encoded, processor), recipe)


def prove(
    source: RunSource,
    folder: Path,
    dtype: Precision,
    examples: Evidence,
    *,
    merged: bool,
    bits: WeightOnly | None = None,
    tell: Callable[[str], None],
) -> Proof:
    """Load a written folder and compare it with the run's own model, one after the other.

    Args:
        source: of the folder.
        folder: as written.
        dtype: of its weights.
        examples: to compare on.
        merged: whether adapters were folded in.
        bits: how layers are held in fewer bits.
        tell: called with what is being done.
    """
    device = roomy_device(source, tell)

    def as_written(name: str, weight: Tensor) -> Tensor:
        """Round a weight as its file does; what an adapter stands beside is no part of its file."""
        if bits and bits.holds(name):
            return bits.rounded(weight, DTYPES[dtype])
        return weight.to(DTYPES[dtype]) if merged or ".lora_" in name else weight

    tell("Loading the run's own model and asking it")
    tuned = load_tuned(source)
    tuned.model.to(device)
    if merged:
        merge_adapters(tuned.model)
    exact = examples.look(tuned)
    change_weights(tuned.model, as_written)
    rounded = examples.look(tuned)
    wanted = source.scores if source.recipe.data.validation else None
    if source.recipe.data.validation and wanted is None:
        tell("Scoring the run's own model: this step has no recorded evaluation")
        wanted = examples.scores(tuned)
    tuned.model.to("meta")  # its weights make room
    four_bit_difference = None
    if merged and source.four_bit_layers:
        tell("Asking the run's own model on its 4-bit base")
        four_bit_difference = exact.apart(_four_bit_logits(source, examples, device))
    tell("Loading the written folder and asking it")
    # As its users will: alone, or on its base through peft.
    written = load(str(folder), None) if merged else load_base(source)
    if not merged:
        put_adapter(written.model, folder)
    written.model.to(device)
    seen = examples.look(written)
    found = examples.scores(written) if wanted and seen.answers else {}
    checks, note = compare_scores(found, wanted)
    written.model.to("meta")
    largest = float(torch.stack([one.abs().max() for one in exact.logits]).max())
    answers = max(len(seen.answers), len(rounded.answers))
    return Proof(
        dtype=dtype,
        data=examples.file.name,
        examples=[examples.examples[place].id for place in examples.compared],
        largest_logit=largest,
        difference=seen.apart(rounded.logits),
        difference_limit=SAME[dtype] * largest,
        rounding_difference=seen.apart(exact.logits),
        rounding_limit=None if bits else ROUNDED[dtype] * largest,
        weights=bits.kind if bits else None,
        equal_answers=seen.equal_answers(rounded),
        answers=answers,
        answers_changed_by_rounding=answers - rounded.equal_answers(exact),
        scores=checks,
        scores_note=note,
        four_bit_difference=four_bit_difference,
    )


def roomy_device(source: RunSource, tell: Callable[[str], None]) -> torch.device:
    """Choose the accelerator, or the CPU where the accelerator has no room for float32 weights."""
    device = pick_device()
    weights_bytes = 4 * source.num_weights
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.5 * weights_bytes:
        tell(f"Comparing on the CPU: {device} has no room for {weights_bytes / 1e9:.0f} GB")
        return torch.device("cpu")
    return device


def _four_bit_logits(source: RunSource, examples: Evidence, device: torch.device) -> list[Tensor]:
    packed, double = set(source.four_bit_layers), source.recipe.quantization.double

    def through(name: str, weight: Tensor) -> Tensor:
        return (
            through_four_bits(weight, double) if name.removesuffix(".weight") in packed else weight
        )

    tuned = load_tuned(source)
    change_weights(tuned.model, through)
    tuned.model.to(device)
    logits = examples.logits(tuned)
    tuned.model.to("meta")
    return logits


@torch.no_grad()
def change_weights(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> None:
    """Change weights, one at a time and by their names without adapters; float32 they stay."""
    for name, weight in model.named_parameters():
        weight.copy_(change(name.replace(".base_layer", ""), weight))
