"""A run's measures, scores and files -> the trackers that its recipe names, each of them once."""

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any

from foveal.config import Recipe, flatten
from foveal.errors import UserError, one_line
from foveal.storage import write_json
from foveal.train.objective import PAIR_MEASURES
from foveal.train.records.journal import last_step, read_journal
from foveal.train.records.tracker_clients import (
    CLIENTS,
    SCORES,
    Ending,
    Held,
    TensorBoard,
    Tracker,
)

TRACKED = "trackers.json"
"""In a run's folder: under which name each tracker knows the run, and what it surely has."""

METRICS = "metrics.jsonl"
"""In a run's folder: what each step measured."""

SHOWN = ("loss", "learning_rate", "gradient_norm")
"""Measures of a step that are sent as they are."""


class Trackers:
    """All trackers of a run on its main process, from its folder's state to the end of a start.

    A killed run takes some steps again, with the same numbers: what a tracker has is not sent
    again. What it has not, since it is new, was out of reach or lost it with the process that was
    killed, is sent first, read off the run's folder.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps: range,
        plan: Mapping[str, int],
        scored: Mapping[int, Mapping[str, Any]],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open them, before the log of the run is taken back to where it stands.

        Args:
            recipe: of the run.
            steps: that are still to be taken; the last one is the run's.
            plan: numbers of the run that hang on its data.
            scored: the scores that the run's folder holds, by the step that they are of.
            tell: called with what a person should hear.

        Raises:
            UserError: a client is missing, or does not take the run.
        """
        self.run = recipe.run
        self._tell = tell
        self._file = recipe.run / TRACKED
        self._state = _read(self._file)
        self._open: dict[str, Tracker] = {}
        self._sent: dict[str, Held] = {}
        said = {
            **tracked_settings(recipe),
            **{f"plan.{name}": value for name, value in plan.items()},
        }
        presumed = Held(last_step(recipe.run / METRICS), set(scored))
        for name in recipe.log.trackers:
            known = self._state.setdefault(name, {"run": ""})
            if known.get("ended") and not steps:
                continue  # nothing is new
            self._open_one(name, recipe, said, steps.start, presumed)
        self._write()
        self._catch_up(steps.start, scored)

    def _open_one(
        self, name: str, recipe: Recipe, said: Mapping[str, Any], first_step: int, presumed: Held
    ) -> None:
        known = self._state[name]
        sure = _sure(known)
        if name == "tensorboard":
            stands = min(sure.steps, first_step - 1)
            self._open[name] = TensorBoard(recipe.run, stands + 1)
            self._sent[name] = Held(stands, {step for step in sure.scores if step <= stands})
        else:
            if not known["run"] and name != "mlflow":  # that gives a run its name itself
                known["run"] = secrets.token_hex(4)
                self._write()
            try:
                opened = CLIENTS[name](import_module(name), recipe, said, known["run"])
                known["run"] = getattr(opened, "identity", known["run"])
                self._write()
                opened.describe(said)
                if known.get("open"):  # the start before this one was killed
                    sure = opened.held(sure) or sure | presumed
            except Exception as error:  # of the network, of an account, of its own
                raise UserError(
                    f"log.trackers: {name} does not take this run ({_in_short(error)}); see to it, "
                    "or leave it out"
                ) from error
            self._open[name], self._sent[name] = opened, sure
        self._note(name, open=True, ended=False)

    def _catch_up(self, first_step: int, scored: Mapping[int, Mapping[str, Any]]) -> None:
        behind = min((sent.steps for sent in self._sent.values()), default=first_step)
        lines = read_journal(self.run / METRICS, first_step) if behind < first_step else []
        due = [(line["step"], partial(self.step, line)) for line in lines]
        due += [(at, partial(self.scores, at, scored[at])) for at in scored if at <= first_step]
        for _, send in sorted(due, key=itemgetter(0)):  # of a step first its line
            send()

    def step(self, measured: Mapping[str, Any]) -> None:
        """Send what a step measured, as its line in metrics.jsonl holds it."""
        values = {name: measured[name] for name in (*SHOWN, *PAIR_MEASURES) if name in measured}
        values["examples_per_second"] = measured["examples"] / max(measured["seconds"], 1e-9)
        number = measured["step"]
        for name in list(self._open):
            if number > self._sent[name].steps:
                self._send(name, lambda one: one.log(_finite(values), number))
                if name in self._open:
                    self._sent[name].steps = number

    def scores(self, step: int, scores: Mapping[str, Any]) -> None:
        """Send the scores of an evaluation, each with its interval."""
        values = {
            f"{SCORES}{metric}{end}": getattr(score, what)
            for metric, score in scores.items()
            for what, end in (("value", ""), ("low", "_low"), ("high", "_high"))
        }
        for name in list(self._open):
            if step not in self._sent[name].scores:
                self._send(name, lambda one: one.log(_finite(values), step))
                if name in self._open:
                    self._sent[name].scores.add(step)

    def attach(self, files: Sequence[Path]) -> None:
        """Send files of the run's folder; one that is not there is passed over."""
        for name in list(self._open):
            for file in files:
                if file.is_file() and name in self._open:
                    self._send(name, methodcaller("attach", file))

    def flush(self) -> None:
        """See that what lies in the run's folder is whole."""
        for name in list(self._open):
            self._send(name, lambda one: one.flush())

    def close(self, ending: Ending) -> None:
        """Wait until all is sent, and write down what was."""
        for name in list(self._open):
            self._send(name, lambda one: one.close(ending))
            if name in self._open:
                self._note(name, open=False, ended=ending == "done")
        self._open.clear()
        self._write()

    def _send(self, name: str, send: Callable[[Tracker], None]) -> None:
        try:
            send(self._open[name])
        except Exception as error:  # of the network or its own: no reason to end a run
            del self._open[name]
            self._note(name, open=False)
            self._write()
            self._tell(
                f"log.trackers: {name} takes no more ({_in_short(error)}); the run goes on, "
                f"{METRICS} holds everything, and the same command sends it later"
            )

    def _note(self, name: str, **how: bool) -> None:
        sent = self._sent[name]
        self._state[name] |= {"steps": sent.steps, "scores": sorted(sent.scores), **how}

    def _write(self) -> None:
        write_json(self._file, self._state)


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}; remove it, and the run is tracked anew") from error
    return tree if isinstance(tree, dict) else {}


def _sure(known: Mapping[str, Any]) -> Held:
    """Read what a tracker had when it was last opened or closed; once scores had names."""
    scores = known.get("scores", ())
    steps = scores.values() if isinstance(scores, Mapping) else scores
    return Held(known.get("steps", 0), set(steps))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is no number: not every tracker takes it, and none can draw it."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"


def check_trackers(recipe: Recipe) -> None:
    """See that the clients of a recipe's trackers are installed.

    Raises:
        UserError: one is not.
    """
    for name in recipe.log.trackers:
        if name in CLIENTS and find_spec(name) is None:
            raise UserError(
                f"log.trackers: {name} is not installed: pip install 'foveal[{name}]', or leave it "
                "out"
            )


def tracked_settings(recipe: Recipe) -> dict[str, Any]:
    """Write every setting by its dotted name; what is neither number nor text, as JSON."""
    return {
        name: value if value is None or isinstance(value, str | int | float) else json.dumps(value)
        for name, value in flatten(recipe.model_dump(mode="json", exclude={"base"})).items()
    }
