"""A run and its proof -> README.md: what the model is, how it was made, how good it is."""

import math
from pathlib import Path
from typing import Any

import jinja2
import yaml

from foveal.config import Recipe, Settings, as_typed
from foveal.deliver.export_source import RunSource
from foveal.deliver.proof import Proof
from foveal.deliver.weight_only import WeightOnly
from foveal.evaluate.intervals import Score
from foveal.machine import Precision
from foveal.models.known import describe_frame
from foveal.models.loading import read_model_type
from foveal.report.run_folder import settings_beside_defaults
from foveal.storage import write_text

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def write_card(
    source: RunSource,
    folder: Path,
    name: str,
    dtype: Precision,
    *,
    as_model: bool,
    proof: Proof | None,
    bits: WeightOnly | None = None,
) -> None:
    """Write the model card of a folder that will be called `name`."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["score"] = show_score
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    recipe = source.recipe
    licence = base_licence(source.base)
    on_hub = source.base_is_on_hub
    base = source.base_name if on_hub else Path(source.base_name).name
    text = template.render(
        front_matter=yaml.safe_dump(front_matter(source, base, licence, as_model), sort_keys=False),
        title=name,
        as_model=as_model,
        source=source,
        recipe=recipe,
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else base,
        base_name=base,
        scores={name: one for name, one in (source.scores or {}).items() if one.count},
        step=f"{source.progress.step:,}",
        num_crops=recipe.data.num_crops if source.family.image_budget == "num_crops" else 0,
        boxes=describe_frame(read_model_type(str(source.base))) if recipe.data.boxes else "",
        turns=recipe.data.turns if source.family.joins_turns_as_published else "template",
        examples=describe_examples(recipe),
        dtype=dtype,
        held=bits.line() if bits else "",
        settings=public_settings(recipe),
        proof=proof,
        licence=f"The base model's own: {licence}." if licence else "See the base model's licence.",
    )
    write_text(folder / "README.md", text)


def front_matter(
    source: RunSource, base: str, licence: str | None, as_model: bool
) -> dict[str, Any]:
    """Gather what the hub reads of a card."""
    tree: dict[str, Any] = {
        "license": licence or "other",
        "library_name": "transformers" if as_model else "peft",
        "pipeline_tag": "image-text-to-text",
        "base_model": base,
        "base_model_relation": "finetune" if as_model else "adapter",
        "tags": ["foveal"],
    }
    if not source.base_is_on_hub:  # the hub takes hub names alone
        del tree["base_model"], tree["base_model_relation"]
    return tree


def base_licence(base: Path) -> str | None:
    """Read the licence that a base model's own card states."""
    from huggingface_hub.repocard import metadata_load

    try:
        tree = metadata_load(base / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # none, or one that says nothing
        return None
    return str(tree["license"]) if "license" in tree else None


def public_settings(recipe: Recipe) -> dict[str, str]:
    """List the settings that are not at their default; of paths, the last name alone."""
    changed = settings_beside_defaults(recipe)
    del changed["run"]
    if Path(recipe.model).is_absolute():
        changed["model"] = Path(recipe.model)
    return {name: as_typed(_without_folders(value)) for name, value in changed.items()}


def _without_folders(value: object) -> object:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, list | tuple):
        return [_without_folders(one) for one in value]
    if isinstance(value, Settings):
        told = value.model_dump(exclude_defaults=True)
        return {name: _without_folders(one) for name, one in told.items()}
    return value


def describe_examples(recipe: Recipe) -> str:
    """Name the training data, and count it where it still stands."""
    files = [file.path for file in recipe.data.train_files]
    if not files:
        return "Data unknown"
    names = ", ".join(file.name for file in files)
    if not all(file.is_file() and file.suffix == ".jsonl" for file in files):
        return f"Trained on {names}"
    count = 0
    for file in files:
        with file.open("rb") as lines:
            count += sum(1 for line in lines if line.strip())
    return f"Trained on the {count:,} examples of {names}"


def show_score(score: Score) -> str:
    """Write a score with its interval."""
    if math.isnan(score.value):
        return "-"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
