"""Files for other people's machines: as right as can be told without those machines."""

import fnmatch
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import typer
import yaml

import foveal
from foveal.cli import app
from foveal.config import Recipe, load_recipe, setting_names

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

# https://learn.microsoft.com/azure/machine-learning/reference-yaml-job-command
AZURE_KEYS = {
    "": {"$schema", "type", "name", "display_name", "experiment_name", "description", "tags"}
    | {"command", "code", "environment", "environment_variables", "distribution", "compute"}
    | {"resources", "limits", "inputs", "outputs", "identity", "services", "queue_settings"},
    "distribution": {"type", "process_count_per_instance"},
    "resources": {"instance_count", "instance_type", "shm_size", "docker_args", "properties"},
    "limits": {"timeout"},
    "environment": {"image", "build", "conda_file", "os_type", "tags", "description"},
    "inputs.*": {"type", "path", "mode"},
    "outputs.*": {"type", "path", "mode", "name", "version"},
}
# https://docs.skypilot.co/en/latest/reference/yaml-spec.html
SKY_KEYS = {
    "": {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes"}
    | {"file_mounts", "setup", "run", "config", "service"},
    "resources": {"infra", "accelerators", "cpus", "memory", "instance_type", "use_spot"}
    | {"disk_size", "disk_tier", "network_tier", "image_id", "ports", "labels", "autostop"}
    | {"any_of", "ordered", "job_recovery", "max_hourly_cost"},
    "resources.job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
    "file_mounts.*": {"source", "mode", "name", "store", "persistent"},
}


def unknown_keys(tree, allowed, path=""):
    known = next((keys for one, keys in allowed.items() if fnmatch.fnmatchcase(path, one)), None)
    found = [] if known is None else [f"{path}.{key}" for key in tree if key not in known]
    for key, value in tree.items():
        if isinstance(value, dict):
            found += unknown_keys(value, allowed, f"{path}.{key}".lstrip("."))
    return found


def check_overrides(words):
    """Every key=value of a command is a setting of ours."""
    names = setting_names(Recipe)
    given = [word.partition("=")[0] for word in words if re.match(r"[a-z_.]+=", word)]
    assert given
    assert set(given) <= set(names)


def test_the_azure_job_has_known_keys_and_speaks_of_its_own_inputs():
    job = yaml.safe_load((DEPLOY / "azureml.yaml").read_text())
    assert unknown_keys(job, AZURE_KEYS) == []
    assert job["type"] == "command"
    assert job["distribution"]["type"] == "pytorch"
    for kind, name in re.findall(r"\$\{\{(\w+)\.(\w+)\}\}", job["command"]):
        assert name in job[kind]
    words = shlex.split(job["command"].replace("${{", "").replace("}}", ""))
    assert words[:2] == ["foveal", "train"]
    load_recipe((DEPLOY / job["code"] / words[2]).resolve())
    check_overrides(words)
    modes = {"ro_mount", "rw_mount", "download", "upload", "eval_mount", "eval_download", "direct"}
    assert {one["mode"] for one in [*job["inputs"].values(), *job["outputs"].values()]} <= modes


def test_the_sky_task_has_known_keys_and_runs_a_recipe_of_ours():
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert unknown_keys(task, SKY_KEYS) == []
    load_recipe(ROOT / task["envs"]["RECIPE"])
    check_overrides(shlex.split(task["run"]))
    assert {one["mode"] for one in task["file_mounts"].values()} <= {
        "COPY",
        "MOUNT",
        "MOUNT_CACHED",
    }
    for step in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[step], text=True, check=True)


def test_an_unknown_key_is_found():
    assert unknown_keys({"resources": {"gpus": 8}}, SKY_KEYS) == ["resources.gpus"]
    assert unknown_keys({"inputs": {"data": {"kind": 1}}}, AZURE_KEYS) == ["inputs.data.kind"]


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for Slurm and for us, two tasks a job, which write down what they are told."""
    scripts = {
        "srun": """
            for id in 0 1; do
                SLURM_PROCID=$id SLURM_LOCALID=$id SLURM_NTASKS=2 "${@:2}"
            done""",
        "scontrol": """
            if [[ $1 == show ]]
            then printf 'node-a\\nnode-b\\n'
            else echo "$@" >> requeued
            fi""",
        "foveal": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >> told',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(cluster, **given):
    place = f"{cluster}:{os.environ['PATH']}"
    job = {"PATH": place, "SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "node-[a-b]", **given}
    script = ["bash", str(DEPLOY / "slurm.sbatch")]
    return subprocess.run(script, env=job, cwd=cluster, capture_output=True, text=True, check=False)


def test_the_slurm_job_tells_each_task_its_place_and_queues_itself_until_the_end(cluster):
    run = cluster / "my runs"  # a space, to see what is quoted
    done = submit(cluster, RECIPE="r.yaml", RUN=str(run))
    assert done.returncode == 0, done.stderr
    assert (cluster / "told").read_text().splitlines() == [
        f"{rank} {rank} 2 node-a 20007 train r.yaml run={run}" for rank in (0, 1)
    ]
    assert (cluster / "requeued").read_text() == "requeue 20007\n"
    (run / "final").mkdir(parents=True)
    assert submit(cluster, RECIPE="r.yaml", RUN=str(run)).returncode == 0
    assert (cluster / "requeued").read_text() == "requeue 20007\n"


def test_a_slurm_job_without_a_recipe_says_so(cluster):
    done = submit(cluster, RUN="x")
    assert done.returncode != 0
    assert "give RECIPE=" in done.stderr


def lint(name, *words, text=None):
    """Run a linter that comes with the extra `dev`; returns what it finds."""
    beside_python = Path(sys.executable).with_name(name)
    program = str(beside_python) if beside_python.exists() else shutil.which(name)
    if program is None:
        pytest.skip(f"no {name} here; pip install 'foveal[dev]' brings it")
    done = subprocess.run(
        [program, *words], input=text, capture_output=True, text=True, check=False
    )
    assert bool(done.stdout) == bool(done.returncode), done.stderr
    return done.stdout


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert "DL3006" in lint("hadolint", "--no-color", "-", text="FROM debian\n")
    assert lint("hadolint", "--no-color", str(ROOT / "Dockerfile")) == ""


def test_shellcheck_finds_nothing_in_the_scripts():
    assert "SC2086" in lint("shellcheck", "--shell=bash", "-", text="echo $1\n")
    assert lint("shellcheck", str(DEPLOY / "slurm.sbatch")) == ""
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    for step in ("setup", "run"):
        assert lint("shellcheck", "--shell=bash", "-", text=task[step]) == ""


def test_both_images_run_without_root_pinned_and_with_a_health_check():
    text = (ROOT / "Dockerfile").read_text()
    stages = dict(re.findall(r"FROM (\S+) AS (\w+)\n", text))
    assert re.findall(r"FROM \S+ AS (\w+)", text) == ["wheel", "common", "cpu", "cuda"]
    assert all(":" in image and "latest" not in image for image in stages if "/" in image)
    for target in ("cpu", "cuda"):
        own = text.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
        assert own.rstrip().endswith("USER 10001")
    assert "HEALTHCHECK" in text
    assert 'ENTRYPOINT ["foveal"]' in text


def test_all_that_the_dockerfile_copies_is_there_and_let_through():
    text = (ROOT / "Dockerfile").read_text()
    let_through = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M)
    copied = [
        word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.M) for word in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source.removeprefix("./") in let_through, source


@pytest.fixture(scope="module")
def healthcheck():
    place = importlib.util.spec_from_file_location("healthcheck", DEPLOY / "healthcheck.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


def test_a_container_is_healthy_while_it_answers_or_does_not_serve(
    healthcheck, server, tmp_path, monkeypatch
):
    def health(*words):
        (tmp_path / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")
        monkeypatch.setattr(healthcheck, "COMMAND", tmp_path / "cmdline")
        return healthcheck.main()

    assert health("python", "foveal", "train", "recipe.yaml") == 0
    assert health("python", "foveal", "serve", "/model", "--port", str(server)) == 0
    assert health("python", "foveal", "serve", "/model", f"--port={server}") == 0
    assert health("python", "foveal", "serve", "/model", "--port", "1") == 1
    assert healthcheck.port_served(["foveal", "serve", "/model"]) == "8000"


ELSEWHERE = {"serve"}
"""Commands that these pages name, and that other tests look after."""


def test_every_command_of_the_page_is_one_of_ours_with_options_that_it_has():
    text = (ROOT / "docs" / "deliver.md").read_text().replace("\\\n", " ")
    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^    foveal (.+)$", text, re.M)
    assert len(lines) >= 7
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        if name in ELSEWHERE:
            continue
        options = {one for parameter in commands[name].params for one in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_lines_of_the_readme_run(full_run, tmp_path, monkeypatch, capsys):
    from tiny import make_image

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(full_run)
    make_image(tmp_path / "page.png", 3)
    monkeypatch.chdir(tmp_path)
    for page in (ROOT / "README.md", ROOT / "docs" / "deliver.md"):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        ours = [block for block in blocks if "foveal.load(" in block]
        assert len(ours) == 1, page
        exec(ours[0], {"foveal": foveal})
    assert "[" in capsys.readouterr().out
