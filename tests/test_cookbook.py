"""The published recipe's commands run, word for word, and leave what the recipe leaves."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from daily import daily
from hub_data import put_cauldron, put_clips, put_pages
from safetensors.torch import load_file, save_file
from tiny import SIZES

from foveal.config import load_recipe
from foveal.evaluate.metrics import anls_cookbook
from foveal.models.phi3_vision.tiny import write_tiny

COOKBOOK = Path(__file__).parents[1] / "cookbook"
SOURCES = {"PYTHONPATH": str(COOKBOOK.parent / "src"), "OMP_NUM_THREADS": "1"}

# As the page has them; <lr>, <epochs> and <output_dir> filled in.
NODES = "--nnodes=1 --master_addr=127.0.0.1 --master_port=0 --node_rank=0"
MEMES = f"torchrun --nproc_per_node=8 {NODES} finetune_hf_trainer_hateful_memes.py --output_dir D"
COMMANDS = {
    "docvqa": "torchrun --nproc_per_node=4 finetune_hf_trainer_docvqa.py",
    "nlvr2": "torchrun --nproc_per_node=8 finetune_hf_trainer_nlvr2.py",
    "ucf101": "torchrun --nproc_per_node=4 finetune_hf_trainer_ucf101.py --data_dir OUT",
    "memes full": f"{MEMES} --batch_size 64 --use_flash_attention --bf16",
    "memes lora": f"{MEMES} --batch_size 64 --use_lora",
    "memes qlora": f"{MEMES} --batch_size 64 --use_lora --use_qlora",
    "docvqa full": (
        "torchrun --nproc_per_node=4 finetune_hf_trainer_docvqa.py --full_train --bf16 "
        "--use_flash_attention --batch_size 64 --output_dir D --learning_rate 5e-6 "
        "--num_train_epochs 2"
    ),
}
EACH = pytest.mark.parametrize("name", COMMANDS)
DAILY = ["docvqa", "memes qlora"]
"""In full, and under adapters on four bits: what they write is written by all alike."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cookbook")
    write_model(folder / "model")
    put_pages(folder / "docvqa" / "nielsr/docvqa_1200_examples", 2, 2)
    put_cauldron(folder / "docvqa" / "HuggingFaceM4/the_cauldron/docvqa", 2, ("12.", "x"))
    put_cauldron(folder / "nlvr2", 10, ("Yes.", "No."), images=2)
    put_cauldron(folder / "hateful_memes", 10, ("Yes", "No"))
    put_clips(folder / "clips", 1)
    convert = [sys.executable, str(COOKBOOK / "convert_ucf101.py"), "--out_dir", "ucf101"]
    done = subprocess.run(
        [*convert, "--source", "clips"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | SOURCES,
    )
    assert "ucf101/ucf101_train.jsonl: 2 examples" in done.stdout
    return folder


def write_model(folder: Path) -> None:
    """A tiny model whose random weights do not happen to answer with the token of a picture."""
    write_tiny(folder, 0, SIZES)
    weights = load_file(folder / "model.safetensors")
    image_token_id = json.loads((folder / "config.json").read_text())["image_token_id"]
    weights["lm_head.weight"][image_token_id] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def scripts(monkeypatch):
    """The scripts as modules: `front` lies beside them. One process converts: data are small."""
    monkeypatch.syspath_prepend(str(COOKBOOK))
    monkeypatch.setattr("foveal.published.os.cpu_count", lambda: 1)


def shrink(name: str, place: Path, output: Path) -> tuple[str, list[str]]:
    """Split a command into its script and its flags, with small data and a tiny model."""
    words = shlex.split(COMMANDS[name])
    start = next(index for index, word in enumerate(words) if word.endswith(".py"))
    task = words[start].removeprefix("finetune_hf_trainer_").removesuffix(".py")
    flags = [*words[start + 1 :], "--model_name_or_path", str(place / "model")]
    flags += ["--data_dir", str(place / task), "--output_dir", str(output)]
    flags += ["--batch_size", "8", "--num_crops", "1", "--no-tqdm"]
    return words[start], flags


def check_output(name: str, output: Path) -> None:
    key = "anls" if name.startswith("docvqa") else "accuracy"
    for when in ("before", "after"):
        tree = json.loads((output / f"eval_{when}.json").read_text())
        assert list(tree) == ["answers_unique", "generated_texts_unique", key]
        assert len(tree["answers_unique"]) == len(tree["generated_texts_unique"]) > 0
        assert 0 <= tree[key] <= 1
    assert (output / "metrics.jsonl").read_text()
    assert (output / "final" / "config.json").exists()
    assert (output / "report.html").exists()


@pytest.mark.parametrize(
    "name", daily(*DAILY, beside=[name for name in COMMANDS if name not in DAILY])
)
def test_each_command_runs_here(name, place, tmp_path, monkeypatch, scripts, capsys):
    script, flags = shrink(name, place, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [script, *flags])
    runpy.run_path(str(COOKBOOK / script), run_name="__main__")
    check_output(name, tmp_path / "out")
    said = capsys.readouterr()
    assert "before finetuning: " in said.out
    assert said.out.count("before finetuning: ") == 1
    assert "after finetuning: " in said.out
    assert ("no CUDA here" in said.err) == ("--use_flash_attention" in flags)


def torchrun(name: str, place: Path, output: Path) -> None:
    script, flags = shrink(name, place, output)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "--standalone", str(COOKBOOK / script), *flags],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | SOURCES,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    check_output(name, output)


@pytest.mark.slow
@EACH
def test_each_command_runs_under_torchrun(name, place, tmp_path):
    torchrun(name, place, tmp_path / "out")


def flags_of(script: str, *arguments: str):
    module = runpy.run_path(str(COOKBOOK / f"finetune_hf_trainer_{script}.py"))
    from front import read_flags

    return module["FRONT"], read_flags(module["FRONT"], list(arguments))


def recipe_from(script: str, *arguments: str):
    front, flags = flags_of(script, *arguments)
    from front import recipe_of

    return recipe_of(front, flags, Path("a: b.jsonl"), Path("b.jsonl"))


@pytest.mark.parametrize("script", ["docvqa", "nlvr2", "hateful_memes", "ucf101"])
def test_the_flags_have_the_published_defaults(script, scripts):
    needed = ("--data_dir", "d") if script == "ucf101" else ()
    _, flags = flags_of(script, *needed)
    made = vars(flags)
    assert made.pop("full_train") is False
    made.pop("data_dir")
    assert made == {
        "model_name_or_path": "microsoft/Phi-3.5-vision-instruct",
        "use_flash_attention": False,
        "bf16": False,
        "use_lora": False,
        "use_qlora": False,
        "output_dir": Path("output"),
        "batch_size": 16,
        "batch_size_per_gpu": 1,
        "num_crops": 4 if script == "ucf101" else 16,
        "num_train_epochs": 1,
        "learning_rate": 4e-5,
        "wd": 0.01,
        "tqdm": True,
        "lora_rank": 64,
        "lora_alpha_ratio": 2,
        "lora_dropout": 0.0,
        "freeze_vision_model": False,
    }


def test_the_published_defaults_become_the_recipe(scripts):
    made = recipe_from("docvqa")
    assert (made.strategy, made.precision, made.engine) == ("full", "fp16", "auto")
    assert made.data.train == Path("a: b.jsonl")
    train = made.train
    assert (train.examples_per_step, train.epochs, train.learning_rate) == (16, 1, 4e-5)
    assert (train.beta1, train.beta2, train.epsilon) == (0.9, 0.95, 1e-7)
    assert (train.warmup_steps, train.schedule, train.gradient_clip) == (50, "linear", 1.0)
    assert (made.lora.rank, made.lora.alpha, made.lora.initialization) == (64, 128, "gaussian")
    assert not made.quantization.double
    assert made.evaluate.max_new_tokens == 64
    assert made.published is None


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        ([], "full"),
        (["--freeze_vision_model"], "frozen_vision"),
        (["--use_lora"], "lora"),
        (["--use_lora", "--use_qlora"], "qlora"),
        (["--use_qlora"], "qlora"),
    ],
)
def test_flags_choose_what_learns(flags, strategy, scripts):
    assert recipe_from("nlvr2", *flags).strategy == strategy


@pytest.mark.parametrize(("flag", "quantize"), [("--use_lora", False), ("--use_qlora", True)])
def test_adapters_stay_out_of_a_frozen_tower(flag, quantize, scripts):
    rules = recipe_from("nlvr2", flag, "--freeze_vision_model").strategy
    assert [(rule.match, rule.learn, rule.adapter, rule.quantize) for rule in rules] == [
        ("vision.*", False, False, False),
        ("projector.*", False, False, False),
        ("language.*", False, True, quantize),
    ]


def test_other_flags_reach_the_recipe(scripts):
    made = recipe_from(
        *["hateful_memes", "--bf16", "--batch_size", "64", "--batch_size_per_gpu", "2"],
        *["--learning_rate", "2e-4", "--wd", "0.1", "--num_train_epochs", "3", "--num_crops", "4"],
        *["--lora_rank", "32", "--lora_alpha_ratio", "0.5", "--lora_dropout", "0.1"],
        *["--model_name_or_path", "m: [x", "--output_dir", "D"],
    )
    assert (made.precision, made.model, made.run) == ("bf16", "m: [x", Path("D"))
    train = made.train
    assert (train.examples_per_step, train.tokens_per_pass) == (64, 16384)
    assert (train.learning_rate, train.weight_decay, train.epochs) == (2e-4, 0.1, 3)
    assert (made.lora.rank, made.lora.alpha, made.lora.dropout) == (32, 16, 0.1)
    assert made.data.num_crops == 4


def test_flash_attention_means_bf16_where_the_recipe_says_so(scripts):
    assert recipe_from("nlvr2", "--use_flash_attention").precision == "bf16"
    assert recipe_from("docvqa", "--use_flash_attention").precision == "fp16"


def test_an_alpha_ratio_that_looks_like_an_alpha_is_remarked_on(scripts):
    from front import remarks

    _, flags = flags_of("docvqa", "--use_lora", "--lora_alpha_ratio", "16")
    (said,) = remarks(flags)
    assert "alpha = 16 x 64 = 1024; for alpha 16 give --lora_alpha_ratio 0.25" in said
    for usual in ("0.5", "2"):
        assert not remarks(flags_of("docvqa", "--use_lora", "--lora_alpha_ratio", usual)[1])


def test_what_is_out_of_range_is_one_line_and_exit_2(monkeypatch, scripts, capsys):
    for flags in (["--num_crops", "17"], ["--learning_rate", "-1"], ["--batch_size", "0"]):
        monkeypatch.setattr(sys, "argv", ["finetune_hf_trainer_docvqa.py", *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(COOKBOOK / "finetune_hf_trainer_docvqa.py"), run_name="__main__")
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_two_files_hold_answers_as_the_recipe_writes_them(tmp_path, scripts):
    from front import Front, write_answers

    folder = tmp_path / "evaluation" / "before"
    folder.mkdir(parents=True)
    lines = [
        {"id": "val-0", "prediction": " Nr 5. ", "answers": ["Nr 5", "Nr 6"]},
        {"id": "val-1", "prediction": "Nr 77", "answers": ["Nr 78"]},
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_answers(Front("docvqa", "anls"), tmp_path, "before") == pytest.approx(
        (1 + anls_cookbook("Nr 77", ["Nr 78"])) / 2
    )
    tree = json.loads((tmp_path / "eval_before.json").read_text())
    assert tree["answers_unique"] == [["Nr 5", "Nr 6"], ["Nr 78"]]
    assert tree["generated_texts_unique"] == ["Nr 5", "Nr 77"]
    assert tree["anls"] == pytest.approx((1 + 0.8) / 2)  # one of five signs is wrong
    assert write_answers(Front("ucf101", answers_by_id=True), tmp_path, "before") == 0.5
    tree = json.loads((tmp_path / "eval_before.json").read_text())
    assert tree["answers_unique"][0] == {"id": "val-0", "answer": "nr 5"}
    assert tree["generated_texts_unique"][1] == {"id": "val-1", "generated_text": "nr 77"}
    assert tree["accuracy"] == 0.5


def test_the_scripts_are_thin():
    for script in COOKBOOK.glob("*_*.py"):
        assert len(script.read_text().splitlines()) <= 45, script


def test_a_front_run_says_its_recipe(place, tmp_path, monkeypatch, scripts):
    script, flags = shrink("memes lora", place, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [script, *flags, "--lora_rank", "4"])
    runpy.run_path(str(COOKBOOK / script), run_name="__main__")
    assert load_recipe(tmp_path / "out" / "recipe.yaml").lora.rank == 4
