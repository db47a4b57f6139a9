"""The published recipe: its tasks' data, the rows of its tables, and our scores beside them."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from rich.console import Console

from foveal.config import Recipe, load_recipe, quoted
from foveal.data.checking.check import check_file
from foveal.data.convert import Options, convert
from foveal.errors import ConfigError, DataError, one_line
from foveal.evaluate.prediction import Scores
from foveal.storage import read_object, write_bytes, write_json

RECIPES = Path(__file__).with_name("recipes")
"""Bundled recipes: one file a task, and below it one a row of its table."""

POLL_SECONDS = 0.2
SPEAK_AFTER_SECONDS = 60


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub."""

    name: str
    part: str = ""
    """Which of its parts, a folder in it."""


@dataclass(frozen=True)
class Task:
    """Where a task's examples come from, as in the published recipe."""

    kind: str
    """Of conversion."""

    train: HubSet
    evaluation: HubSet
    mini_train: HubSet | None = None
    """A smaller set to learn from, unless all is asked for."""


CAULDRON = "HuggingFaceM4/the_cauldron"
PAGES = HubSet("nielsr/docvqa_1200_examples")
CLIPS = HubSet("sayakpaul/ucf101-subset")

TASKS = {
    "docvqa": Task("docvqa", HubSet(CAULDRON, "docvqa"), PAGES, mini_train=PAGES),
    "nlvr2": Task("nlvr2", HubSet(CAULDRON, "nlvr2"), HubSet(CAULDRON, "nlvr2")),
    "hateful_memes": Task(
        "hateful-memes", HubSet(CAULDRON, "hateful_memes"), HubSet(CAULDRON, "hateful_memes")
    ),
    "ucf101": Task("ucf101", CLIPS, CLIPS),
}


def find_row(name: str) -> Path:
    """Find the recipe of a row, such as `docvqa/lora`.

    Raises:
        ConfigError: there is no row of that name.
    """
    rows = [row_name(path) for path in list_rows()]
    if name not in rows:
        close = get_close_matches(name, rows, n=1)
        hint = f"did you mean {close[0]}?" if close else "`foveal recipes` lists them"
        raise ConfigError(f"{name}: no such row; {hint}")
    return RECIPES / f"{name}.yaml"


def list_rows() -> list[Path]:
    """List the recipes of all rows."""
    return [path for task in TASKS for path in sorted((RECIPES / task).glob("*.yaml"))]


def list_starts() -> list[Path]:
    """List the recipes that other families may start from: of no published row."""
    rows = set(list_rows())
    return [path for path in sorted(RECIPES.glob("*/*.yaml")) if path not in rows]


def row_name(path: Path) -> str:
    """`.../recipes/docvqa/lora.yaml` -> docvqa/lora."""
    return path.relative_to(RECIPES).with_suffix("").as_posix()


def published_scores(recipe: Recipe) -> dict[str, float]:
    """Metric -> published score, 0 to 1."""
    return {name: x for name, x in (recipe.published or {}).items() if isinstance(x, float)}


def reproduce_row(
    name: str, source: Path | None, out: Path, overrides: Sequence[str], console: Console
) -> list[str]:
    """Convert, check, evaluate, train, evaluate; returns the lines that compare the scores.

    Args:
        name: a row, such as `docvqa/lora`.
        source: the data set as the hub has it; none: the hub, or its cache.
        out: the run's folder, with the converted data in `data`.
        overrides: settings of the recipe, `key=value`.
        console: to speak to.

    Raises:
        UserError: something to mend, as in `foveal convert` and `foveal train`.
    """
    for override in overrides:
        if override.partition("=")[0] in {"run", "data.train", "data.validation"}:
            raise ConfigError(f"{override}: give --source and --out, or use foveal train")
    row = find_row(name)
    load_recipe(row, tuple(overrides))  # a typo is told before data are fetched
    rank = int(os.environ.get("RANK", "0"))
    train, validation = prepare(name.partition("/")[0], source, out / "data", rank=rank)
    if rank == 0:
        tell_problems(train, validation, console)
    recipe = load_recipe(
        row, (*overrides, *quoted(run=out), *quoted("data.", train=train, validation=validation))
    )
    from foveal.run import TrainingRun

    outcome = TrainingRun(recipe, console).go()
    if outcome.stopped:
        return [f"stopped at step {outcome.stopped.step}; the same command goes on from there"]
    lines = compare_with_published(recipe, outcome.after or {}, overrides)
    return [f"report: {outcome.report}", *lines] if rank == 0 else []


def compare_with_published(
    recipe: Recipe, ours: Scores, overrides: Sequence[str] = ()
) -> list[str]:
    """Set our scores beside the published ones."""
    source = (recipe.published or {}).get("source", "")
    changed = f", with {' '.join(overrides)}" if overrides else ""
    published = published_scores(recipe)
    if not published:
        lines = dict.fromkeys(ours, "none published")
    else:
        lines = {name: f"published {value:.4f} ({source})" for name, value in published.items()}
    return [
        f"{name}: ours {ours[name].value:.4f} "
        f"[{ours[name].low:.4f}, {ours[name].high:.4f}]{changed} - {beside}"
        for name, beside in lines.items()
        if name in ours
    ]


def tell_problems(train: Path, validation: Path, console: Console, show: int = 3) -> None:
    """Say what is wrong with the data; what a run cannot bear, the run itself will refuse."""
    for file, other in ((train, (validation,)), (validation, ())):
        problems = check_file(file, None, decode=False, other_splits=other)
        for problem in islice(problems, show):
            console.print(
                f"{file}:{problem.line}: {problem.message}", highlight=False, markup=False
            )
        for _ in problems:
            pass
        found = problems.summary
        console.print(
            f"{file}: {found.examples:,} examples, problems: {found.problems:,}", highlight=False
        )


def prepare(
    task: str, source: Path | None, out: Path, *, full_train: bool = True, rank: int = 0
) -> tuple[Path, Path]:
    """Convert a task's data, once for all processes; returns the files to learn and to score.

    Args:
        task: one of TASKS.
        source: a folder with the hub's Parquet files, or with `owner/name` folders of them; for
            UCF-101 clips in class folders, or what `convert` made of them; none: the hub.
        out: folder to fill.
        full_train: the whole training set, where a task has a smaller one too.
        rank: of this process; the first converts, the others wait for it.

    Raises:
        DataError: the data cannot be had, or leave nothing to learn or to score.
    """
    made = source and (source / f"{task}_train.jsonl"), source and source / f"{task}_val.jsonl"
    if made[0] and made[0].exists() and made[1]:
        return made[0], made[1]
    asked = {"task": task, "source": str(source and source.resolve()), "full_train": full_train}
    ready = out / "ready.json"
    since = time.monotonic()
    while (done := read_object(ready)).get("asked") != asked:
        if rank == 0:
            train, validation = _convert(TASKS[task], source, out, full_train)
            files = {"train": train.as_posix(), "validation": validation.as_posix()}
            write_json(ready, {"asked": asked} | files)
        else:
            since = _wait(ready, since)
    return Path(done["train"]), Path(done["validation"])


def _wait(ready: Path, since: float) -> float:
    time.sleep(POLL_SECONDS)
    if time.monotonic() - since < SPEAK_AFTER_SECONDS:
        return since
    print(  # noqa: T201  (a process that has no console of its own)
        f"waiting for the first process to write {ready}; where nodes share no folders, "
        "run `foveal convert` on each and give the result",
        flush=True,
    )
    return float("inf")


def _convert(task: Task, source: Path | None, out: Path, full_train: bool) -> tuple[Path, Path]:
    learnt = task.train if full_train or task.mini_train is None else task.mini_train
    places = {one: _place(one, source, out) for one in (learnt, task.evaluation)}
    workers = min(8, os.cpu_count() or 1)
    if len(set(places.values())) == 1:
        folders = [out / task.kind] * 2
        convert(task.kind, places[learnt], out / task.kind, workers=workers)
    else:  # what is scored comes from elsewhere, so nothing is held out
        folders = [out / f"{task.kind}-train", out / f"{task.kind}-evaluation"]
        whole = Options(validation_fraction=0.0)
        convert(task.kind, places[learnt], folders[0], options=whole, workers=workers)
        convert(task.kind, places[task.evaluation], folders[1], workers=workers)
    train = folders[0] / f"{task.kind}_train.jsonl"
    splits = ("test", "val") if task.mini_train else ("val", "test")
    scored = [folders[1] / f"{task.kind}_{split}.jsonl" for split in splits]
    found = [path for path in scored if path.exists()]
    if not train.exists() or not found:
        raise DataError(f"{source or task.train.name}: too few examples to learn and to score")
    return train, found[0]


def _place(hub: HubSet, source: Path | None, out: Path) -> Path:
    """Find a data set: below `source`, offline in the hub's cache, else by its name on the hub."""
    if source is not None:
        places = (source / hub.name / hub.part, source / hub.name, source)
        return next((place for place in places if place.is_dir()), source)
    if hub == CLIPS:
        return fetch_clips(out / "source")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not constants.HF_HUB_OFFLINE:
        return Path(hub.name)
    try:
        cached = Path(snapshot_download(hub.name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{hub.name}: no network and not in the cache; give a folder with its Parquet files"
        ) from error
    # The cache is made of links, which a conversion does not follow out of its source.
    place = out / "source" / hub.name / hub.part
    for file in sorted((cached / hub.part).rglob("*.parquet")):
        target = place / file.relative_to(cached / hub.part)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(file.resolve())
        except OSError:  # another disk
            write_bytes(target, file.read_bytes())
    return place


def fetch_clips(folder: Path) -> Path:
    """Fetch and unpack the recipe's part of UCF-101: ten classes in train, val and test folders.

    Raises:
        DataError: it can be fetched neither from the hub nor from its cache.
    """
    import tarfile

    from huggingface_hub import hf_hub_download

    try:
        archive = hf_hub_download(CLIPS.name, "UCF101_subset.tar.gz", repo_type="dataset")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        reason = one_line(error, 200)
        raise DataError(f"{CLIPS.name}: {reason}; give a folder with its clips") from error
    return folder / "UCF101_subset"
