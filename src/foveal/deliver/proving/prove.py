"""A written folder, loaded again from disk, beside the run's own model: are they the same?"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foveal.adapt.adapters import merge_adapters
from foveal.deliver.export_source import RunSource
from foveal.deliver.four_bit import quantize_layers
from foveal.deliver.open import put_adapter
from foveal.deliver.proving.evidence import (
    EvidenceExamples,
    answer_logits,
    greedy_answers,
    measure_scores,
)
from foveal.deliver.proving.proof import Proof, ScoreCheck
from foveal.deliver.proving.reference import load_tuned, round_weights
from foveal.deliver.weight_only import WeightOnly
from foveal.evaluate.intervals import Score
from foveal.evaluate.prediction import Scores
from foveal.machine import DTYPES, Precision, pick_device
from foveal.models.family import LoadedModel, load

SAME = {"float32": 1e-4, "bf16": 1e-3, "fp16": 1e-3}
"""Most that logits may differ from the run's own weights in the same number format, as a share of
the largest logit: the two are merged and summed in other orders, no more."""

ROUNDED = {"float32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Most that the number format may move logits, as a share of the largest: the weights keep 24, 8
or 11 bits, and errors of a few dozen layers add up."""


@dataclass(frozen=True)
class _Seen:
    """What one model gave."""

    logits: list[Tensor]
    answers: list[str]


def prove(
    source: RunSource,
    folder: Path,
    dtype: Precision,
    examples: EvidenceExamples,
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
    run = _look_at_run(source, DTYPES[dtype], examples, device, merged, bits, tell)
    four_bit_difference = None
    if merged and source.four_bit_layers:
        tell("Asking the run's own model on its 4-bit base")
        four_bit_difference = _apart(_four_bit_logits(source, examples, device), run.exact.logits)
    tell("Loading the written folder and asking it")
    written = load_written(source, folder, merged)
    written.model.to(device)
    seen = _look(written, examples, source)
    expected = run.expected or {}
    asks = expected and _finite(seen.logits)
    found = measure_scores(written, examples, source.recipe.evaluate) if asks else {}
    del written
    _let_go()
    largest = float(torch.stack([one.abs().max() for one in run.exact.logits]).max())
    return Proof(
        dtype=dtype,
        data=examples.file.name,
        examples=[examples.examples[place].id for place in examples.compared],
        largest_logit=largest,
        difference=_apart(seen.logits, run.rounded.logits),
        difference_limit=SAME[dtype] * largest,
        rounding_difference=_apart(seen.logits, run.exact.logits),
        rounding_limit=None if bits else ROUNDED[dtype] * largest,
        weights=bits.kind if bits else None,
        equal_answers=_equal(seen, run.rounded),
        answers=len(seen.answers),
        answers_changed_by_rounding=len(seen.answers) - _equal(run.rounded, run.exact),
        scores=check_scores(found, expected),
        scores_note=note_scores(found, run.expected),
        four_bit_difference=four_bit_difference,
    )


@dataclass(frozen=True)
class _RunSeen:
    """What the run's own model gave, with its weights as they are and rounded."""

    exact: _Seen
    rounded: _Seen
    expected: Scores | None


def _look_at_run(
    source: RunSource,
    dtype: torch.dtype,
    examples: EvidenceExamples,
    device: torch.device,
    merged: bool,
    bits: WeightOnly | None,
    tell: Callable[[str], None],
) -> _RunSeen:
    tell("Loading the run's own model and asking it")
    tuned = load_tuned(source)
    tuned.model.to(device)
    if merged:
        merge_adapters(tuned.model)
    exact = _look(tuned, examples, source)
    if bits:
        bits.round_model(tuned.model, dtype)
    else:
        round_weights(tuned.model, dtype, only_adapters=not merged)
    rounded = _look(tuned, examples, source)
    expected = source.scores if examples.scored else None
    if examples.scored and expected is None:
        tell("Scoring the run's own model: this step has no recorded evaluation")
        expected = measure_scores(tuned, examples, source.recipe.evaluate)
    del tuned
    _let_go()
    return _RunSeen(exact, rounded, expected)


def roomy_device(source: RunSource, tell: Callable[[str], None]) -> torch.device:
    """Choose the accelerator, or the CPU where the accelerator has no room for float32 weights."""
    device = pick_device()
    weights_bytes = 4 * source.num_weights
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.5 * weights_bytes:
        tell(f"Comparing on the CPU: {device} has no room for {weights_bytes / 1e9:.0f} GB")
        return torch.device("cpu")
    return device


def load_written(source: RunSource, folder: Path, merged: bool) -> LoadedModel:
    """Load a written folder as its users will: alone, or on its base through peft."""
    if merged:
        return load(str(folder), None)
    base = load(str(source.base), source.recipe.data.image_budget)
    put_adapter(base.model, folder)
    return base


def _look(loaded: LoadedModel, examples: EvidenceExamples, source: RunSource) -> _Seen:
    logits = answer_logits(loaded, examples)
    if not _finite(logits):  # no model can be asked then, and the logits alone fail the proof
        return _Seen(logits, [""] * len(logits))
    return _Seen(logits, greedy_answers(loaded, examples, source.recipe.evaluate))


def _finite(logits: Sequence[Tensor]) -> bool:
    return all(bool(one.isfinite().all()) for one in logits)


def _four_bit_logits(
    source: RunSource, examples: EvidenceExamples, device: torch.device
) -> list[Tensor]:
    tuned = load_tuned(source)
    quantize_layers(tuned.model, source.four_bit_layers, source.recipe.quantization.double)
    tuned.model.to(device)
    logits = answer_logits(tuned, examples)
    del tuned
    _let_go()
    return logits


def _apart(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    pairs = zip(ones, others, strict=True)
    return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())


def _equal(one: _Seen, other: _Seen) -> int:
    return sum(a == b for a, b in zip(one.answers, other.answers, strict=True))


def check_scores(found: Scores, expected: Scores) -> dict[str, ScoreCheck]:
    """Put scores of the written folder beside the run's intervals.

    An interval that holds every score there is would prove nothing, and is left out.
    """
    return {
        name: ScoreCheck(found[name].value, *_interval(wanted), found[name].count, wanted.value)
        for name, wanted in expected.items()
        if name in found and not math.isnan(wanted.value) and _can_fail(wanted)
    }


def _interval(wanted: Score) -> tuple[float, float]:
    """Widen an interval of equal answers, and keep it within 0 and 1 as all scores are.

    Equal scores of n answers give the bootstrap no width, yet say little of an answer in 3 / n
    (the rule of three: Hanley and Lippman-Hand 1983, JAMA 249).
    """
    margin = 3 / wanted.count if wanted.low == wanted.high else 0.0
    return max(0.0, wanted.low - margin), min(1.0, wanted.high + margin)


def _can_fail(wanted: Score) -> bool:
    low, high = _interval(wanted)
    return low > 0.0 or high < 1.0


def note_scores(found: Scores, expected: Scores | None) -> str | None:
    """Say which scores could not be compared as they should be; none: all were."""
    if expected is None:
        return "not compared, the recipe names no data.validation"
    notes = [
        f"{name} is not compared, the recipe's evaluation does not give it"
        for name in expected
        if name not in found
    ]
    notes += [
        f"{name} proves nothing, {wanted.count} answers are too few for an interval"
        for name, wanted in expected.items()
        if name in found and wanted.count and not _can_fail(wanted)
    ]
    notes += [
        f"{name} has {found[name].count} answers, the run's had {wanted.count}"
        for name, wanted in expected.items()
        if name in found and found[name].count != wanted.count
    ]
    return "; ".join(notes) or None


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
