"""A run folder -> what an export is made from: base, checkpoint, recipe, recorded scores."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveal.adapt.adapters import AdapterSize, add_adapters
from foveal.adapt.quantize import quantized_layers, read_record, skeleton, wants_four_bits
from foveal.adapt.strategy import first_match, rules_of
from foveal.config import Recipe, load_recipe
from foveal.deliver.merge import sort_adapters
from foveal.deliver.open import find_run
from foveal.deliver.tensors import StoredTensor, find_tensors, tensors_of
from foveal.errors import ModelError, RunError, one_line
from foveal.evaluate.kept import is_of_run
from foveal.evaluate.prediction import Scores, read_scores
from foveal.models.family import Family, LoadedModel
from foveal.models.fingerprint import fingerprint_model
from foveal.models.hub.hub_processor import changed_settings
from foveal.models.hub.stored_names import Regrouped
from foveal.models.loading import find_family, load
from foveal.train.checkpoint import WEIGHTS, Progress, checkpoints, read_progress, step_of

BASE_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.py", "*.md", "LICENSE*")
"""Files of a base model on the hub that an export reads or hands on; never a pickle."""


@dataclass(frozen=True)
class RunSource:
    """One moment of a run, and the model that it started from."""

    run: Path
    recipe: Recipe
    base: Path
    """Folder of the full-precision model that the run started from."""

    base_name: str
    """As the recipe names it."""

    checkpoint: Path
    progress: Progress
    scores: Scores | None
    """Recorded at this step; none: it was not evaluated."""

    before: Scores | None
    notes: tuple[str, ...] = ()
    """What a person should hear of the choice."""

    @property
    def base_is_on_hub(self) -> bool:
        """Whether others find the base by the recipe's name for it."""
        return self.base not in (Path(self.base_name), self.run / "model")

    @cached_property
    def family(self) -> Family:
        """What kind of model it is."""
        return find_family(str(self.base))

    @cached_property
    def processor(self) -> Any:
        """Reads words and images as the run did."""
        return self.family.load_processor(str(self.base), self.recipe.data.image_budget)

    @property
    def image_changes(self) -> Mapping[str, Any]:
        """Settings of images that are others than the base's."""
        changes = self.recipe.data.image_settings
        return changed_settings(self.processor.processor, str(self.base)) if changes else {}

    @cached_property
    def base_tensors(self) -> dict[str, StoredTensor]:
        """Weights of the base, by the model's own names."""
        own_names = [(own, stored) for stored, own in self._own_names.items() if own is not None]
        order = dict.fromkeys(own for own, _ in own_names)
        # Where one weight is stored under several names, its own decides.
        own_names.sort(key=lambda names: names[0] == names[1])
        found = {own: self._stored[stored] for own, stored in own_names}
        made = {
            own: StoredTensor(shape, partial(self._regroup, group, own))
            for group in self.regrouped
            for own, shape in group.shapes.items()
        }
        return {own: found[own] for own in order} | made

    def _regroup(self, group: Regrouped, own: str) -> Tensor:
        """Read all that a weight is made of, and make it."""
        return group.own({name: self._stored[name].read() for name in group.stored})[own]

    @cached_property
    def _own_names(self) -> dict[str, str | None]:
        return {stored: self.family.own_name(stored) for stored in self._stored}

    @cached_property
    def regrouped(self) -> list[Regrouped]:
        """Weights, such as those of experts, that no file holds as the model does."""
        return self.family.regrouped({name: one.shape for name, one in self._stored.items()})

    @property
    def num_weights(self) -> int:
        """Count the numbers that the base's files hold."""
        return sum(math.prod(one.shape) for one in self._stored.values())

    @cached_property
    def written_names(self) -> dict[str, str]:
        """Name that a weight is written under -> the model's own; none of those regrouped."""
        own_names = {stored: own for stored, own in self._own_names.items() if own is not None}
        if self.family.keeps_stored_names:
            return own_names
        return {own: own for own in own_names.values()}

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        return find_tensors(self.base)

    @cached_property
    def learnt(self) -> dict[str, StoredTensor]:
        """All that the run learnt, as the checkpoint holds it."""
        return tensors_of(self.checkpoint / WEIGHTS)

    @cached_property
    def adapters(self) -> dict[str, dict[str, StoredTensor]]:
        """Adapters of the checkpoint, by layer and part."""
        return sort_adapters(self.learnt)[0]

    @property
    def adapts_the_tower(self) -> bool:
        """Whether any adapter stands before the language model."""
        return any(
            self.family.part_name(f"{one}.weight")[:9] != "language." for one in self.adapters
        )

    @cached_property
    def adapter_sizes(self) -> dict[str, AdapterSize]:
        """Rank of each adapter, as it is stored, and alpha, as the run's rules gave it."""
        rules, lora = rules_of(self.recipe.strategy), self.recipe.lora
        sizes = {}
        for layer, parts in self.adapters.items():
            rule = first_match(self.family.part_name(f"{layer}.weight"), rules)
            alpha = (rule.alpha if rule else None) or lora.alpha
            sizes[layer] = AdapterSize(parts["down"].shape[0], alpha)
        return sizes

    @cached_property
    def four_bit_layers(self) -> list[str]:
        """Layers that the run held in 4 bits while it learnt."""
        rules = rules_of(self.recipe.strategy)
        if not wants_four_bits(rules):
            return []
        model = skeleton(str(self.base))
        return sorted(quantized_layers(model, self.family, rules, read_record(self.run)))

    @cached_property
    def whole_weights(self) -> list[str]:
        """Names of the weights that were learnt whole."""
        return sort_adapters(self.learnt)[1]


def find_source(run: Path, checkpoint: str = "last") -> RunSource:
    """Find the parts of a run.

    Args:
        run: its folder.
        checkpoint: `last`, `best` (highest recorded score), or a step.

    Raises:
        RunError: it is no run, or has no such checkpoint.
        ModelError: the model that it started from is not there.
    """
    if not (run / "recipe.yaml").is_file():
        around = find_run(run)
        raise RunError(
            f"{run}: no run, it has no recipe.yaml; give the folder "
            + (str(around) if around else "of a run")
        )
    recipe = load_recipe(run / "recipe.yaml")
    found = {step_of(one): one for one in checkpoints(run / "checkpoints")}
    if not found:
        raise RunError(f"{run}: no checkpoint in {run / 'checkpoints'}; train first")
    scores = recorded_scores(run, max(found))
    step, notes = choose_step(checkpoint, recipe, sorted(found), scores)
    base = find_base(run, recipe)
    return RunSource(
        run=run,
        recipe=recipe,
        base=base,
        base_name=recipe.model,
        checkpoint=found[step],
        progress=read_progress(found[step]),
        scores=scores.get(step),
        before=scores.get(0),
        notes=notes,
    )


def recorded_scores(run: Path, last: int) -> dict[int, Scores]:
    """Read the scores of every evaluated step; `before` is step 0, `after` the last."""
    found: dict[int, Scores] = {}
    for file in sorted((run / "evaluation").glob("*/scores.json")):  # `after` is the first
        name = file.parent.name
        if is_of_run(name):
            step = {"before": 0, "after": last}.get(name)
            step = int(name.removeprefix("step-")) if step is None else step
            found.setdefault(step, read_scores(file))
    return found


def choose_step(
    wanted: str, recipe: Recipe, kept: list[int], scores: Mapping[int, Scores]
) -> tuple[int, tuple[str, ...]]:
    """Choose a checkpoint among those that are kept.

    Raises:
        RunError: there is none of that name.
    """
    listed = ", ".join(map(str, kept))
    if wanted == "last":
        return kept[-1], ()
    if wanted != "best":
        if wanted.isdigit() and int(wanted) in kept:
            return int(wanted), ()
        raise RunError(f"--checkpoint {wanted}: give last, best, or a step that is kept: {listed}")
    metric = recipe.train.best_metric or recipe.evaluate.metrics[0]
    values = {
        step: one[metric].value
        for step, one in scores.items()
        if step and metric in one and not math.isnan(one[metric].value)
    }
    candidates = [step for step in kept if step in values]
    if not candidates:
        raise RunError(
            f"--checkpoint best: none of the kept steps ({listed}) has a recorded {metric}; "
            "set data.validation and train.evaluate_every_steps, or take last"
        )
    best = max(candidates, key=lambda step: (values[step], -step))  # the earliest of equals
    notes = [f"best of the kept steps by {metric}: step {best} ({values[best]:.3f})"]
    lost = max(values, key=values.__getitem__)
    if values[lost] > values[best]:
        notes.append(
            f"step {lost} scored {values[lost]:.3f} but its checkpoint is not kept; "
            "train.keep_checkpoints keeps more"
        )
    return best, tuple(notes)


def find_base(run: Path, recipe: Recipe) -> Path:
    """Find the folder of the model that a run started from.

    Raises:
        ModelError: it is neither a folder nor a hub name that can be fetched.
    """
    made_for_it = run / "model"  # `phi3-vision-tiny` is made in the run's folder
    for folder in (Path(recipe.model), made_for_it):
        if (folder / "config.json").is_file():
            return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        fetched = snapshot_download(recipe.model, allow_patterns=list(BASE_FILES))
    except (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = one_line(error, 200)
        raise ModelError(
            f"{run}: its base model, {recipe.model!r} in recipe.yaml, is not there ({reason}); "
            "bring the folder back, or correct `model` in the run's recipe.yaml"
        ) from error
    return Path(fetched)


def load_base(source: RunSource) -> LoadedModel:
    """Load the model that a run started from, reading images as the run did."""
    return load(str(source.base), source.recipe.data.image_budget)


def load_tuned(source: RunSource) -> LoadedModel:
    """Load a run's base and put what the run learnt in place, adapters beside their layers.

    Raises:
        ModelError: they do not belong together.
    """
    loaded = load_base(source)
    if source.adapters:
        add_adapters(loaded.model, source.adapter_sizes, source.recipe.lora)
    loaded.model.requires_grad_(False).eval()
    weights = loaded.model.state_dict()
    for name, one in source.learnt.items():
        if name not in weights or weights[name].shape != one.shape:
            raise ModelError(
                f"{source.checkpoint}: the base model has no weight {name} of {one.shape}"
            )
        weights[name].copy_(one.read())
    return loaded


def check_base_fits(source: RunSource, as_model: bool) -> None:
    """Check, from names and shapes alone, that a run's weights belong to its base.

    Raises:
        ModelError: they do not.
    """
    wanted: dict[str, tuple[int, ...]] = {
        f"{layer}.weight": (parts["up"].shape[0], parts["down"].shape[1])
        for layer, parts in source.adapters.items()
    }
    wanted |= {name: source.learnt[name].shape for name in source.whole_weights}
    for name, shape in wanted.items():
        stored = source.base_tensors.get(name)
        if stored is None or stored.shape != shape:
            found = f"shape {stored.shape}" if stored else "nothing"
            raise ModelError(
                f"{source.base} is not the model that this run started from: the run has {name} of "
                f"shape {shape}, the base has {found}; bring the right folder back"
            )
    if not as_model and source.whole_weights:
        raise ModelError(
            f"{source.run}: besides adapters it learnt {len(source.whole_weights)} whole weights, "
            f"such as {source.whole_weights[0]}, which an adapter folder cannot hold; give --merge"
        )


def check_same_base(source: RunSource) -> None:
    """Compare a base's weights with the fingerprint that the run wrote down of its own.

    Models of one family have the same names and shapes, so nothing else tells them apart.

    Raises:
        ModelError: they are others.
    """
    recorded = source.progress.model_fingerprint
    as_loaded: Any = SimpleNamespace(named_parameters=lambda: _weights_as_loaded(source))
    if recorded and fingerprint_model(as_loaded) != recorded:
        raise ModelError(
            f"{source.base} is not the model that this run started from: names and shapes are the "
            "same, the weights are others; bring the right folder back"
        )


def _weights_as_loaded(source: RunSource) -> Iterator[tuple[str, Tensor]]:
    """Yield a base's weights one by one, as a run begins with them: float32, or packed."""
    packed = {f"{layer}.weight" for layer in source.four_bit_layers}
    for name, shaped in skeleton(str(source.base)).named_parameters():
        if name in packed:
            yield name, torch.empty((shaped.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        elif name in source.base_tensors:
            yield name, source.base_tensors[name].read().float()
