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
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    merge: Annotated[bool, typer.Option(help="Fold adapters into the base.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16, float32; none: bf16, adapters float32.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "last",
    proof: Annotated[bool, typer.Option(help="Load the folder again and compare it.")] = True,
) -> None:
    """Write a run's model as a folder for others, and prove that it is the model trained.

    Exit status: 0 written and proven (or not asked to), 1 the proof failed and the folder is
    marked .unverified, 2 something to mend.
    """
    from foveal.config import ConfigError

    if dtype not in (None, "bf16", "fp16", "float32"):
        raise ConfigError(f"--dtype {dtype}: give bf16, fp16 or float32")
    from rich.console import Console

    from foveal.deliver.export import export_run
    from foveal.run import quiet_libraries

    quiet_libraries()
    console = Console(stderr=True)
    done = export_run(
        run,
        out,
        merge=merge,
        dtype=dtype,  # type: ignore[arg-type]  # checked above
        checkpoint=checkpoint,
        proof=proof,
        tell=lambda doing: console.print(doing, highlight=False),
    )
    for line in done.lines():
        typer.echo(line)
    typer.echo(f"written: {done.folder}")
    raise typer.Exit(1 if done.failed else 0)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    repository: Annotated[str, typer.Argument(help="USER/NAME on the Hugging Face hub.")],
    dry_run: Annotated[bool, typer.Option(help="List the files and send nothing.")] = False,
    public: Annotated[bool, typer.Option(help="Let everybody see a new repository.")] = False,
    unproven: Annotated[bool, typer.Option(help="Send it without a proof.")] = False,
) -> None:
    """Send an exported folder to the Hugging Face hub."""
    from foveal.deliver.push import plan_push
    from foveal.deliver.push import push as push_folder

    files = plan_push(folder, unproven)
    for file in files:
        typer.echo(f"{file.size_bytes:>15,}  {file.name}")
    total = sum(file.size_bytes for file in files)
    typer.echo(f"{total:>15,}  bytes in {len(files)} files")
    if dry_run:
        typer.echo(f"dry run, nothing sent to {repository}")
        return
    address = push_folder(folder, repository, private=not public, unproven=unproven)
    typer.echo(f"sent: {address}")


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or hub name.")],
    words: Annotated[list[str], typer.Argument(help="Picture files, then the question.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
) -> None:
    """Answer one question about one or several pictures, in the terminal."""
    import json

    from foveal.deliver.answerer import load_answerer
    from foveal.run import quiet_libraries

    *images, question = words
    quiet_libraries()
    answer = load_answerer(model, max_new_tokens=max_new_tokens).answer(images, question)
    if as_json:
        asked = {"model": model, "images": images, "question": question, "answer": answer}
        typer.echo(json.dumps(asked, ensure_ascii=False))
    else:
        typer.echo(answer)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or hub name.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option(help="For clients to bear.", envvar="FOVEAL_TOKEN")
    ] = None,
    name: Annotated[str | None, typer.Option(help="That clients ask for.")] = None,
    before: Annotated[bool, typer.Option(help="Also the model before tuning, if here.")] = True,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from public web addresses.")
    ] = False,
    places: Annotated[int, typer.Option(help="Requests at a time; more get 429.", min=1)] = 64,
    answers: Annotated[int, typer.Option(help="Answers written at a time.", min=1)] = 16,
    body_megabytes: Annotated[int, typer.Option(help="Largest request; more get 413.")] = 32,
    megapixels: Annotated[int, typer.Option(help="Pictures of a request; more get 413.")] = 100,
) -> None:
    """Answer over HTTP, in OpenAI's protocol, and show a page to try it.

    Exit status: 0 stopped by SIGTERM, 2 something to mend, 130 stopped by Ctrl-C.
    """
    try:
        from foveal.deliver.serve.app import Settings
        from foveal.deliver.serve.limits import Limits
        from foveal.deliver.serve.server import serve as serve_model
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'foveal[serve]'") from error
    from foveal.run import free_memory, quiet_libraries

    quiet_libraries()
    limits = Limits(
        places=places,
        running=answers,
        body_bytes=body_megabytes * 2**20,
        picture_bytes=body_megabytes * 2**20,
        pixels=megapixels * 10**6,
    )
    interrupted = serve_model(
        model,
        host,
        port,
        Settings(token or None, allow_urls, limits),
        name=name,
        with_before=before,
        free_memory=free_memory,
        tell=lambda line: typer.echo(line, err=True),
    )
    raise typer.Exit(INTERRUPTED if interrupted else 0)


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
