"""What the command promises: it starts in a sentence, stops in order, and serves a run twice."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
import torch
from safetensors.torch import save_file
from serving import question, running, wait_until

from foveal.data.images.frames import FrameChoice
from foveal.serve.limits import ServerLimits, ServerSettings
from foveal.serve.served import decoding_limits, find_before, open_models, served_name
from foveal.serve.server import (
    ServeError,
    address_of,
    build_app,
    listen,
    make_server,
    run_until_stopped,
    serve,
)


@pytest.mark.parametrize(
    ("sent", "was_interrupt"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_a_signal_lets_running_answers_end_and_then_the_server(tiny, actor, sent, was_interrupt):
    from foveal.serve.scheduler import Scheduler
    from foveal.serve.served import Served
    from foveal.serve.server import make_app

    actor.going.clear()
    app = make_app([Served("mine", tiny)], Scheduler({"mine": lambda: actor}), ServerSettings())
    server = make_server(app, ServerLimits())
    former = signal.getsignal(sent)

    def ask_then_stop(url):
        try:
            wait_until(lambda: server.started)
            asked = {"messages": [question()]}
            with ThreadPoolExecutor(1) as other:
                answer = other.submit(
                    httpx.post, f"{url}/v1/chat/completions", json=asked, timeout=60
                )
                wait_until(lambda: actor.num_active == 1)
                os.kill(os.getpid(), sent)
                wait_until(lambda: server.should_exit)
                actor.going.set()
            return answer.result()
        finally:
            server.should_exit = True  # whatever went wrong

    with listen("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as client:
        answer = client.submit(ask_then_stop, address_of(listener))
        assert run_until_stopped(server, listener) == was_interrupt
    assert answer.result().json()["choices"][0]["finish_reason"] == "stop"
    assert signal.getsignal(sent) is former
    assert not app.state.endpoint.scheduler.is_alive


def test_ctrl_c_before_the_server_listens_to_signals_ends_it_too():
    def run(sockets):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    assert run_until_stopped(SimpleNamespace(run=run), None)


@pytest.mark.slow
def test_the_command_serves_a_run_and_ctrl_c_is_130(tiny_folder, tmp_path):
    command = [sys.executable, "-m", "foveal.cli", "serve", str(tiny_folder), "--port", "0"]
    log = (tmp_path / "log").open("w+")
    with log, subprocess.Popen(command, stderr=log, stdout=log) as process:

        def said():
            return (tmp_path / "log").read_text()

        def is_up():
            assert process.poll() is None, said()
            return "model: http" in said()

        wait_until(is_up, 300)
        url = re.search(r"model: (http://127\.0\.0\.1:\d+)", said())[1]
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            json={"messages": [question()], "max_tokens": 2},
            timeout=60,
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 130
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert "Traceback" not in said()


def test_others_are_let_in_with_a_token_alone():
    with pytest.raises(ServeError, match=r"--host 0\.0\.0\.0 lets other machines in; give --token"):
        serve(
            "nowhere",
            "0.0.0.0",
            0,
            ServerSettings(),
            name=None,
            with_before=False,
            free_memory=lambda _: 0,
            tell=print,
        )


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            listen("127.0.0.1", port)


def make_run(folder, tiny_folder):
    """A run folder that ended, whose base lies in it."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"model: phi3-vision-tiny\nrun: {folder}\n")
    for name in ("final", "model"):
        (folder / name).symlink_to(tiny_folder)
    return folder


def test_a_run_is_served_after_and_before_tuning(tmp_path, tiny_folder):
    run = make_run(tmp_path / "mine", tiny_folder)
    served, remark = open_models(str(run), None, True, lambda _: 2**30)
    assert remark == "before and after tuning"
    with running(build_app(served, ServerSettings(), lambda _: 2**28), ServerLimits()) as server:
        client = server.client()
        assert [one.id for one in client.models.list()] == ["mine", "mine-before"]
        for name in ("mine", "mine-before"):
            completion = client.chat.completions.create(
                model=name, messages=[question()], max_tokens=2
            )
            assert completion.model == name


def test_the_model_before_tuning_reads_turns_boxes_and_clips_as_the_run_did(tmp_path, tiny_folder):
    run = make_run(tmp_path / "mine", tiny_folder)
    with (run / "recipe.yaml").open("a") as recipe:
        recipe.write("data: {boxes: pixels, frames: 3, turns: template, num_crops: 4}\n")
    served, _ = open_models(str(run), None, True, lambda _: 2**30)
    for one in served:
        processor = one.loaded.processor
        assert (processor.boxes, processor.turns) == ("pixels", "template")
        assert processor.frame_choice == FrameChoice(3)


def test_the_model_before_tuning_is_left_out_where_it_is_not_wanted_or_has_no_room(
    tmp_path, tiny_folder
):
    run = make_run(tmp_path / "mine", tiny_folder)
    served, remark = open_models(str(run), "name", False, lambda _: 2**30)
    assert [one.name for one in served] == ["name"]
    assert "left out" in remark
    served, remark = open_models(str(run), None, True, lambda _: 1000)
    assert len(served) == 1
    assert remark.startswith("no room for the model before tuning: it needs 0.0 GiB")


def test_a_base_that_is_not_on_this_machine_is_not_fetched(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: nobody/nothing\nrun: out\n")
    assert find_before(str(tmp_path)) is None
    assert find_before(str(tmp_path / "elsewhere")) is None


def test_a_base_of_which_the_settings_alone_are_here_is_not_served(tmp_path, monkeypatch):
    """As after `foveal plan`, or a download that was broken off."""
    (tmp_path / "recipe.yaml").write_text("model: nobody/nothing\nrun: out\n")
    cached = tmp_path / "hub" / "models--nobody--nothing"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_before(str(tmp_path)) is None
    save_file({"weight": torch.zeros(1)}, snapshot / "model.safetensors")
    assert find_before(str(tmp_path)) == str(snapshot)


def test_models_are_named_by_folder_or_hub_name(tmp_path):
    assert served_name(str(tmp_path / "..") + f"/{tmp_path.name}/") == tmp_path.name
    assert served_name("microsoft/Phi-3.5-vision-instruct") == "microsoft/Phi-3.5-vision-instruct"


def test_keys_and_values_get_a_share_of_the_free_memory(tiny):
    from foveal.serve.served import Served

    # 2 layers of 32 float32 numbers for keys and as many for values: 512 bytes a token
    limits = decoding_limits(Served("mine", tiny), ServerLimits(running=3), 512 * 1000)
    assert (limits.tokens, limits.sequences) == (600, 3)


def test_the_command_refuses_in_one_line(tmp_path):
    from typer.testing import CliRunner

    from foveal.cli import app

    result = CliRunner().invoke(app, ["serve", str(tmp_path), "--host", "0.0.0.0"])
    assert isinstance(result.exception, ServeError)
    assert json.dumps(str(result.exception)).count("\\n") == 0
