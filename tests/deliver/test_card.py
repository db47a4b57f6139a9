"""What a model card tells of a recipe, and what it keeps to itself."""

from foveal.config import Recipe
from foveal.deliver.card import public_settings


def test_settings_are_as_typed_and_of_paths_the_last_name_alone():
    files = [{"path": "/home/me/données.jsonl", "weight": 2.0}, {"path": "/home/me/b.jsonl"}]
    data = {"train": files, "validation": "/home/me/held out.jsonl"}
    recipe = Recipe(model="/home/me/base", run="/home/me/run", data=data)
    assert public_settings(recipe) == {
        "model": "base",
        "data.train": "[{path: données.jsonl, weight: 2.0}, {path: b.jsonl}]",
        "data.validation": "held out.jsonl",
    }


def test_rules_are_told_as_a_recipe_has_them():
    rules = [{"match": "language.*", "learning_rate": 0.5}, {"match": "*", "learn": False}]
    recipe = Recipe(model="owner/name", run="run", strategy=rules)
    told = "[{match: language.*, learning_rate: 0.5}, {match: '*', learn: false}]"
    assert public_settings(recipe) == {"model": "owner/name", "strategy": told}
