"""A run is one run in every tracker, however often it is killed, and nothing is sent twice."""

import importlib
import json
import sqlite3
from collections import Counter
from types import SimpleNamespace

import pytest
from daily import daily
from rich.console import Console
from small_runs import metrics, recipe, run, run_until

from foveal.config import Recipe
from foveal.errors import UserError
from foveal.run import TrainingRun
from foveal.train.checkpoint import resume_key
from foveal.train.records import tracker_clients, trackers


def tracked(place, *names, **changes) -> Recipe:
    given = {"data__validation": str(place / "validation.jsonl"), **changes}
    given.setdefault("train__evaluate_every_steps", 2)
    made = recipe(place, "run", **given)
    log = made.log.model_copy(update={"trackers": names, "project": "shop"})
    return made.model_copy(update={"log": log})


class Server:
    """What a tracker's server holds, across the processes that speak to it."""

    def __init__(self):
        self.runs, self.values, self.files, self.endings = [], [], Counter(), []
        self.fails_at, self.tells = None, True

    def client(self, _, made, said, identity):
        server = self
        server.runs.append((identity, said))

        class Client(tracker_clients.Tracker):
            def held(self, sure):
                if not server.tells:
                    return None
                return tracker_clients.Held.of_rows(
                    (at, {name: 0}) for at, name, _ in server.values
                )

            def log(self, values, step):
                if step == server.fails_at:
                    raise ConnectionError("no route to host")
                server.values += [(step, name, value) for name, value in values.items()]

            def attach(self, file):
                server.files[file.relative_to(made.run).as_posix()] += 1

            def close(self, ending):
                server.endings.append(ending)

        return Client()

    def of(self, name):
        return {step: value for step, one, value in self.values if one == name}

    def check_each_once(self, run_folder):
        counted = Counter((step, name) for step, name, _ in self.values)
        assert set(counted.values()) == {1}
        lines = metrics(run_folder)
        assert self.of("loss") == {line["step"]: line["loss"] for line in lines}
        assert self.of("validation/accuracy").keys() == {0, 2, 4, 6}


@pytest.fixture
def server(monkeypatch):
    held = Server()
    monkeypatch.setitem(trackers.CLIENTS, "wandb", held.client)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(trackers, "import_module", lambda name: name)
    return held


def test_steps_scores_settings_and_files_are_sent(place, server):
    run(tracked(place, "wandb"))
    ((identity, said),) = server.runs
    assert identity == json.loads((place / "run" / "trackers.json").read_text())["wandb"]["run"]
    assert said["train.learning_rate"] == 1e-2
    assert said["log.trackers"] == '["wandb"]'
    assert said["plan.steps"] == 6
    assert said["plan.examples"] == 12
    assert server.of("loss") == {line["step"]: line["loss"] for line in metrics(place / "run")}
    scores = json.loads((place / "run" / "evaluation" / "after" / "scores.json").read_text())
    assert server.of("validation/accuracy").keys() == {0, 2, 4, 6}
    assert server.of("validation/anls_low")[6] == scores["anls"]["low"]
    assert server.files["report.html"] == server.files["recipe.yaml"] == 1
    assert server.files["evaluation/after/scores.json"] == 1
    assert server.endings == ["done"]
    server.check_each_once(place / "run")
    assert not (place / "run" / "events").exists()  # nobody asked for it


def killed(place, stop, monkeypatch, *names):
    """Take a run to a step and end it as a kill does: nothing more is sent or written."""

    def end(self, ending):
        for one in self._open.values():
            if isinstance(one, tracker_clients.TensorBoard):
                one.close(ending)  # its thread would outlive the start that is killed here

    with monkeypatch.context() as patch:
        patch.setattr(trackers.Trackers, "close", end)
        run_until(TrainingRun(tracked(place, *names), Console(quiet=True)), stop)


@pytest.mark.parametrize("tells", daily(True, beside=[False]))
@pytest.mark.parametrize("kills", daily([3, 2], beside=[[3], [5, 3, 4]]))
def test_a_run_that_is_killed_and_goes_on_is_one_run_with_each_step_once(
    place, server, kills, tells, monkeypatch
):
    server.tells = tells
    for stop in kills:
        killed(place, stop, monkeypatch, "wandb")
    run(tracked(place, "wandb"))
    server.check_each_once(place / "run")
    assert len({identity for identity, _ in server.runs}) == 1
    run(tracked(place, "wandb"))  # finished: it has nothing to say
    assert len(server.runs) == len(kills) + 1


@pytest.mark.parametrize("whole", daily(3, beside=[0, 1, 2]))
def test_what_a_tracker_lost_with_the_process_that_was_killed_is_sent_again(
    place, server, whole, monkeypatch
):
    killed(place, 4, monkeypatch, "wandb")
    server.values = [one for one in server.values if one[0] < whole]  # it wrote behind
    run(tracked(place, "wandb"))
    server.check_each_once(place / "run")


def test_scores_that_were_lost_behind_the_measures_of_their_step_are_sent_again(
    place, server, monkeypatch
):
    killed(place, 4, monkeypatch, "wandb")
    lost = [one for one in server.values if one[0] == 4 and one[1].startswith("validation/")]
    server.values = [one for one in server.values if one not in lost]
    run(tracked(place, "wandb"))
    assert lost
    server.check_each_once(place / "run")


def test_what_was_sent_before_a_start_is_not_sent_again_where_it_is_not_there_any_more(place):
    sure = tracker_clients.Held(4, {0, 2})
    assert sure | tracker_clients.Held(2, {0}) == sure
    assert sure | tracker_clients.Held(6, {6}) == tracker_clients.Held(6, {0, 2, 6})


def test_a_run_that_ended_early_and_goes_on_has_each_score_once(place, server):
    patient = {"train__evaluate_every_steps": 2, "train__best_metric": "accuracy"}
    run(tracked(place, "wandb", **patient, train__stop_after_worse=1))
    taken = len(metrics(place / "run"))
    assert taken < 6
    run(tracked(place, "wandb", **patient))
    server.check_each_once(place / "run")
    assert len({identity for identity, _ in server.runs}) == 1


def test_what_an_older_version_wrote_of_its_trackers_is_read(place, server):
    run_until(TrainingRun(tracked(place, "wandb"), Console(quiet=True)), 3)
    file = place / "run" / "trackers.json"
    state = json.loads(file.read_text())
    state["wandb"] |= {"scores": {"before": 0, "step-2": 2}}
    file.write_text(json.dumps(state))
    run(tracked(place, "wandb"))
    server.check_each_once(place / "run")


def test_a_tracker_that_fails_on_the_way_does_not_end_the_run_and_gets_the_rest_later(
    place, server, capsys
):
    server.fails_at = 3
    console = Console(quiet=False)
    TrainingRun(tracked(place, "wandb"), console).go()
    assert "wandb takes no more (ConnectionError: no route to host)" in capsys.readouterr().out
    assert server.of("loss").keys() == {1, 2}
    assert len(metrics(place / "run")) == 6
    server.fails_at = None
    run(tracked(place, "wandb"))
    server.check_each_once(place / "run")


def test_a_tracker_that_is_added_later_gets_all_steps_and_scores(place, server):
    run_until(TrainingRun(tracked(place), Console(quiet=True)), 4)
    run(tracked(place, "tensorboard", "wandb"))
    server.check_each_once(place / "run")
    check_events(place / "run")


def test_a_tracker_that_takes_no_run_stops_it_before_its_first_step(place, server, monkeypatch):
    def refused(*_):
        raise PermissionError("not logged in")

    monkeypatch.setitem(trackers.CLIENTS, "wandb", refused)
    with pytest.raises(UserError, match=r"wandb does not take this run \(PermissionError: not log"):
        run(tracked(place, "wandb"))
    assert not (place / "run" / "metrics.jsonl").exists()


def test_a_client_that_is_missing_is_named_before_the_model_is_read(place, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    missing = tracked(place, "mlflow").model_copy(update={"model": "no/such-model"})
    with pytest.raises(UserError, match=r"mlflow is not installed: pip install 'foveal\[mlflow\]'"):
        TrainingRun(missing, Console(quiet=True))


def test_who_follows_a_run_does_not_decide_its_numbers(place):
    assert resume_key(tracked(place, "wandb")) == resume_key(tracked(place))


def test_numbers_that_are_none_are_left_out():
    assert trackers._finite({"loss": float("nan"), "rate": 1e-3}) == {"rate": 1e-3}


# -- the real clients, where they are installed; none of them asks the network ---------------------


def check_events(run_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run_folder / "events")).Reload()
    assert [one.step for one in shown.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in shown.Scalars("validation/accuracy")] == [0, 2, 4, 6]


@pytest.mark.parametrize("lost", daily(True, beside=[False]))
def test_tensorboard_shows_each_step_once_behind_a_kill(place, lost, monkeypatch):
    killed(place, 3, monkeypatch, "tensorboard")
    if lost:  # nothing of what waited reached the disk
        (events,) = (place / "run" / "events").iterdir()
        events.write_bytes(b"")
    run(tracked(place, "tensorboard"))
    check_events(place / "run")


@pytest.mark.parametrize(
    ("seconds", "files"), [(0, 9), (-3600, 0)], ids=["in the same second", "an hour earlier"]
)
def test_tensorboard_shows_what_came_last_whatever_the_clock_says(
    place, seconds, files, monkeypatch
):
    from tensorboard.summary.writer import event_file_writer

    def clock(now):  # as the names of event files see it, and how many this process has written
        monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: now))

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(files))
    clock(1_800_000_000)
    killed(place, 3, monkeypatch, "tensorboard")
    clock(1_800_000_000 + seconds)
    killed(place, 4, monkeypatch, "tensorboard")
    run(tracked(place, "tensorboard"))
    check_events(place / "run")


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_one_run_with_each_step_once(place, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    run_until(TrainingRun(tracked(place, "mlflow"), Console(quiet=True)), 3)
    run(tracked(place, "mlflow"))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("shop").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    assert found.data.params["train.seed"] == "0"
    loss = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in loss] == [
        (line["step"], line["loss"]) for line in metrics(place / "run")
    ]
    held = {one.path for one in client.list_artifacts(found.info.run_id)}
    assert held >= {"report.html", "recipe.yaml", "evaluation"}


@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_one_run_with_each_step_once(place, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(place / "trackio"))
    pytest.importorskip("trackio")
    utils = importlib.import_module("trackio.utils")
    run_until(TrainingRun(tracked(place, "trackio"), Console(quiet=True)), 3)
    run(tracked(place, "trackio"))
    (file,) = utils.TRACKIO_DIR.glob("shop*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    shown = [(step, json.loads(held)) for _, step, held in rows]
    losses = [(step, held["loss"]) for step, held in shown if "loss" in held]
    assert losses == [(line["step"], line["loss"]) for line in metrics(place / "run")]
    assert len({name for name, _, _ in rows}) == 1


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_network_holds_one_run_with_each_step_once(place, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_until(TrainingRun(tracked(place, "wandb"), Console(quiet=True)), 3)
    run(tracked(place, "wandb"))
    written = sorted((place / "run" / "wandb").glob("offline-run-*"))
    identity = json.loads((place / "run" / "trackers.json").read_text())["wandb"]["run"]
    assert len(written) == 2
    assert all(one.name.split("-")[3] == identity for one in written)
    shown = [file for one in written for file in one.glob("*.wandb")]
    shown = [row for file in shown for _, row in tracker_clients.wandb_rows(file)]
    assert [(row["_step"], row["loss"]) for row in shown if "loss" in row] == [
        (line["step"], line["loss"]) for line in metrics(place / "run")
    ]
    assert sum("validation/accuracy" in row for row in shown) == 4
    assert any(one.glob("files/report.html") for one in written)
