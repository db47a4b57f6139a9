"""A recipe -> what a run, and each command that speaks of one, is about: model and examples."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from transformers import PretrainedConfig

from foveal.adapt.quantize import (
    FourBits,
    inspect_four_bits,
    plan_quantization,
    read_record,
    skeleton,
    wants_four_bits,
    write_record,
)
from foveal.adapt.strategy import rules_of
from foveal.config import Recipe
from foveal.data.checking.overlap import check_lengths, describe_overlap
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import Dataset, read_dataset, read_training_examples, training_files
from foveal.data.encode import CountTokens, count_tokens
from foveal.data.example import Example
from foveal.data.images.frames import FrameName
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.objects import image_base
from foveal.data.lines import Examples
from foveal.data.turn_processor import read_as
from foveal.errors import ConfigError, DataError
from foveal.evaluate.metrics import find_metrics
from foveal.evaluate.prediction import PREFERRED
from foveal.libraries import remarks_are_caught
from foveal.models.family import Family, LoadedModel, most_tokens
from foveal.models.fingerprint import fingerprint_model
from foveal.models.loading import find_family, load, refuse_compressed
from foveal.plan.epoch import make_row_planner
from foveal.plan.question import TINY, read_model
from foveal.storage import write_text
from foveal.train.audit import audit_targets
from foveal.train.checkpoint import checkpoints
from foveal.train.engines.one_process import Engine


@dataclass(frozen=True)
class RunInputs:
    """What a run learns from and is measured on."""

    loaded: LoadedModel
    model_fingerprint: str
    dataset: Dataset
    validation: tuple[Examples, Dataset] | None

    def describe(self) -> dict[str, dict[str, str | int]]:
        """Say what the examples were when the run began, for who reads of it later."""
        sets = {"training": self.dataset}
        if self.validation:
            sets["validation"] = self.validation[1]
        return {
            role: {
                "fingerprint": one.fingerprint,
                "examples": one.sizes.num_sets,
                "pictures": len(one.images),
            }
            for role, one in sets.items()
        }

    def remarks(self, tokens_per_pass: int) -> list[str]:
        """Say what was noticed while reading, before anything is paid for."""
        validation = self.validation[1] if self.validation else None
        long = check_lengths(
            self.dataset.sizes.tokens,
            self.dataset.examples,
            most_tokens(self.loaded.model.config),
            tokens_per_pass,
            self.loaded.family.image_setting,
        )
        overlap = describe_overlap(self.dataset, validation) if validation else ""
        notes = filter(None, [self.loaded.note, long, overlap])
        of_validation = validation.remarks.lines() if validation else []
        return [*self.dataset.remarks.lines(), *notes, *of_validation]


def open_inputs(
    recipe: Recipe,
    engine: Engine,
    tell: Callable[[str], None],
    console: Console,
    fresh: bool = False,
) -> RunInputs:
    """Open what a recipe names; the main process unpacks and makes, the others wait for it.

    Args:
        recipe: to run.
        engine: of the run.
        tell: says a line that is to be noticed.
        console: of this process, which may be the one that encodes for all others.
        fresh: encode anew what was encoded before.

    Raises:
        ConfigError: what would be learnt could not be written, or not on this engine.
        DataError: the examples cannot be read.
    """
    data, cache = recipe.data, recipe.run / ".cache"

    def unpack(path: Path) -> Path:
        engine.by_main(partial(unpacked, path, cache, data.columns))
        return unpacked(path, cache, data.columns)

    def read(
        files: list[Path], weights: Sequence[float] = (), pairs: bool = False
    ) -> tuple[Examples, Dataset]:
        return read_dataset(
            files,
            loaded.processor,
            image_base(data),
            data.cache or cache,
            data.workers,
            weights,
            console,
            fresh,
            pairs,
        )

    files = [unpack(file.path) for file in data.train_files]
    validation = [unpack(data.validation)] if data.validation else []
    loaded = load_for_run(recipe, recipe.run, engine, files, tell)
    fingerprint = fingerprint_model(loaded.model)
    _, dataset = read(files, [file.weight for file in data.train_files], recipe.learns_pairs)
    inputs = RunInputs(loaded, fingerprint, dataset, read(validation) if validation else None)
    audit_targets(dataset)
    for line in inputs.remarks(recipe.train.tokens_per_pass):
        tell(line)
    return inputs


def load_for_run(
    recipe: Recipe,
    run: Path,
    engine: Engine,
    files: Sequence[Path] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """Load a recipe's model; the tiny one is first made in the run folder, to suit the files.

    Layers that this machine computes wrongly in 4 bits stay whole, which is told and kept.
    """
    quiet_libraries()
    name = recipe.model
    if name == TINY and not Path(name).exists():
        again = not checkpoints(run / "checkpoints")
        engine.by_main(partial(make_tiny, recipe, files, run / "model", again))
        name = str(run / "model")
    refuse_compressed(name)
    rules, precision = rules_of(recipe.strategy), recipe.precision
    found = _look_at_four_bits(name, recipe, run, engine)
    for line in found.lines():
        tell(line)
    quantization = plan_quantization(name, rules, recipe.quantization, precision, found.whole)
    loaded = load(name, recipe.data.image_budget, recipe.attention, quantization=quantization)
    read_as(loaded.processor, recipe.data)
    return loaded


def _look_at_four_bits(name: str, recipe: Recipe, run: Path, engine: Engine) -> FourBits:
    """Choose the layers in 4 bits, alike in all processes, and as the run began with them."""
    rules = rules_of(recipe.strategy)
    if not wants_four_bits(rules):
        return FourBits()
    settings, how = recipe.quantization, (recipe.precision, engine.device)
    found = inspect_four_bits(skeleton(name), find_family(name), rules, settings, *how)
    wrong = frozenset(engine.gather(sorted(found.wrong)))
    if checkpoints(run / "checkpoints"):
        found = replace(found, wrong=wrong, whole=read_record(run))
        found.check(run)
        return found
    found = replace(found, wrong=wrong, whole=wrong)
    engine.by_main(partial(write_record, run, found))
    return found


def load_in_passing(recipe: Recipe) -> LoadedModel:
    """Load a recipe's model as a run would, and leave nothing behind."""
    with TemporaryDirectory() as folder:
        files = training_files(recipe, Path(folder))
        return load_for_run(recipe, Path(folder), Engine(recipe.precision), files)


def make_tiny(recipe: Recipe, files: Sequence[Path], folder: Path, again: bool = False) -> None:
    """Make the tiny model, unless it is there.

    Args:
        recipe: whose data it shall suit.
        files: of the examples.
        folder: to write to.
        again: make it anew where it was made from something else.
    """
    from foveal.models.phi3_vision.tiny import write_tiny

    note = folder.with_name(f".{folder.name}.made-from")
    there = (folder / "config.json").exists()
    if there and not (again and note.exists()):
        return
    images = ImageFolder(files[0], image_base(recipe.data))
    looks = [path for example in Examples(files[:1])[:200] for path in _first_looks(example)]
    shown = list(_those_there(images, looks[:32]))
    texts = {text for one in Examples(files) for text in _texts(one)}
    asked = [recipe.train.seed, recipe.data.num_crops, [path for path, _ in shown], sorted(texts)]
    made_from = sha256(json.dumps(asked).encode()).hexdigest()
    if there and note.read_text(encoding="utf-8") == made_from:
        return
    if there:
        rmtree(folder)
    write_tiny(
        folder,
        recipe.train.seed,
        texts=texts,
        images=[path for _, path in shown],
        num_crops=recipe.data.num_crops,
    )
    write_text(note, made_from)


def _those_there(images: ImageFolder, paths: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Find images; one that is missing is named by its line, once examples are read."""
    for path in paths:
        with suppress(DataError):
            yield path, images.find(path)


def _first_looks(example: Example) -> Iterator[str]:
    yield from example.images
    yield from (str(FrameName(clip, 1, 8)) for turn in example.turns for clip in turn.videos)


def _texts(example: Example) -> Iterator[str]:
    # As they stand in a prompt: behind a line break, or by themselves.
    if example.system:
        yield f"\n{example.system}"
    for turn in example.turns:
        yield from (f"\n{turn.user}", turn.user, turn.assistant, *turn.rejected)


def check_recipe(recipe: Recipe) -> None:
    """See that a recipe's settings go together, before anything is paid for.

    Raises:
        ConfigError: they do not; the message says what is missing.
    """
    if recipe.attention == "flash_attention_2" and recipe.data.share_images:
        raise ConfigError(
            "attention=flash_attention_2 cannot read rows that share pictures; "
            "use attention=flex, or give data.share_images=false"
        )
    find_metrics(recipe.evaluate.metrics)
    best, metrics = recipe.train.best_metric, ", ".join(recipe.evaluate.metrics)
    if not best:
        if recipe.train.stop_after_worse:
            raise ConfigError(
                "train.stop_after_worse needs train.best_metric, the score that has to become "
                f"better; give one of {metrics}"
            )
        return
    for name, value in (
        ("data.validation", recipe.data.validation),
        ("train.evaluate_every_steps", recipe.train.evaluate_every_steps),
    ):
        if not value:
            raise ConfigError(f"train.best_metric={best} needs {name}; give it, or leave that out")
    if best not in (*recipe.evaluate.metrics, "auroc", PREFERRED):
        raise ConfigError(f"train.best_metric={best} is not among evaluate.metrics: {metrics}")


@contextmanager
def processor_for(
    recipe: Recipe, files: Sequence[Path]
) -> Iterator[tuple[Family, PretrainedConfig, Any]]:
    """Load all of a recipe's model but its weights: family, sizes and processor."""
    quiet_libraries()
    with TemporaryDirectory() as scratch:
        if recipe.model == TINY and not Path(TINY).exists():
            made = recipe.run / "model"
            made = made if made.exists() else Path(scratch) / "model"
            make_tiny(recipe, files, made)
            recipe = recipe.model_copy(update={"model": str(made)})
        yield read_model(recipe)


def token_counter(recipe: Recipe, data: Path) -> tuple[CountTokens, int | None]:
    """Make what `foveal check` counts tokens with, and say how many a model was made for."""
    with processor_for(recipe, [data]) as (_, config, processor):
        longest = most_tokens(config)
        return partial(count_tokens, processor), longest


def inspect_data(recipe: Recipe, out: Path, number: int) -> Path:
    """Write a page about the training examples of a recipe, as its model will see them."""
    from foveal.inspect.inspection import write_inspection

    files = training_files(recipe, recipe.run / ".cache")
    with processor_for(recipe, files) as (family, _, processor):
        examples, dataset = read_training_examples(recipe, files, processor)
    settings = {"model": recipe.model, "order": recipe.data.order}
    if family.image_budget == "num_crops":
        settings["num_crops"] = str(recipe.data.num_crops)
    planner = make_row_planner(recipe, dataset, 1, family, processor)
    return write_inspection(out, examples, dataset, processor, planner, number, settings)


def quiet_libraries() -> None:
    """Leave the terminal to our own bar and tables."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if remarks_are_caught():
        logging.disable_default_handler()
        logging.enable_propagation()
