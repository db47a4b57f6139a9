"""The command line: one command per verb, each a few lines around one function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.errors import UserError

if TYPE_CHECKING:
    from foveal.run import Outcome

INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """Fine-tune vision-language models, Phi-3.5-vision first."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run and report.")] = Path("runs/demo"),
) -> None:
    """Train a tiny model on real bundled pictures, in minutes, and write a report."""
    from rich.console import Console

    from foveal.demo import GPU_COMMAND, run_demo

    announce(run_demo(out, Console(stderr=True)))
    typer.echo(f"On GPUs, with your own data:\n  {GPU_COMMAND}")


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(help="Layout of the source, such as nlvr or docvqa.")],
    source: Annotated[Path, typer.Argument(help="Folder, zip, or hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to fill: images/ and JSONL files.")],
    frames: Annotated[int, typer.Option(help="Pictures a clip.")] = 8,
    classes: Annotated[str, typer.Option(help="first10, all, or names with commas.")] = "all",
    split: Annotated[int, typer.Option(help="Official split of UCF-101.", min=1, max=3)] = 1,
    question: Annotated[str | None, typer.Option(help="What to ask of each picture.")] = None,
    seed: Annotated[int, typer.Option(help="Start of random choices.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that decode.")] = 2,
) -> None:
    """Turn a data set in its published layout into pictures and JSONL files."""
    from foveal.data.convert import Options
    from foveal.data.convert import convert as convert_data

    options = Options(
        num_frames=frames,
        classes=classes,
        official_split=split,  # type: ignore[arg-type]  # the option's range
        question=question,
        seed=seed,
    )
    with progress_bar(kind) as advance:
        done = convert_data(kind, source, out, options=options, workers=workers, progress=advance)
    for name, labels in done.counts.items():
        counted = ", ".join(f"{label} {count}" for label, count in labels.most_common() if label)
        typer.echo(
            f"{out / name}.jsonl: {labels.total()} examples{f' ({counted})' * bool(counted)}"
        )
    for reason, count in done.left_out.most_common():
        typer.echo(f"left out, {reason}: {count}")


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="JSONL file of examples.")],
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    other: Annotated[
        list[Path] | None, typer.Option(help="Split to share no picture with.")
    ] = None,
    headers_only: Annotated[bool, typer.Option(help="Do not decode pictures: faster.")] = False,
    fix: Annotated[Path | None, typer.Option(help="File for the good lines.")] = None,
    show: Annotated[int, typer.Option(help="Problems to print; the rest are counted.")] = 20,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Check every example before a run: broken pictures, empty answers, wrong tags.

    Exit status: 0 all well, 1 problems found, 2 the file cannot be read.
    """
    from foveal.data.check import check_file

    problems = check_file(
        data,
        images,
        decode=not headers_only,
        workers=workers,
        other_splits=tuple(other or ()),
        fix=fix,
    )
    for problem in islice(problems, show):
        typer.echo(f"{data}:{problem.line}: {problem.message}")
    for _ in problems:
        pass
    found = problems.summary
    typer.echo(f"{found.examples} examples, {found.images} pictures, problems: {found.problems}")
    for label, count in found.labels.most_common(20):
        typer.echo(f"  {label}: {count}")
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    fresh: Annotated[bool, typer.Option(help="Start anew; the old run is kept aside.")] = False,
) -> None:
    """Train a recipe; goes on by itself where a checkpoint stands in the run folder.

    Exit status: 0 done (or stopped by SIGTERM with a checkpoint), 2 something to mend,
    130 interrupted, with a checkpoint.
    """
    from foveal.config import load_recipe

    loaded = load_recipe(recipe, tuple(overrides or ()))
    from rich.console import Console

    from foveal.run import TrainingRun

    announce(TrainingRun(loaded, Console(stderr=True), fresh).go())


def announce(outcome: "Outcome") -> None:
    """Say how a run ended; an interrupted one ends with its own exit status."""
    import signal

    if outcome.stopped:
        typer.echo(
            f"Stopped at step {outcome.stopped.step}; the same command goes on from there.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED if outcome.stopped.signal == signal.SIGINT else 0)
    for name, score in (outcome.after or {}).items():
        before = (outcome.before or {}).get(name)
        was = f"  (before {before.value:.3f})" if before else ""
        typer.echo(f"{name}: {score.value:.3f}  [{score.low:.3f}, {score.high:.3f}]{was}")
    typer.echo(f"model:  {outcome.run / 'final'}")
    typer.echo(f"report: {outcome.report}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or hub name.")],
    data: Annotated[Path, typer.Argument(help="JSONL file of examples.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the scores.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    num_crops: Annotated[int | None, typer.Option(help="Most crops a picture.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    tokens_per_batch: Annotated[int, typer.Option(help="Prompt tokens of a batch.")] = 16384,
    metrics: Annotated[str, typer.Option(help="Names with commas.")] = "accuracy,anls",
) -> None:
    """Answer and score examples; writes predictions.jsonl and scores.json."""
    from rich.console import Console

    from foveal.config import EvaluateSettings
    from foveal.run import evaluate_model

    settings = EvaluateSettings(
        max_new_tokens=max_new_tokens,
        tokens_per_batch=tokens_per_batch,
        metrics=tuple(metrics.split(",")),
    )
    folder, scores = evaluate_model(
        model,
        data,
        out,
        images=images,
        num_crops=num_crops,
        settings=settings,
        console=Console(stderr=True),
    )
    for name, score in scores.items():
        typer.echo(
            f"{name}: {score.value:.3f}  [{score.low:.3f}, {score.high:.3f}]  n={score.count}"
        )
    typer.echo(f"written: {folder}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="The page.")] = None,
) -> None:
    """Write one self-contained page about a run, or comparing runs."""
    if len(runs) == 1:
        from foveal.evaluate.report import write_report

        page = write_report(runs[0], out=out)
    else:
        from foveal.evaluate.comparison import write_comparison

        page = write_comparison(runs, out or Path("comparison.html"))
    typer.echo(f"report: {page}")


@app.command()
def bench(
    size: Annotated[str, typer.Option(help="tiny, standard or narrow.")] = "standard",
    rounds: Annotated[int, typer.Option(help="Turns of each way.", min=1)] = 3,
    strategies: Annotated[str, typer.Option(help="Names with commas.")] = "full,frozen_vision,lora",
    threads: Annotated[int | None, typer.Option(help="Processor threads; none: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure a training step beside the published recipe's way, on this machine."""
    from rich.console import Console

    from foveal.bench.measure import run_bench

    run_bench(size, rounds, tuple(strategies.split(",")), threads, as_json, Console())


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    gpu: Annotated[str, typer.Option(help="Its name, such as a100-80gb; this: measure it.")] = (
        "this"
    ),
    gpus: Annotated[int, typer.Option(help="Of each node.", min=1)] = 1,
    nodes: Annotated[int, typer.Option(help="Machines.", min=1, max=1024)] = 1,
    compare: Annotated[bool, typer.Option("--compare", help="Every sensible setup.")] = False,
    price: Annotated[float | None, typer.Option(help="Of one GPU an hour.", min=0)] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run some rows for real.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Work out memory, time and cost of a run before it is paid for.

    Exit status: 0 it fits, 1 it does not, 2 something to mend.
    """
    from rich.console import Console

    from foveal.config import load_recipe
    from foveal.plan.command import run_plan
    from foveal.run import load_in_passing

    loaded = load_recipe(recipe, tuple(overrides or ()))
    estimate = run_plan(
        loaded,
        Console(),
        load_in_passing,
        gpu=gpu,
        gpus=gpus,
        nodes=nodes,
        compare_all=compare,
        price_per_hour=price,
        measure=measure,
        as_json=as_json,
    )
    raise typer.Exit(0 if estimate.fits else 1)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar that is told how much is done, and of how much."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Run the command line; a mendable error becomes one line and exit status 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"foveal: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
