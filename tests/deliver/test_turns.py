"""How turns followed each other in training is how they do wherever the model is opened."""

from tiny import make_model, pages

from foveal.config import DataSettings, load_recipe, save_recipe
from foveal.deliver.model_folder import write_processor_files
from foveal.deliver.open import open_model
from foveal.models.phi3_vision import Phi3VisionProcessor


def test_a_run_folder_says_it_by_its_recipe(tmp_path):
    make_model(tmp_path / "run" / "final")
    recipe = tmp_path / "r.yaml"
    for turns in ("recipe", "template"):
        recipe.write_text(f"model: m\nrun: r\ndata: {{turns: {turns}, train: d.jsonl}}\n")
        save_recipe(load_recipe(recipe), tmp_path / "run" / "recipe.yaml")
        assert open_model(str(tmp_path / "run")).processor.turns == turns


def test_an_exported_folder_says_it_beside_the_crops(tmp_path):
    make_model(tmp_path / "base")
    for turns in ("template", "recipe"):
        out = tmp_path / turns
        out.mkdir()
        data = DataSettings(num_crops=3, turns=turns)
        write_processor_files(tmp_path / "base", "base", out, data, {})
        processor = Phi3VisionProcessor.from_pretrained(out)
        assert (processor.turns, processor.num_crops) == (turns, 3)


def test_a_recipe_gives_it_to_training_and_to_the_plan(tmp_path):
    from foveal.inputs import processor_for

    make_model(tmp_path / "base")
    data = pages(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {tmp_path / 'base'}\nrun: {tmp_path / 'run'}\n"
        f"data: {{turns: template, train: {data}}}\n"
    )
    with processor_for(load_recipe(recipe), [data]) as (_, _, processor):
        assert processor.turns == "template"
