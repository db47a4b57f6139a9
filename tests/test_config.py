"""A recipe is read whole, or refused in one line that says what and where."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from foveal.config import (
    DataFile,
    DataSettings,
    Recipe,
    Rule,
    as_typed,
    load_recipe,
    save_recipe,
    setting_names,
)
from foveal.config.recipe_file import ELSEWHERE
from foveal.errors import ConfigError

RECIPE = """
model: phi3-vision-tiny
run: runs/one
data:
  train: train.jsonl
train:
  epochs: 2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path, *overrides):
    """Load a recipe that cannot be loaded; the message must be one line that names the file."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_is_read_and_everything_else_has_its_default(recipe):
    made = load_recipe(recipe)
    assert made.model == "phi3-vision-tiny"
    assert made.run == Path("runs/one")
    assert made.data.train == Path("train.jsonl")
    assert made.train.epochs == 2
    assert made.train.learning_rate == 4e-5
    assert made == Recipe(
        model="phi3-vision-tiny", run="runs/one", data={"train": "train.jsonl"}, train={"epochs": 2}
    )


def test_a_recipe_once_read_does_not_change(recipe):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(recipe).model = "other"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=0.5", lambda made: made.train.epochs == 0.5),
        ("train.learning_rate=1e-5", lambda made: made.train.learning_rate == 1e-5),
        ("train.learning_rate=2.5E-6", lambda made: made.train.learning_rate == 2.5e-6),
        ("lora.alpha=16", lambda made: made.lora.alpha == 16.0),
        ("data.train=a b/c=d.jsonl", lambda made: made.data.train == Path("a b/c=d.jsonl")),
        ("data.train=null", lambda made: made.data.train is None),
        ("train.max_steps=", lambda made: made.train.max_steps is None),
        ("data.share_images=false", lambda made: made.data.share_images is False),
        ("evaluate.metrics=[accuracy]", lambda made: made.evaluate.metrics == ("accuracy",)),
        ("precision=fp16", lambda made: made.precision == "fp16"),
        ("run=2024", lambda made: made.run == Path("2024")),
        ("run=1e3", lambda made: made.run == Path("1e3")),
        ("model=123", lambda made: made.model == "123"),
        ("model=1e3", lambda made: made.model == "1e3"),
        ("run=no", lambda made: made.run == Path("no")),
        ("run=2024-01-02", lambda made: made.run == Path("2024-01-02")),
        ("run=2024-02-31", lambda made: made.run == Path("2024-02-31")),
        ("model=@home", lambda made: made.model == "@home"),
        ("strategy=frozen_vision", lambda made: made.strategy == "frozen_vision"),
        (
            "strategy=[{match: 'vision.*', learn: false}, {match: '*', learning_rate: 1e-5}]",
            lambda made: (
                made.strategy
                == (Rule(match="vision.*", learn=False), Rule(match="*", learning_rate=1e-5))
            ),
        ),
        ("lora={rank: 8}", lambda made: (made.lora.rank, made.lora.alpha) == (8, 128.0)),
    ],
)
def test_an_override_is_read_as_a_person_means_it(recipe, override, read):
    assert read(load_recipe(recipe, (override,)))


def test_a_folder_may_be_called_by_a_date(recipe):
    for name in ("2024-01-02", "2024-02-31"):
        recipe.write_text(f"model: m\nrun: {name}\n")
        assert load_recipe(recipe).run == Path(name)


def test_a_later_override_wins_and_leaves_its_neighbours_alone(recipe):
    made = load_recipe(recipe, ("train.seed=1", "train.seed=2", "train.max_steps=5"))
    assert (made.train.seed, made.train.max_steps, made.train.epochs) == (2, 5, 2)


def test_a_number_written_with_an_exponent_in_the_file_is_a_number(recipe):
    recipe.write_text(RECIPE + "  learning_rate: 1e-5\n")
    assert load_recipe(recipe).train.learning_rate == 1e-5


def test_a_setting_without_a_value_keeps_nothing_below_it_from_being_set(recipe):
    recipe.write_text("model: m\nrun: r\ndata:\ntrain:\n")
    made = load_recipe(recipe, ("data.num_crops=4",))
    assert made.data.num_crops == 4
    assert made.train.epochs == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learnin_rate=1", "unknown setting train.learnin_rate; did you mean"),
        ("trian.epochs=1", "unknown setting trian.epochs; did you mean train.epochs?"),
        ("learning_rate=1", "did you mean train.learning_rate?"),
        ("zzzz=1", "unknown setting zzzz"),
        ("train.epochs=-1", "train.epochs=-1: input should be greater than 0"),
        ("train.epochs=many", "train.epochs=many: input should be a valid number"),
        ("train.max_steps=1.5", "train.max_steps=1.5: "),
        ("precision=int8", "precision=int8: input should be 'float32', 'bf16' or 'fp16'"),
        ("lora.dropout=2", "lora.dropout=2: input should be less than or equal to 1"),
        ("data.share_images=perhaps", "data.share_images=perhaps: input should be a valid boolean"),
        ("strategy=frozen", "strategy=frozen: input should be 'full', 'frozen_vision', 'lora'"),
        ("strategy=[{learn: true}]", "strategy.0.match is missing"),
        (
            "strategy=[{match: '*', lern: true}]",
            "setting strategy.0.lern; did you mean strategy.0.learn?",
        ),
        ("model=null", "model is missing"),
        ("train.epochs=inf", "train.epochs=inf: input should be a finite number"),
        ("train.learning_rate=nan", "train.learning_rate=nan: "),
        ("precision='a\n\n b'", "precision=a b: "),
        ("model.name=x", "model is a value and has no settings below it"),
        ("train=5", "train=5: "),
        ("data.train=[5]", "data.train.0=5: give a mapping of settings"),
        ("data.train={path: x}", "data.train={'path': 'x'}: give a path or a list"),
        ("data.train=[{path: 5}]", "data.train.0.path=5: give a path"),
        ("train=5", "train=5: give a mapping of settings"),
        ("strategy=[5]", "strategy.0=5: give a mapping of settings"),
        ("evaluate.metrics=5", "evaluate.metrics=5: give a list"),
        ("published={anls: 2}", "published.anls=2: input should be less than"),
        ("train.lr=1", "unknown setting train.lr; did you mean train.learning_rate?"),
        ("lr=1", "did you mean train.learning_rate?"),
        ("train.batch_size=2", "did you mean train.examples_per_step?"),
        ("lora.r=8", "did you mean lora.rank?"),
        ("output_dir=x", "did you mean run?"),
        ("strategy=[{match: '*', lr: 1}]", "did you mean strategy.0.learning_rate?"),
        ("epochs", "write an override as key=value"),
        ("=5", "write an override as key=value"),
        (".=5", "write an override as key=value"),
        ("train..epochs=5", "write an override as key=value"),
    ],
)
def test_what_is_not_a_setting_or_not_a_value_is_refused_in_one_line(recipe, override, message):
    assert message in refusal(recipe, override)


def test_the_suggestion_for_a_misspelt_setting_is_the_nearest_one(recipe):
    assert "did you mean train.learning_rate?" in refusal(recipe, "train.learnin_rate=1")
    assert "did you mean" not in refusal(recipe, "zzzz=1")


def test_names_of_other_tools_lead_to_settings_that_there_are():
    assert set(ELSEWHERE.values()) <= {*setting_names(Recipe), "model", "run"}


def test_no_mistake_is_told_in_the_words_of_a_library(recipe):
    told = []
    for name in setting_names(Recipe):
        for value in ("[1]", "{a: {b: 1}}", "[[1]]"):
            try:
                load_recipe(recipe, (f"{name}={value}",))
            except ConfigError as error:
                told.append(str(error))
    assert len(told) > 100
    assert not [one for one in told if "instance of" in one or "class '" in one]


def test_a_misspelt_setting_in_the_file_is_named_with_the_file(recipe):
    recipe.write_text(RECIPE + "  epohcs: 3\n")
    message = refusal(recipe)
    assert message.startswith(f"{recipe}: unknown setting train.epohcs")
    assert message.endswith("did you mean train.epochs?")


def test_a_recipe_without_a_model_says_how_to_give_one(recipe):
    recipe.write_text("run: here\n")
    assert "model is missing" in refusal(recipe)
    assert "model=..." in refusal(recipe)
    assert load_recipe(recipe, ("model=m",)).model == "m"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [1, 2", "1: not YAML"),
        (b"model: a\n\tb: c\n", "2: not YAML"),
        (b"- one\n- two\n", "a recipe is a mapping of settings"),
        (b"", "a recipe is a mapping of settings"),
        (b"just words", "a recipe is a mapping of settings"),
        (b"\xff\xfe\x00binary", "not YAML"),
        (b"model: a\nrun: b\n1: 2\n", "1=1: keys should be strings"),
        (b"model: a\nrun: \xe9\n", "not YAML"),
        (b"model: a\nrun: b\n'': 2\n", "unknown setting"),
        (b"model: a\nrun: b\nmodel: c\n", ":3: model is there twice; keep one of them"),
        (b"model: a\nrun: b\nlora: {rank: 4, rank: 8}\n", ":3: rank is there twice"),
        (b"model: a\nrun: b\ntrain:\n  epochs: 1\n  epochs: 2\n", ":5: epochs is there twice"),
        (b"model: a\nrun: b\ntrain: {max_steps: yes}\n", "train.max_steps=True: is a truth"),
        (b"model: a\nrun: b\ntrain: {learning_rate: on}\n", "train.learning_rate=True: is a truth"),
        (b"model: " + b"[" * 600 + b"]" * 600, "nested too deeply"),
        (b"model: a\nrun: b\ndata: {image_settings: &x {a: *x}}\n", "not YAML: Circular reference"),
        (b"model: a\nrun: b\nunknown: &x {a: *x}\n", "not YAML: Circular reference"),
        (b"model: a\nrun: b\ntrain: {epochs: !!int two}\n", "not YAML: invalid literal"),
        (b"model: a\nrun: ''\n", "run=: give a path; for this folder, a dot"),
        (b"model: a\nrun: b\ndata: {train: ''}\n", "data.train=: give a path"),
        (b"model: a\nrun: b\ndata: {images: ''}\n", "data.images=: give a path"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(recipe, content, message):
    recipe.write_bytes(content)
    made = refusal(recipe)
    assert made.startswith(f"{recipe}:")
    assert message in made


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "none.yaml").startswith(f"{tmp_path}/none.yaml: No such file")
    assert refusal(tmp_path).startswith(f"{tmp_path}: Is a directory")


def test_a_saved_recipe_spells_everything_out_and_reads_back_the_same(recipe, tmp_path):
    overrides = ("train.learning_rate=1e-5", "strategy=[{match: '*', learning_rate: 2e-6}]")
    made = load_recipe(recipe, (*overrides, "run=runs/übung"))
    copy = tmp_path / "copy.yaml"
    save_recipe(made, copy)
    assert load_recipe(copy) == made
    tree = yaml.safe_load(copy.read_text(encoding="utf-8"))
    written = [name for name in setting_names(Recipe) if name.partition(".")[0] in tree]
    assert written == setting_names(Recipe)
    assert tree["train"].keys() == type(made.train).model_fields.keys()


def test_every_setting_is_listed_by_its_full_name():
    names = setting_names(Recipe)
    fixed = {"model", "run", "strategy", "precision", "engine", "attention"}
    fixed |= {f"data.{n}" for n in ("train", "validation", "images", "share_images", "num_crops")}
    fixed |= {f"train.{n}" for n in ("seed", "epochs", "max_steps", "examples_per_step")}
    fixed |= {f"train.{n}" for n in ("tokens_per_pass", "learning_rate", "warmup_steps")}
    fixed |= {f"train.{n}" for n in ("weight_decay", "save_every_steps", "evaluate_every_steps")}
    fixed |= {"data.workers", "train.recompute"}
    assert fixed <= set(names)
    assert len(names) == len(set(names))


def test_every_setting_is_explained():
    def explained(settings):
        for name, field in settings.model_fields.items():
            kind = field.annotation
            if hasattr(kind, "model_fields"):
                explained(kind)
            else:
                assert field.description, name

    explained(Recipe)
    explained(Rule)


def test_a_mapping_that_is_laid_over_another_may_say_a_name_of_it_again(recipe):
    recipe.write_text("model: a\nrun: b\nlora: {<<: {rank: 4, alpha: 8}, rank: 16}\n")
    made = load_recipe(recipe)
    assert (made.lora.rank, made.lora.alpha) == (16, 8)


def test_truths_stay_truths_however_yaml_writes_them(recipe):
    for written in ("yes", "on", "true", "'yes'"):
        recipe.write_text(f"model: a\nrun: b\ntrain: {{deterministic: {written}}}\n")
        assert load_recipe(recipe).train.deterministic is True


def test_training_files_are_one_or_several_with_weights():
    alone = DataSettings(train=Path("a.jsonl"))
    assert [(file.path, file.weight) for file in alone.train_files] == [(Path("a.jsonl"), 1)]
    several = DataSettings.model_validate(
        {"train": [{"path": "a.jsonl", "weight": 0.5}, "hf://owner/name:train"]}
    )
    assert [(str(file.path), file.weight) for file in several.train_files] == [
        ("a.jsonl", 0.5),
        ("hf:/owner/name:train", 1),
    ]
    assert DataSettings().train_files == ()
    with pytest.raises(ValidationError):
        DataSettings.model_validate({"train": [{"path": "a.jsonl", "weight": 0}]})


def test_a_setting_is_shown_as_a_person_would_type_it():
    assert as_typed(Path("données/né.jsonl")) == "données/né.jsonl"
    assert as_typed(None) == "null"
    assert as_typed((0.5, "yes: no")) == "[0.5, 'yes: no']"
    assert as_typed(DataFile(path=Path("a.jsonl"), weight=2.0)) == "{path: a.jsonl, weight: 2.0}"


def test_a_path_that_begins_at_home_is_found_there_wherever_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text(
        "model: ~/models/phi\nrun: ~/runs/one\n"
        "data: {train: [~/a.jsonl, {path: ~/b.jsonl, weight: 2}], images: ~/scans}\n"
    )
    recipe = tmp_path / "elsewhere" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("base: ~/base.yaml\n")
    made = load_recipe(recipe, ("data.validation=~/v.jsonl", "data.cache=a~/~"))
    assert (made.model, made.run) == (str(tmp_path / "models/phi"), tmp_path / "runs/one")
    assert [one.path for one in made.data.train_files] == [
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
    ]
    assert (made.data.images, made.data.validation) == (tmp_path / "scans", tmp_path / "v.jsonl")
    assert made.data.cache == Path("a~/~")
    save_recipe(made, tmp_path / "saved.yaml")
    assert "~/" not in (tmp_path / "saved.yaml").read_text().replace("a~/~", "")
