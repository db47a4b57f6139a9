"""Recipes inherit, hold what the published tables say, explain every setting, and run."""

import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny_models
import yaml
from daily import daily
from rich.console import Console
from tiny import SIZES, pages

from foveal.config import Recipe, load_recipe, save_recipe, setting_names
from foveal.errors import ConfigError
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.published import RECIPES, list_rows, list_starts, published_scores, row_name
from foveal.run import TrainingRun
from foveal.train.checkpoint import resume_key

ROOT = Path(__file__).parents[1]
FAMILIES = (
    "qwen3_vl",
    "qwen2_5_vl",
    "qwen3_5",
    "internvl",
    "llava",
    "llava_next",
    "gemma3",
    "gemma4",
    "smolvlm",
)
ALL = sorted(path for path in (ROOT / "recipes").rglob("*.yaml"))
STARTS = {path for path in ALL if path.parent.name in FAMILIES or path.stem in FAMILIES}
"""Of families beside Phi; the others are of the published recipe."""

ROWS = sorted({*ALL} - STARTS)
DAILY = [ROOT / "recipes" / name for name in ("custom.yaml", "docvqa/qlora.yaml")]
"""With every setting, and with the most that a row changes; tests/train runs each strategy."""

# The three accuracy tables of the published page (docvqa and memes: Phi-3-vision): strategy,
# format, LoRA rank and alpha, rate, epochs, score. All with 64 examples a step.
NLVR2 = [
    ("full", "bf16", None, 1e-5, 3, 89.40),
    ("frozen_vision", "bf16", None, 2e-5, 2, 89.20),
]
DOCVQA = [
    ("full", "bf16", None, 5e-6, 2, 83.65),
    ("full", "fp16", None, 5e-6, 2, 82.60),
    ("frozen_vision", "bf16", None, 1e-4, 2, 79.19),
    ("frozen_vision", "fp16", None, 1e-4, 2, 78.74),
    ("lora", "bf16", (32, 16), 2e-4, 2, 82.46),
    ("lora", "fp16", (32, 16), 2e-4, 2, 82.34),
    ("qlora", "bf16", (32, 16), 2e-4, 2, 81.85),
    ("qlora", "fp16", (32, 16), 2e-4, 2, 81.85),
]
HATEFUL_MEMES = [
    ("full", "bf16", None, 5e-5, 2, 86.4),
    ("full", "fp16", None, 5e-5, 2, 85.4),
    ("frozen_vision", "bf16", None, 1e-4, 3, 79.4),
    ("frozen_vision", "fp16", None, 1e-4, 3, 78.6),
    ("lora", "bf16", (128, 256), 2e-4, 2, 86.6),
    ("lora", "fp16", (128, 256), 2e-4, 2, 85.2),
    ("qlora", "bf16", (128, 256), 2e-4, 2, 84.0),
    ("qlora", "fp16", (128, 256), 2e-4, 2, 83.8),
]
TABLES = {"nlvr2": NLVR2, "docvqa": DOCVQA, "hateful_memes": HATEFUL_MEMES}


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "top.yaml"


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_takes_from_its_base_what_it_does_not_say_itself(tmp_path):
    (tmp_path / "below").mkdir()
    write(tmp_path, root="model: m\nrun: r\ntrain: {epochs: 3, seed: 5}\nlora: {rank: 8}\n")
    write(tmp_path, middle="base: root.yaml\ntrain: {epochs: 2}\nprecision: fp16\n")
    top = write(tmp_path / "below", top="base: ../middle.yaml\nrun: mine\ntrain:\nlora: {alpha: 4}")
    made = load_recipe(top, ("train.max_steps=7",))
    assert (made.model, made.run, made.precision) == ("m", Path("mine"), "fp16")
    assert (made.train.epochs, made.train.seed, made.train.max_steps) == (2, 5, 7)
    assert (made.lora.rank, made.lora.alpha) == (8, 4)


def test_rules_of_a_recipe_replace_those_of_its_base(tmp_path):
    top = write(
        tmp_path,
        base="model: m\nrun: r\nstrategy: [{match: 'vision.*', learn: false}, {match: '*'}]\n",
        top="base: base.yaml\nstrategy: [{match: 'language.*'}]\n",
    )
    assert [rule.match for rule in load_recipe(top).strategy] == ["language.*"]


def test_a_recipe_remembers_what_it_says_otherwise_than_the_nearest_below(tmp_path):
    write(
        tmp_path,
        low="model: m\nrun: r\ntrain: {epochs: 3}\nprecision: fp16\n",
        middle="base: low.yaml\nstrategy: lora\nlora: {rank: 8}\n",
        top="base: middle.yaml\nrun: mine\nlora: {rank: 16, alpha: 4}\ntrain: {epochs: 3}\n",
    )
    base = load_recipe(tmp_path / "top.yaml", ("precision=bf16", "train.seed=0")).base
    assert base.file == tmp_path / "middle.yaml"
    assert base.otherwise == {"run": "r", "lora.rank": 8, "lora.alpha": 128.0, "precision": "fp16"}


def test_settings_given_to_a_recipe_are_remembered_beside_its_own(tmp_path):
    top = write(tmp_path, top="run: r\ntrain: {epochs: 3}\n")
    made = load_recipe(top, ("model=m", "train.epochs=1", "strategy=[{match: '*'}]"))
    assert made.base.file == top
    assert made.base.otherwise == {"train.epochs": 3.0, "strategy": "full"}
    assert load_recipe(write(tmp_path, top="model: m\nrun: r\n")).base is None


def test_a_stored_recipe_keeps_what_it_was_built_on_and_is_no_longer_built_on_it(tmp_path):
    top = write(tmp_path, top="base: low.yaml\nrun: mine\n", low="model: m\nrun: r\n")
    made = load_recipe(top)
    save_recipe(made, tmp_path / "stored.yaml")
    (tmp_path / "low.yaml").unlink()
    assert load_recipe(tmp_path / "stored.yaml") == made
    above = write(tmp_path, top="base: stored.yaml\nprecision: fp16\n")
    assert load_recipe(above).base.file == tmp_path / "stored.yaml"
    assert load_recipe(above).base.otherwise == {"precision": "bf16"}


def test_a_base_that_is_wrong_by_itself_is_named_and_one_in_an_override_refused(tmp_path):
    top = write(tmp_path, top="base: low.yaml\n", low="model: m\nrun: r\ntrain: {seed: -1}\n")
    assert refusal(top, "train.seed=1").startswith(f"{tmp_path / 'low.yaml'}: train.seed=-1")
    assert "a base is named in the recipe's file" in refusal(top, "base=other.yaml")


def test_what_a_recipe_was_built_on_does_not_decide_a_runs_numbers(tmp_path):
    top = write(tmp_path, top="model: m\nrun: r\n")
    plain, given = (load_recipe(top, overrides) for overrides in ((), ("train.seed=0",)))
    assert given.base
    assert resume_key(plain) == resume_key(given)


def test_recipes_that_are_built_on_each_other_are_refused(tmp_path):
    top = write(tmp_path, top="base: other.yaml\n", other="base: top.yaml\nmodel: m\n")
    assert "other.yaml: base: " in refusal(top)
    assert "built on this very recipe" in refusal(top)
    assert "very recipe" in refusal(write(tmp_path, top="base: top.yaml\n"))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("none.yaml", "top.yaml: base: {0}/none.yaml: No such file"),
        ("[a, b]", "top.yaml: base=['a', 'b']: give the path of another recipe"),
        ("5", "top.yaml: base=5: give the path"),
        ("''", "top.yaml: base=: give the path"),
        (".", "top.yaml: base: {0}: Is a directory"),
        ("words.yaml", "words.yaml: a recipe is a mapping"),
    ],
)
def test_a_base_that_cannot_be_read_is_named(tmp_path, base, said):
    top = write(tmp_path, top=f"base: {base}\nmodel: m\nrun: r\n", words="just words")
    assert said.format(tmp_path) in refusal(top)


def test_an_error_names_the_file_of_the_chain_that_holds_it(tmp_path):
    top = write(
        tmp_path,
        low="model: m\nrun: r\ntrain: {epohcs: 2, seed: -1}\n",
        top="base: low.yaml\nlora: {rank: 0}\n",
    )
    low = tmp_path / "low.yaml"
    assert refusal(write(tmp_path, top="base: low.yaml\n")).startswith(f"{low}: ")
    write(tmp_path, low="model: m\nrun: r\ntrain: {seed: -1}\n")
    assert refusal(top).startswith(f"{low}: train.seed=-1")
    assert refusal(top, "train.seed=1", "lora.rank=0").startswith(f"{top}: lora.rank=0")
    assert refusal(top, "train.seed=-2").startswith(f"{top}: train.seed=-2")


@pytest.mark.parametrize("score", ["1.2", "-0.1", "[1]"])
def test_a_published_score_is_a_share_of_one(tmp_path, score):
    top = write(tmp_path, top=f"model: m\nrun: r\npublished: {{anls: {score}}}\n")
    assert f"{top}: published.anls" in refusal(top)


def test_what_others_published_does_not_decide_a_runs_numbers(tmp_path):
    top = write(tmp_path, top="model: m\nrun: r\npublished: {anls: 0.5, source: here}\n")
    assert not any("published" in name for name in resume_key(load_recipe(top)))


@pytest.mark.parametrize("task", TABLES)
def test_each_row_of_the_published_tables_is_a_recipe(task):
    found = {}
    for path in list_rows():
        if row_name(path).startswith(f"{task}/"):
            made = load_recipe(path)
            lora = (made.lora.rank, made.lora.alpha) if "lora" in made.strategy else None
            (score,) = published_scores(made).values()
            values = (lora, made.train.learning_rate, made.train.epochs, round(100 * score, 2))
            found[made.strategy, made.precision] = values
            assert made.train.examples_per_step == 64
            assert made.published["source"]
            assert set(published_scores(made)) <= set(made.evaluate.metrics)
    assert found == {tuple(row[:2]): tuple(row[2:]) for row in TABLES[task]}


@pytest.mark.parametrize("path", sorted(STARTS), ids=lambda path: "/".join(path.parts[-2:]))
def test_a_recipe_of_another_family_loads_and_says_where_its_rates_come_from(path):
    made = load_recipe(path)
    assert "/" in made.model
    text = path.read_text()
    assert text.startswith("# ")
    if path.parent.name in FAMILIES:
        assert yaml.safe_load(text)["base"] == f"../{path.parent.name}.yaml"
        assert "rate: " in text.replace("\n# ", " ")
        assert made.train.learning_rate <= 2e-4


def test_every_family_that_is_first_class_has_its_three_recipes():
    files = {(path.parent.name, path.stem) for path in STARTS}
    for family in FAMILIES:
        assert {(family, kind) for kind in ("full", "lora", "qlora")} < files
    assert [row_name(path) for path in list_starts()] == sorted(
        f"{family}/{kind}" for family, kind in files if family in FAMILIES
    )


@pytest.mark.parametrize("kind", daily("lora", beside=["full", "qlora"]))
@pytest.mark.parametrize("family", daily("qwen3_vl", beside=FAMILIES[1:]))
@pytest.mark.filterwarnings("ignore")
def test_a_recipe_of_another_family_runs_on_a_tiny_model_of_it(family, kind, tmp_path):
    tiny_models.write_tiny(family, tmp_path / "model")
    pages(tmp_path, 2, 2, "train")
    settings = ("data.image_settings={}", "data.workers=0", "precision=float32", "lora.rank=4")
    made = load_recipe(
        ROOT / "recipes" / family / f"{kind}.yaml",
        (
            f"model={tmp_path / 'model'}",
            f"run={tmp_path / 'run'}",
            f"data.train={tmp_path / 'train.jsonl'}",
            *settings,
            "train.max_steps=1",
            "train.examples_per_step=4",
        ),
    )
    outcome = TrainingRun(made, Console(quiet=True)).go()
    (line,) = (outcome.run / "metrics.jsonl").read_text().splitlines()
    assert math.isfinite(json.loads(line)["loss"])


@pytest.mark.parametrize("path", sorted({*ALL} - STARTS), ids=lambda path: path.stem)
def test_every_recipe_loads_and_has_the_published_optimizer(path):
    made = load_recipe(path)
    if path.stem == "demo":
        return
    train = made.train
    assert (train.beta1, train.beta2, train.epsilon) == (0.9, 0.95, 1e-7)
    assert (train.weight_decay, train.gradient_clip, train.warmup_steps) == (0.01, 1.0, 50)
    assert train.schedule == "linear"
    if path.stem != "custom":
        assert made.lora.initialization == "gaussian"
        assert not made.quantization.double


def test_a_row_says_in_a_few_lines_what_differs():
    for path in list_rows():
        tree = yaml.safe_load(path.read_text())
        assert "base" in tree
        assert len(path.read_text().splitlines()) <= 10, path


def test_the_explained_recipe_is_what_the_settings_say_now():
    written = (ROOT / "recipes" / "custom.yaml").read_text()
    # In a process of its own: of two unions of the same choices Python gives the first one made.
    command = [sys.executable, "-m", "foveal.cli", "recipes", "--explain"]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert written == said, "foveal recipes --explain > recipes/custom.yaml"


def test_the_explained_recipe_holds_every_setting_at_its_default():
    path = ROOT / "recipes" / "custom.yaml"
    made = load_recipe(path)
    tree = yaml.safe_load(path.read_text())
    for name in setting_names(Recipe):
        place = tree
        for part in name.split("."):
            place = place[part]
    plain = Recipe(model=made.model, run=made.run)
    assert made.model_copy(update={"data": plain.data}) == plain
    assert made.data.model_copy(update={"train": None, "validation": None}) == plain.data


def test_an_installed_package_brings_the_recipes(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if name.startswith("foveal/recipes/")}
    expected = {f"foveal/recipes/{path.relative_to(ROOT / 'recipes').as_posix()}" for path in ALL}
    assert names == expected
    assert RECIPES.resolve() == (ROOT / "recipes").resolve()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_tiny(folder / "model", 0, SIZES)
    pages(folder, 2, 2, "train")
    return folder


@pytest.mark.parametrize(
    "path",
    daily(*DAILY, beside=sorted({*ROWS} - {*DAILY})),
    ids=lambda path: "/".join(path.parts[-2:]),
)
def test_every_recipe_runs_on_a_tiny_model(path, place, tmp_path):
    made = load_recipe(
        path,
        (
            f"model={place / 'model'}",
            f"run={tmp_path / 'run'}",
            f"data.train={place / 'train.jsonl'}",
            "data.validation=null",
            "data.workers=0",
            "data.num_crops=4",
            "train.max_steps=2",
            "train.examples_per_step=2",
        ),
    )
    outcome = TrainingRun(made, Console(quiet=True)).go()
    lines = (outcome.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)
    assert (outcome.run / "final" / "config.json").exists()
