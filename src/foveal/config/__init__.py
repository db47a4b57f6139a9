"""Every setting of a run in one tree, read from a YAML recipe."""

from foveal.config.data_settings import Columns, DataFile, DataSettings, Settings
from foveal.config.recipe_file import (
    as_typed,
    flatten,
    load_recipe,
    nearest_setting,
    quoted,
    save_recipe,
)
from foveal.config.settings import (
    Base,
    EvaluateSettings,
    LoraSettings,
    PreferenceSettings,
    QuantizationSettings,
    Recipe,
    Rule,
    ShardingSettings,
    TrainSettings,
    setting_names,
)

__all__ = [
    "Base",
    "Columns",
    "DataFile",
    "DataSettings",
    "EvaluateSettings",
    "LoraSettings",
    "PreferenceSettings",
    "QuantizationSettings",
    "Recipe",
    "Rule",
    "Settings",
    "ShardingSettings",
    "TrainSettings",
    "as_typed",
    "flatten",
    "load_recipe",
    "nearest_setting",
    "quoted",
    "save_recipe",
    "setting_names",
]
