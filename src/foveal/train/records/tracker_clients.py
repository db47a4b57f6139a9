"""A package that follows runs -> one way to send it numbers and files, and to ask what it has."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from foveal.config import Recipe

OF_A_STEP, SCORES = "learning_rate", "validation/"
"""A measure that every step has and that is always finite; how the names of scores begin."""

PARAMS_AT_ONCE = 100
"""Settings that MLflow takes in one request."""

FIRST_RECORD, RECORD_HEADER, BLOCK = 7, 7, 2**15
"""Bytes of the log that W&B writes: where records begin, before each, and of a block."""

REMARKS_OF = logging.getLogger("trackers")

Ending = Literal["done", "stopped", "failed"]


@dataclass
class Held:
    """What a tracker has of a run."""

    steps: int = 0
    """The last one that it has the measures of."""

    scores: set[int] = field(default_factory=set)
    """Steps whose scores it has."""

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> "Held":
        """Read it off what was logged: steps, each with the numbers of one call."""
        held = cls()
        for step, values in rows:
            if OF_A_STEP in values:
                held.steps = max(held.steps, step)
            if any(name.startswith(SCORES) for name in values):
                held.scores.add(step)
        return held

    def __or__(self, other: "Held") -> "Held":
        """Put together what either says."""
        return Held(max(self.steps, other.steps), self.scores | other.scores)


class Tracker:
    """A client; what it does not say here its own process or server sees to."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step."""
        raise NotImplementedError

    def attach(self, file: Path) -> None:
        """Take a file of the run's folder, in place of one of the same name."""

    def describe(self, said: Mapping[str, Any]) -> None:
        """Take the settings and numbers of the run, once it is known there."""

    def held(self, sure: Held) -> Held | None:
        """Read what it has of a run that was killed; none where it cannot tell.

        Args:
            sure: what it had when the start began that was killed.
        """
        return None

    def flush(self) -> None:
        """See that what lies in the run's folder is whole: a checkpoint counts on it."""

    def close(self, ending: Ending) -> None:
        """Send what waits."""


class TensorBoard(Tracker):
    """Events in the run's folder, beside its files; those from a step on are void, to come anew."""

    def __init__(self, run: Path, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "events"
        number_events(folder)
        self._writer = SummaryWriter(str(folder), purge_step=from_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See that every event is on the disk."""
        self._writer.flush()

    def close(self, ending: Ending) -> None:
        """Close the file."""
        self._writer.close()


class Wandb(Tracker):
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

    def held(self, sure: Held) -> Held:
        """Ask the server, or read the files: its process writes them seconds behind.

        What was sent and removed since is `sure` alone.
        """
        if not self._run.offline:
            return Held(self._run.starting_step - 1, set(range(self._run.starting_step)))
        files = self._folder.glob(f"wandb/offline-run-*-{self._run.id}/*.wandb")
        return sure | Held.of_rows(row for file in files for row in wandb_rows(file))

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


class Mlflow(Tracker):
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

    def describe(self, said: Mapping[str, Any]) -> None:
        """Take settings that it has not; those of a run cannot be changed there."""
        known = self._client.get_run(self.identity).data.params
        new = [self._entities.Param(*one) for one in said.items() if one[0] not in known]
        for at in range(0, len(new), PARAMS_AT_ONCE):
            self._client.log_batch(self.identity, params=new[at : at + PARAMS_AT_ONCE])

    def held(self, sure: Held) -> Held:
        """Ask for what it has."""
        names = self._client.get_run(self.identity).data.metrics
        return Held.of_rows(
            (one.step, {name: one.value})
            for name in names
            if name == OF_A_STEP or name.startswith(SCORES)
            for one in self._client.get_metric_history(self.identity, name)
        )

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


class Trackio(Tracker):
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

    def held(self, sure: Held) -> Held | None:
        """Read its database, half a second behind; it cannot tell where that is elsewhere."""
        if self._run.url or import_module("trackio.utils").get_storage_mode() != "sqlite":
            return None
        stored = import_module("trackio.sqlite_storage").SQLiteStorage
        rows = stored.get_logs(self._run.project, self._run.name, run_id=self._run.id)
        return Held.of_rows((row["step"], row) for row in rows)

    def attach(self, file: Path) -> None:
        """Take a file of the run's folder."""
        name = "-".join([self._run.name, *file.relative_to(self._folder).parts])
        with remarks_kept():
            self._run.log_artifact(file, name=name, type="run")

    def close(self, ending: Ending) -> None:
        """Wait until all is written."""
        with remarks_kept():
            self._run.finish()


CLIENTS: Mapping[str, Callable[[Any, Recipe, Mapping[str, Any], str], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
"""Name in `log.trackers`, which is that of the package too -> its client."""


def number_events(folder: Path) -> None:
    """Put a number before the event files of former starts, so that the next one is read last.

    TensorBoard reads by name, which begins with what the clock of a machine said: the file of a
    machine whose clock is behind would come first, and what is void would void what is new.
    """
    files = sorted(file.name for file in folder.glob("*.tfevents.*"))  # digits come before letters
    for number, name in enumerate(files):
        if name.startswith("events."):
            (folder / name).rename(folder / f"{number:04d}.{name}")


def wandb_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of W&B's own file: a log as LevelDB has it, whose records are its messages.

    Yields:
        Step and numbers; of a file that was cut off, those that are whole.
    """
    message = import_module("wandb.proto.wandb_internal_pb2").Record
    content, at, record = file.read_bytes(), FIRST_RECORD, b""
    while at + RECORD_HEADER <= len(content):
        if (left := BLOCK - at % BLOCK) < RECORD_HEADER:  # the rest of a block is empty
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        at += RECORD_HEADER + length
        if at > len(content):
            return
        record += content[at - length : at]
        if kind in (1, 4):  # whole, or the last of its pieces
            found = message.FromString(record).history.item
            values = {
                one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in found
            }
            if values:
                yield values["_step"], values
            record = b""


def tracked_name(recipe: Recipe) -> str:
    """Name a run as its folder is called."""
    return recipe.run.resolve().name


@contextmanager
def remarks_kept() -> Iterator[None]:
    """Keep what a client prints from the terminal; it goes where libraries' remarks go."""
    with redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
        yield
    if text := printed.getvalue().strip():
        REMARKS_OF.warning(text)
