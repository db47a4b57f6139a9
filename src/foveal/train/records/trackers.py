"""A run's measures, scores and files -> the trackers that its recipe names, each of them once."""

import json
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, Protocol

from foveal.config import Recipe, flatten
from foveal.errors import UserError
from foveal.storage import write_json
from foveal.train.preference import PAIR_MEASURES
from foveal.train.records.journal import last_step, read_journal

TRACKED = "trackers.json"
"""In a run's folder: under which name each tracker knows the run, and what it was sent."""

METRICS = "metrics.jsonl"
"""In a run's folder: what each step measured."""

SHOWN = ("loss", "learning_rate", "gradient_norm")
"""Measures of a step that are sent as they are."""

REMARKS_OF = logging.getLogger("trackers")

Ending = Literal["done", "stopped", "failed"]


class Tracker(Protocol):
    """What is asked of a client, whoever it belongs to."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step."""

    def attach(self, file: Path) -> None:
        """Take a file of the run's folder, in place of one of the same name."""

    def flush(self) -> None:
        """See that what lies in the run's folder is whole: a checkpoint counts on it."""

    def close(self, ending: Ending) -> None:
        """Send what waits."""


class _Client:
    """One whose own process or server keeps what it took."""

    def flush(self) -> None:
        """Leave it to the client."""


class TensorBoard:
    """Events in the run's folder; what a killed run wrote too much is marked as void."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "events"), purge_step=first_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def attach(self, file: Path) -> None:
        """Take no file: they lie beside."""

    def flush(self) -> None:
        """See that every event is on the disk."""
        self._writer.flush()

    def close(self, ending: Ending) -> None:
        """Close the file."""
        self._writer.close()


class Wandb(_Client):
    """Weights & Biases; without a network by WANDB_MODE=offline, into the run's folder."""

    def __init__(self, client: Any, recipe: Recipe, said: Mapping[str, Any], identity: str) -> None:
        self._folder = recipe.run
        self._run = client.init(
            project=recipe.log.project,
            name=tracked_name(recipe),
            id=identity,
            dir=str(recipe.run),
            resume="allow",
            settings=client.Settings(silent=True, console="off"),
        )
        self._run.config.update(dict(said), allow_val_change=True)
        self._at = self._run.step

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step; what is of an earlier one would be dropped there."""
        self._at = max(self._at, step)
        self._run.log(dict(values), step=self._at)

    def attach(self, file: Path) -> None:
        """Take a file of the run's folder."""
        with remarks_kept():
            self._run.save(str(file), base_path=str(self._folder), policy="now")

    def close(self, ending: Ending) -> None:
        """Wait until all is sent."""
        self._run.finish(exit_code=int(ending == "failed"))


class Mlflow(_Client):
    """MLflow; where it writes to, MLFLOW_TRACKING_URI says."""

    def __init__(self, client: Any, recipe: Recipe, said: Mapping[str, Any], identity: str) -> None:
        self._entities = import_module("mlflow.entities")
        self._client = client.MlflowClient()
        self._folder = recipe.run
        self.identity = identity
        if identity:
            self._client.update_run(identity, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(recipe.log.project)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(recipe.log.project)
        )
        self.identity = self._client.create_run(
            experiment, run_name=tracked_name(recipe)
        ).info.run_id
        for name, value in said.items():  # settings of a run cannot be changed there
            self._client.log_param(self.identity, name, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step."""
        now = import_module("mlflow.utils.time").get_current_time_millis()
        metrics = [self._entities.Metric(name, one, now, step) for name, one in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def attach(self, file: Path) -> None:
        """Take a file of the run's folder."""
        inside = file.relative_to(self._folder).parent.as_posix()
        self._client.log_artifact(self.identity, str(file), None if inside == "." else inside)

    def close(self, ending: Ending) -> None:
        """Say how it ended."""
        status = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[ending]
        self._client.set_terminated(self.identity, status)


class Trackio(_Client):
    """Trackio; on this machine, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says otherwise."""

    def __init__(self, client: Any, recipe: Recipe, said: Mapping[str, Any], identity: str) -> None:
        self._folder = recipe.run
        with remarks_kept():
            self._run = client.init(
                project=recipe.log.project,
                name=f"{tracked_name(recipe)}-{identity}",
                config=dict(said),
                resume="allow",
                embed=False,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step."""
        self._run.log(dict(values), step=step)

    def attach(self, file: Path) -> None:
        """Take a file of the run's folder."""
        name = "-".join([self._run.name, *file.relative_to(self._folder).parts])
        with remarks_kept():
            self._run.log_artifact(file, name=name, type="run")

    def close(self, ending: Ending) -> None:
        """Wait until all is written."""
        with remarks_kept():
            self._run.finish()


CLIENTS: Mapping[str, Callable[[Any, Recipe, Mapping[str, Any], str], Any]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
"""Name in `log.trackers`, which is that of the package too -> its client."""


class Trackers:
    """All trackers of a run on its main process, from its folder's state to the end of a start.

    A killed run takes some steps again, with the same numbers: what a tracker was sent before is
    not sent again, and what one never got, since it is new or was out of reach, is sent first.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps: tuple[int, int],
        plan: Mapping[str, int],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open them, before the log of the run is taken back to where it stands.

        Args:
            recipe: of the run.
            steps: taken, and of the whole run.
            plan: numbers of the run that hang on its data.
            tell: called with what a person should hear.

        Raises:
            UserError: a client is missing, or does not take the run.
        """
        self.run = recipe.run
        self._tell = tell
        self._file = recipe.run / TRACKED
        self._state = _settled(_read(self._file), last_step(recipe.run / METRICS))
        self._open: dict[str, Tracker] = {}
        first_step, total = steps
        said = {
            **tracked_settings(recipe),
            **{f"plan.{name}": value for name, value in plan.items()},
        }
        for name in recipe.log.trackers:
            known = self._state.setdefault(name, {"run": "", "steps": 0, "scores": {}})
            if known.get("ended") and first_step == total:
                continue  # nothing is new
            self._open[name] = self._opened(name, recipe, said, first_step)
            known["open"], known["ended"] = True, False
        self._write()
        self._catch_up(first_step)

    def _opened(
        self, name: str, recipe: Recipe, said: Mapping[str, Any], first_step: int
    ) -> Tracker:
        known = self._state[name]
        if name == "tensorboard":  # it takes back what came after the checkpoint
            known["steps"] = first_step
            known["scores"] = {
                one: step for one, step in known["scores"].items() if step <= first_step
            }
            return TensorBoard(recipe.run, first_step)
        if not known["run"] and name != "mlflow":  # that gives a run its name itself
            known["run"] = secrets.token_hex(4)
            self._write()
        try:
            opened = CLIENTS[name](import_module(name), recipe, said, known["run"])
        except Exception as error:  # of the network, of an account, of its own
            raise UserError(
                f"log.trackers: {name} does not take this run ({_one_line(error)}); see to it, or "
                "leave it out"
            ) from error
        known["run"] = getattr(opened, "identity", known["run"])
        tracker: Tracker = opened
        return tracker

    def _catch_up(self, first_step: int) -> None:
        behind = min((self._state[name]["steps"] for name in self._open), default=first_step)
        if behind < first_step:
            for line in read_journal(self.run / METRICS, first_step):
                self.step(line)

    def step(self, measured: Mapping[str, Any]) -> None:
        """Send what a step measured, as its line in metrics.jsonl holds it."""
        values = {name: measured[name] for name in (*SHOWN, *PAIR_MEASURES) if name in measured}
        values["examples_per_second"] = measured["examples"] / max(measured["seconds"], 1e-9)
        number = measured["step"]
        for name in list(self._open):
            if number > self._state[name]["steps"]:
                self._send(name, lambda one: one.log(_finite(values), number))
                if name in self._open:
                    self._state[name]["steps"] = number

    def scores(self, name: str, step: int, scores: Mapping[str, Any]) -> None:
        """Send the scores of an evaluation, each with its interval."""
        values = {
            f"validation/{metric}{end}": getattr(score, what)
            for metric, score in scores.items()
            for what, end in (("value", ""), ("low", "_low"), ("high", "_high"))
        }
        for tracker in list(self._open):
            sent = self._state[tracker]["scores"]
            if name not in sent:
                sent[name] = step
                self._write()  # before it is sent: better once too few than twice
                self._send(tracker, lambda one: one.log(_finite(values), step))

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
                self._state[name]["ended"] = ending == "done"
        self._open.clear()
        self._write()

    def _send(self, name: str, send: Callable[[Tracker], None]) -> None:
        try:
            send(self._open[name])
        except Exception as error:  # of the network or its own: no reason to end a run
            del self._open[name]
            self._state[name]["open"] = False
            self._write()
            self._tell(
                f"log.trackers: {name} takes no more ({_one_line(error)}); the run goes on, "
                f"{METRICS} holds everything, and the same command sends it later"
            )

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


def _settled(state: dict[str, Any], written: int) -> dict[str, Any]:
    """Take what a start that was killed wrote into its own log as sent."""
    for known in state.values():
        if known.pop("open", False):
            known["steps"] = max(known["steps"], written)
    return state


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is no number: not every tracker takes it, and none can draw it."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def tracked_name(recipe: Recipe) -> str:
    """Name a run as its folder is called."""
    return recipe.run.resolve().name


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


@contextmanager
def remarks_kept() -> Iterator[None]:
    """Keep what a client prints from the terminal; it goes where libraries' remarks go."""
    with redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
        yield
    if text := printed.getvalue().strip():
        REMARKS_OF.warning(text)
