"""A written folder, loaded again from disk, beside the run's own model: are they the same?"""

import gc
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path

import torch
from torch import Tensor

from foveal.deliver.evidence import (
    Examples,
    answer_logits,
    find_examples,
    greedy_answers,
    measure_scores,
)
from foveal.deliver.four_bit import quantize_adapted_layers
from foveal.deliver.reference import load_tuned, merge_with_peft, round_weights
from foveal.deliver.source import RunSource
from foveal.evaluate.prediction import Scores
from foveal.models.family import LoadedModel, load
from foveal.train.engine import DTYPES, Precision, pick_device

SAME = {"float32": 1e-4, "bf16": 1e-3, "fp16": 1e-3}
"""Most that logits may differ from the run's own weights in the same number format, as a share of
the largest logit: the two are merged and summed in other orders, no more."""

ROUNDED = {"float32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Most that the number format may move logits, as a share of the largest: the weights keep 24, 8
or 11 bits, and errors of a few dozen layers add up."""

FILE = "proof.json"


@dataclass(frozen=True)
class ScoreCheck:
    """A score of the written folder beside the run's interval."""

    value: float
    low: float
    high: float
    count: int

    @property
    def holds(self) -> bool:
        """Whether it lies within."""
        return isnan(self.value) or self.low <= self.value <= self.high


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

    rounding_limit: float
    equal_answers: int
    """Greedy, of as many as there are examples' turns."""

    answers: int
    answers_changed_by_rounding: int
    scores: Mapping[str, ScoreCheck]
    scores_note: str | None = None
    """Why no score was compared."""

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
        if not self.rounding_difference <= self.rounding_limit:
            found.append(
                f"{self.dtype} moves logits by {self.rounding_difference:.2e}, "
                f"limit {self.rounding_limit:.2e}; --dtype float32 keeps them"
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
        lines = [
            (
                f"logits on {len(self.examples)} examples: largest difference {self.difference:.2e} "
                f"(limit {self.difference_limit:.2e}), from float32 {self.rounding_difference:.2e} "
                f"(limit {self.rounding_limit:.2e}); largest logit {self.largest_logit:.1f}"
            ),
            (
                f"greedy answers: {self.equal_answers} of {self.answers} equal; "
                f"{self.answers_changed_by_rounding} changed by {self.dtype}"
            ),
        ]
        lines += [
            f"{name}: {one.value:.3f}, the run's interval [{one.low:.3f}, {one.high:.3f}]"
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
        (folder / FILE).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Seen:
    """What one model gave."""

    logits: list[Tensor]
    answers: list[str]


def prove(
    source: RunSource,
    folder: Path,
    dtype: Precision,
    *,
    merged: bool,
    four_bit: bool,
    tell: Callable[[str], None],
) -> Proof:
    """Load a written folder and compare it with the run's own model, one after the other.

    Args:
        source: of the folder.
        folder: as written.
        dtype: of its weights.
        merged: whether adapters were folded in.
        four_bit: whether the run learnt on 4-bit weights.
        tell: called with what is being done.
    """
    settings = source.recipe.evaluate
    device = pick_device()
    tell("Loading the run's own model")
    tuned = load_tuned(source)
    examples = find_examples(source.recipe, tuned.processor)
    tuned.model.to(device)
    if merged:
        merge_with_peft(tuned)
    tell("Asking the run's own model")
    exact = _look(tuned, examples, source)
    round_weights(tuned.model, DTYPES[dtype], only_adapters=not merged)
    rounded = _look(tuned, examples, source)
    expected, note = source.scores, None
    if not examples.scored:
        expected, note = None, "not compared, the recipe names no data.validation"
    elif expected is None:
        tell("Scoring the run's own model: this step has no recorded evaluation")
        expected = measure_scores(tuned, examples, settings)
    del tuned
    _let_go()
    four_bit_logits = _four_bit_logits(source, examples, device) if four_bit else None
    tell("Loading the written folder")
    written = load_written(source, folder, merged)
    written.model.to(device)
    tell("Asking the written folder")
    seen = _look(written, examples, source)
    tell("Scoring the written folder")
    scores = measure_scores(written, examples, settings) if expected else {}
    del written
    _let_go()
    largest = max(float(one.abs().max()) for one in exact.logits)
    return Proof(
        dtype=dtype,
        data=examples.file.name,
        examples=[examples.examples[place].id for place in examples.compared],
        largest_logit=largest,
        difference=_apart(seen.logits, rounded.logits),
        difference_limit=SAME[dtype] * largest,
        rounding_difference=_apart(seen.logits, exact.logits),
        rounding_limit=ROUNDED[dtype] * largest,
        equal_answers=_equal(seen, rounded),
        answers=len(seen.answers),
        answers_changed_by_rounding=len(seen.answers) - _equal(rounded, exact),
        scores=_check_scores(scores, expected or {}),
        scores_note=note,
        four_bit_difference=four_bit_logits and _apart(four_bit_logits, exact.logits),
    )


def load_written(source: RunSource, folder: Path, merged: bool) -> LoadedModel:
    """Load a written folder as its users will: alone, or on its base through peft."""
    crops = source.recipe.data.num_crops
    if merged:
        return load(str(folder), crops)
    from peft import PeftModel

    base = load(str(source.base), crops)
    with warnings.catch_warnings():
        # peft asks transformers for a name that it is about to lose.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        PeftModel.from_pretrained(base.model, str(folder))  # its layers go into the base
    base.model.requires_grad_(False).eval()
    return base


def _look(loaded: LoadedModel, examples: Examples, source: RunSource) -> _Seen:
    return _Seen(
        answer_logits(loaded, examples), greedy_answers(loaded, examples, source.recipe.evaluate)
    )


def _four_bit_logits(source: RunSource, examples: Examples, device: torch.device) -> list[Tensor]:
    tuned = load_tuned(source)
    quantize_adapted_layers(tuned.model)
    tuned.model.to(device)
    logits = answer_logits(tuned, examples)
    del tuned
    _let_go()
    return logits


def _apart(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    pairs = zip(ones, others, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def _equal(one: _Seen, other: _Seen) -> int:
    return sum(a == b for a, b in zip(one.answers, other.answers, strict=True))


def _check_scores(found: Scores, expected: Scores) -> dict[str, ScoreCheck]:
    return {
        name: ScoreCheck(found[name].value, wanted.low, wanted.high, found[name].count)
        for name, wanted in expected.items()
        if name in found and not isnan(wanted.value)
    }


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
