"""Every way of every strategy on one letter page -> rates, peaks, ratios to the recipe's way."""

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, replace

from foveal_bench.contender import Case
from foveal_bench.timing import make_results

from foveal.plan.hardware import Hardware
from on_gpu.record import Record, Values
from on_gpu.steps import CAUSAL, Measured, Trial, measure, middle

PART, PLAN, COMPILED = "fast", "plan", "compiled"
QUESTIONS = (1, 4)
LEAST_SHARE = ">= 0.45"
"""Of the card's matrix speed: full fine-tuning, one question a page."""

LEAST_RATIO = {1: ">= 3", 4: ">= 10"}
"""Questions a page -> times as many questions a second as the recipe's faster way."""

MOST_MEMORY = "<= 0.6"
"""Of the recipe's way's peak, both recomputing."""

MOST_OFF = {"seconds": "<= 0.15", "memory": "<= 0.1"}
"""Of a plan."""


def trials(size: str, precision: str, device: str) -> Iterator[Trial]:
    """List what is measured, the most telling first: with `blocks`, which compiles nothing."""
    # Flex attention has no backward pass on a processor.
    others = ("flex", CAUSAL) if device == "cuda" else (CAUSAL,)

    def case(
        strategy: str, questions: int, way: str, attention: str = "blocks", **more: str
    ) -> Case:
        return Case(size, strategy, questions, way, precision, attention, **more)  # type: ignore[arg-type]

    for strategy in ("full", "lora"):
        for questions in QUESTIONS:
            for way in ("recompute", "shared"):
                yield Trial(case(strategy, questions, way))
            yield Trial(case(strategy, questions, "recipe", "sdpa"))
    for questions in QUESTIONS:
        for attention in others:
            yield Trial(case("lora", questions, "shared", attention))
            yield Trial(case("full", questions, "recompute", attention))
    for questions in QUESTIONS:
        yield Trial(case("frozen_vision", questions, "recompute"))
        yield Trial(case("frozen_vision", questions, "recipe", "sdpa"))
    for strategy in ("full", "lora"):
        for questions in QUESTIONS:
            yield Trial(case(strategy, questions, "recipe", "eager"))
    yield Trial(case("lora", 4, "separate"))
    if importlib.util.find_spec("bitsandbytes"):
        for questions in QUESTIONS:
            yield Trial(case("full", questions, "recompute", optimizer="adamw_8bit"))


def compiled_trials(size: str, precision: str) -> Iterator[Trial]:
    """List those whose repeated layers are compiled: no setting of a run, and minutes to begin."""
    for strategy, way in (("lora", "shared"), ("full", "recompute")):
        case = Case(size, strategy, 1, way, precision, attention="blocks")  # type: ignore[arg-type]
        yield Trial(case, compiled=True)


class Speeds:
    """Measures trials, each once, and sets each beside the recipe's way and its plan."""

    def __init__(
        self,
        record: Record,
        size: str,
        precision: str,
        device: str,
        steps: int,
        hardware: Hardware,
        speed: float,
    ) -> None:
        """Begin.

        Args:
            record: to write to.
            size: of `foveal_bench.random_page.SIZES`.
            precision: of all passes.
            device: its kind.
            steps: that are timed, of each trial.
            hardware: that plans are made for.
            speed: operations a second of a large matrix product, in `precision`.
        """
        self.record = record
        self.size, self.precision, self.device, self.steps = size, precision, device, steps
        self.hardware, self.speed = hardware, speed
        self.found: dict[Trial, Measured] = {}
        self._tried: set[Trial] = set()

    def run(self) -> None:
        """Measure every trial, then set ours beside the recipe's way."""
        for trial in self._trials():
            self.measure(trial)
        self._judge()

    def compiled(self) -> None:
        """Measure what compiling the repeated layers brings."""
        for trial in compiled_trials(self.size, self.precision):
            self.measure(trial, COMPILED)

    def _trials(self) -> Iterator[Trial]:
        return trials(self.size, self.precision, self.device)

    def plan(self) -> None:
        """Set each of our steps beside what `foveal plan` says of it."""
        for trial in self._trials():
            case = trial.case
            as_planned = case.attention == "blocks" and case.optimizer == "adamw"
            if as_planned and case.way in ("shared", "recompute"):
                measured = self.measure(trial)
                if measured:
                    self._plan(trial, measured)

    def measure(self, trial: Trial, part: str = PART) -> Measured | None:
        """Measure a trial, unless that was done before."""
        if trial not in self._tried:
            self._tried.add(trial)
            self.record.take(part, trial.name, lambda: self._measure(trial))
        return self.found.get(trial)

    def _measure(self, trial: Trial) -> Values:
        measured = measure(trial, self.steps, self.hardware)
        self.found[trial] = measured
        alone = replace(trial.case, way="recipe"), measured.timed, max(1, measured.peak_bytes)
        (result,) = make_results([alone], self.speed)
        rates = asdict(result) | {"way": trial.case.way, "attention": trial.case.attention}
        for ratio in ("speed_ratio", "memory_ratio"):  # to itself: they come when all is measured
            rates.pop(ratio)
        return rates | {
            "compiled": trial.compiled,
            "optimizer": trial.case.optimizer,
            "first_seconds": measured.first_seconds,
            "held_bytes": measured.held_bytes,
        }

    def _recipes(self, strategy: str, questions: int) -> list[Measured]:
        return [
            found
            for trial, found in self.found.items()
            if trial.case.way == "recipe"
            and (trial.case.strategy, trial.case.questions) == (strategy, questions)
        ]

    def _ours(self, strategy: str, questions: int) -> dict[Trial, Measured]:
        """Find what a run of ours can do, with the recipe's optimizer."""
        return {
            trial: found
            for trial, found in self.found.items()
            if trial.case.way in ("shared", "recompute")
            and trial.case.attention != CAUSAL
            and trial.case.optimizer == "adamw"
            and not trial.compiled
            and (trial.case.strategy, trial.case.questions) == (strategy, questions)
        }

    def _judge(self) -> None:
        for strategy in ("full", "lora", "frozen_vision"):
            for questions in QUESTIONS:
                recipes = self._recipes(strategy, questions)
                ours = self._ours(strategy, questions)
                if ours and recipes:
                    self._compare(strategy, questions, ours, recipes)

    def _compare(
        self,
        strategy: str,
        questions: int,
        ours: dict[Trial, Measured],
        recipes: list[Measured],
    ) -> None:
        best = min(ours, key=lambda trial: middle(ours[trial]))
        ratio = min(map(middle, recipes)) / middle(ours[best])
        what = f"{strategy}, {questions} a page"
        self.record.write(PART, f"ratio: {what}", {"fastest": best.name, "ratio": ratio})
        if strategy != "frozen_vision":
            self.record.judge(PART, f"ratio, {what}", ratio, LEAST_RATIO[questions])
        if (strategy, questions) == ("full", 1):
            timed = ours[best].timed
            share = timed.operations / middle(ours[best]) / self.speed
            self.record.judge(PART, f"share of matrix speed, {what}", share, LEAST_SHARE)
        again = [found.peak_bytes for trial, found in ours.items() if trial.case.way == "recompute"]
        if again:
            memory = min(again) / min(one.peak_bytes for one in recipes)
            self.record.judge(PART, f"peak, {what}", memory, MOST_MEMORY)

    def _plan(self, trial: Trial, measured: Measured) -> None:
        errors = {"seconds": measured.planned_seconds / middle(measured) - 1}
        if measured.held_bytes:
            errors["memory"] = measured.planned_bytes / measured.held_bytes - 1
        said = {
            "card": self.hardware.name,
            "planned_seconds": measured.planned_seconds,
            "seconds": middle(measured),
            "planned_bytes": measured.planned_bytes,
            "bytes": measured.held_bytes,
        }
        said |= {f"{kind}_error": error for kind, error in errors.items()}
        self.record.write(PLAN, trial.name, said)
        for kind, error in errors.items():
            self.record.judge(PLAN, f"{kind}, {trial.name}", abs(error), MOST_OFF[kind])
