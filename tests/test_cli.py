"""What the command line promises: fast help, one-line errors, exit statuses."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny import make_image, pages, turn, write_data
from typer.testing import CliRunner

from foveal.cli import app, main
from foveal.cli.front import STOPS
from foveal.config import load_recipe
from foveal.errors import ConfigError
from foveal.storage import AtWorkError, written_whole

ROOT = Path(__file__).parents[1]


def test_help_imports_neither_torch_nor_transformers():
    probe = (
        "import sys, contextlib, io\n"
        "from foveal.cli import app\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    app(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'PIL'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_of_convert_lists_every_kind():
    from foveal.data.convert import KINDS

    result = CliRunner().invoke(app, ["convert", "--help"])
    assert result.exit_code == 0
    listed = " ".join(result.output.partition("Kinds:")[2].split()).rstrip(".")
    assert listed.split(", ") == list(KINDS)


@pytest.mark.parametrize("command", [[], ["train"]])
def test_help_has_its_short_name_too(command):
    shown = CliRunner().invoke(app, [*command, "-h"])
    assert shown.exit_code == 0
    assert shown.output == CliRunner().invoke(app, [*command, "--help"]).output


def test_the_version_is_told_without_torch():
    probe = (
        "import sys, contextlib, io\n"
        "from foveal.cli import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"foveal {version('foveal')}", "False"]


def test_check_imports_no_torch(tmp_path):
    pages(tmp_path)
    probe = (
        "import sys\nfrom typer.testing import CliRunner\nfrom foveal.cli import app\n"
        f"print(CliRunner().invoke(app, ['check', {str(tmp_path / 'data.jsonl')!r}]).exit_code)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


def test_check_exits_1_and_names_file_and_line(tmp_path):
    make_image(tmp_path / "images" / "a.png", 0)
    write_data(
        tmp_path / "data.jsonl", [[turn("a?", "b", ["a.png"])], [turn("a?", "", ["no.png"])]]
    )
    result = CliRunner().invoke(app, ["check", str(tmp_path / "data.jsonl"), "--workers", "1"])
    assert result.exit_code == 1
    assert f"{tmp_path / 'data.jsonl'}:2: " in result.output
    assert "problems: " in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "nothing.jsonl"], "foveal: nothing.jsonl"),
        (["train", "nothing.yaml"], "nothing.yaml: No such file or directory; give a YAML recipe"),
        (["train", "r.yaml", "train.learning_rat=1"], "did you mean train.learning_rate?"),
        (["train", "r.yaml", "train.epochs=-1"], "train.epochs=-1: input should be greater than 0"),
        (["train", "r.yaml", "epochs"], "write an override as key=value"),
        (["train", "r.yaml"], "data.train is missing"),
        (["train", "r.yaml", "data.train=no.jsonl", "model=phi3-vision-tiny"], "no.jsonl: No such"),
        (["train", "r.yaml", "data.train=t.jsonl"], "model nowhere: no such folder; give a folder"),
        (["report", "absent"], "absent: no such folder"),
        (["convert", "nonsense", "a", "b"], "nonsense: unknown kind of data set"),
        (["evaluate", "absent", "nothing.jsonl"], "model absent: no such folder"),
        (["evaluate", "/absent/run", "nothing.jsonl"], "model /absent/run: no such folder; give a"),
        (["evaluate", "~/absent", "nothing.jsonl"], "absent: no such folder; give a"),
        (["train"], "foveal train: Missing argument 'recipe'; `foveal train --help` shows how"),
        (["trian", "r.yaml"], "foveal: No such command 'trian'. Did you mean 'train'?"),
        (["train", "r.yaml", "--frsh"], "foveal train: No such option: --frsh"),
        (["serve", "m", "--port", "99999"], "foveal serve: Invalid value for '--port'"),
        (["evaluate", "m", "d", "--num-crops", "0"], "evaluate: Invalid value for '--num-crops'"),
        (["evaluate", "m", "d", "--frames-per-second", "-1"], "second -1: give more than 0"),
        (["ask", "m", "a.png", "?", "--max-new-tokens", "0"], "Invalid value for '--max-new-tok"),
        (["train", "r.yaml", "data.train=t.jsonl", "run=r.yaml"], "run=r.yaml: File exists; give"),
        (["train", "r.yaml", "data.train=t.jsonl", "evaluate.metrics=[f2]"], "unknown metric f2"),
        (["train", "r.yaml", "strategy=[{match:vision}]"], "unknown setting strategy.0.match:vis"),
        (["train", "t.jsonl"], "t.jsonl:2: not YAML: expected '<document start>', but found '{'"),
        (["check", "--recipe", "r.yaml", "t.jsonl"], "model nowhere: no such folder; give a"),
        (["check", "t.jsonl", "--show", "-1"], "foveal check: Invalid value for '--show'"),
        (["check", "t.jsonl", "--workers", "-1"], "foveal check: Invalid value for '--workers'"),
        (["check", "t.jsonl", "--other", "runs"], "runs: a folder; give a JSONL file of examples"),
        (["convert", "nlvr", "a", "b", "--workers", "-1"], "Invalid value for '--workers'"),
        (["convert", "nlvr", "a", "b", "--frames", "0"], "Invalid value for '--frames'"),
        (["train", "r.yaml", "--data.train=t.jsonl"], "--data.train; write data.train=..., with"),
        (["train", "r.yaml", "--run", "x"], "No such option: --run; write run=..., without dashes"),
        (["plan", "r.yaml", "--lr", "1e-4"], "write train.learning_rate=..., without dashes"),
        (["train", "r.yaml", "-x"], "No such option: -x; `foveal train --help` shows how"),
        (["check", "t.jsonl", "--run", "x"], "--run; `foveal check --help` shows how"),
        (["train", "runs/mine"], "runs/mine: Is a directory; give runs/mine/recipe.yaml"),
        (["train", "runs"], "runs: Is a directory; give a YAML recipe"),
        (["evaluate", "runs/mien", "t.jsonl"], "model runs/mien: no such folder; give a folder"),
        (["serve", "t.jsonl"], "t.jsonl: no model; give the folder of a run or a model"),
        (["demo", "--out", "r.yaml"], "foveal: r.yaml/data: Not a directory; give another place"),
    ],
)
def test_a_slip_of_the_hand_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: nowhere\nrun: out\nprecision: float32\n")
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/recipe.yaml").write_text("model: nowhere\nrun: runs/mine\n")
    pages(tmp_path, 1, 2, "t")
    monkeypatch.setattr(sys, "argv", ["foveal", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert lines[-1].startswith("foveal")
    assert len(lines) == 1 or arguments[0] in ("demo", "convert")  # which tell what they do


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_data_is_looked_at_by_a_published_recipe_without_a_download(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / "docvqa" / "lora.yaml"
    shown = CliRunner().invoke(app, [command, str(pages(tmp_path, 1, 2)), "--recipe", str(recipe)])
    assert shown.exit_code == 0, shown.exception
    assert {"check": " tokens\n", "inspect": "inspection: "}[command] in shown.output


def test_a_process_that_is_refused_ends_with_2_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "foveal.cli", "train", "nothing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "foveal: nothing.yaml: No such file or directory; give a YAML recipe\n"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads(recipe):
    assert load_recipe(recipe).model


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^    ((?:foveal|make) .+?)(?:\s+#.*)?$", text, re.MULTILINE)


def test_every_command_of_the_readme_is_one_of_ours():
    commands = readme_commands()
    assert {line.split()[0] for line in commands} == {"foveal", "make"}
    makefile = (ROOT / "Makefile").read_text()
    for line in commands:
        words = line.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line
        else:
            helped = CliRunner().invoke(app, [words[1], "--help"])
            assert helped.exit_code == 0, line


@pytest.mark.parametrize("command", [["report", "run", "--out", "page.html"]])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_takes_no_more_is_one_line_with_the_files_name(
    command, error, monkeypatch, capsys
):
    def refuse(*_, **__):
        raise OSError(error, os.strerror(error), "page.html")

    monkeypatch.setattr("foveal.report.report.write_report", refuse)
    monkeypatch.setattr(sys, "argv", ["foveal", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith(f"foveal: page.html: {os.strerror(error)}; ")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_request_to_end_leaves_nothing_half_written_and_gives_the_shells_status(
    tmp_path, monkeypatch, capsys, number
):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    former = {one: signal.getsignal(one) for one in (*STOPS, signal.SIGINT)}

    def write(run, out):
        with written_whole(tmp_path / "page.html") as beside:
            beside.write_text("half")
            signal.raise_signal(number)

    monkeypatch.setattr("foveal.report.report.write_report", write)
    monkeypatch.setattr(sys, "argv", ["foveal", "report", "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert said == ("" if number == signal.SIGINT else f"foveal: stopped by {number.name}\n")
    assert {one: signal.getsignal(one) for one in former} == former


def test_a_signal_that_comes_twice_at_once_does_not_break_off_the_clearing_away(
    tmp_path, monkeypatch
):
    def write(run, out):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            (tmp_path / "cleared").touch()

    monkeypatch.setattr("foveal.report.report.write_report", write)
    monkeypatch.setattr(sys, "argv", ["foveal", "report", "run"])
    with pytest.raises(SystemExit):
        main()
    assert (tmp_path / "cleared").exists()


def test_a_signal_that_falls_into_code_that_lets_nothing_through_comes_again(monkeypatch):
    class Late:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def write(run, out):
        Late()
        time.sleep(60)

    monkeypatch.setattr("foveal.report.report.write_report", write)
    monkeypatch.setattr(sys, "argv", ["foveal", "report", "run"])
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, time.monotonic() - began < 30) == (143, True)


@pytest.mark.parametrize("kind", [RuntimeError, ConfigError])
def test_a_signal_that_a_library_made_an_error_of_is_a_signal(monkeypatch, capsys, kind):
    def write(run, out):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as interruption:
            raise kind("Error calling __set_name__") from interruption

    monkeypatch.setattr("foveal.report.report.write_report", write)
    monkeypatch.setattr(sys, "argv", ["foveal", "report", "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert capsys.readouterr().err == "foveal: stopped by SIGTERM\n"


INTERRUPTED_IN_EXEC = """
import signal, sys
from foveal.cli import main
from foveal.report import report
def write(run, out):
    exec("signal.raise_signal(signal.SIGINT)")
report.write_report = write
sys.argv = ["foveal", "report", "run"]
main()
"""


def test_an_interruption_of_code_made_from_a_text_ends_with_130(tmp_path):
    """As libraries make classes while they are imported; launchers start a module, as here."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_IN_EXEC)
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (130, "")


WORKERS_IN_THE_MIDST = """
import time
from foveal.cli import main
from foveal.data.convert import write
from foveal.storage import written_whole

def write_half(images, image):
    with written_whole(images / image.target) as part:
        part.touch()
        time.sleep(600)

write._write_image = write_half  # in a worker too, which runs all of this but the last line
if __name__ == "__main__":
    main()
"""


def test_a_command_with_workers_that_a_scheduler_ends_says_one_line(tmp_path):
    for number in range(20):
        make_image(tmp_path / "source" / "cat" / f"{number}.png", number)
    (tmp_path / "convert.py").write_text(WORKERS_IN_THE_MIDST)
    words = ["convert", "imagefolder", "source", "out", "--workers", "2"]
    code = subprocess.Popen(
        [sys.executable, "convert.py", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(tmp_path.rglob("*.png.*.part"))) < 2:
        assert code.poll() is None
        time.sleep(0.01)
    os.killpg(code.pid, signal.SIGTERM)
    said = code.communicate(timeout=60)[1].strip().splitlines()
    assert (code.returncode, said) == (143, ["foveal: stopped by SIGTERM"])
    assert not [*tmp_path.rglob("*.part"), *tmp_path.rglob(".lock")]


def test_a_place_where_another_is_at_work_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AtWorkError(errno.EAGAIN, "another process is at work in it", "out")

    monkeypatch.setattr("foveal.report.report.write_report", refuse)
    monkeypatch.setattr(sys, "argv", ["foveal", "report", "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert (
        said == "foveal: out: another process is at work in it; let it end, or give another place\n"
    )


def test_a_path_at_home_is_found_as_a_word_and_behind_an_option(tmp_path, monkeypatch, capsys):
    """Shells put the home in before a word alone; services and scripts never do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    pages(tmp_path)
    (tmp_path / "images").rename(tmp_path / "scans")
    told = []
    for word in ("--images=~/scans", "--images=~/nowhere"):
        monkeypatch.setattr(sys, "argv", ["foveal", "check", "~/data.jsonl", word])
        with pytest.raises(SystemExit) as ended:
            main()
        told.append((ended.value.code, capsys.readouterr().out))
    assert [code for code, _ in told] == [0, 1]
    assert f"image data-0.png is not in {tmp_path}/nowhere; correct it" in told[1][1]
