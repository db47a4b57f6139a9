"""The command line: one command per verb, each a few lines around one function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from foveal import __version__
from foveal.errors import ConfigError, UserError

if TYPE_CHECKING:
    from foveal.run import Outcome

INTERRUPTED = 130

UsageError: Any = typer.BadParameter.__base__
"""What a wrong command line raises; typer names only this child of it."""

NOT_A_PLACE = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What a file where a folder should be, or the reverse, raises."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"foveal {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
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
    recipe: Annotated[
        Path | None, typer.Option(help="YAML recipe; its model counts the tokens.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="File for the good lines.")] = None,
    show: Annotated[int, typer.Option(help="Problems to print; the rest are counted.")] = 20,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Check every example before a run: broken pictures, empty answers, wrong tags.

    Exit status: 0 all well, 1 problems found, 2 the file cannot be read.
    """
    from foveal.data.check import check_file

    count_tokens, max_tokens = None, None
    if recipe:
        from foveal.assemble import token_counter
        from foveal.config import load_recipe

        count_tokens, max_tokens = token_counter(load_recipe(recipe), data)
    problems = check_file(
        data,
        images,
        decode=not headers_only,
        workers=workers,
        other_splits=tuple(other or ()),
        count_tokens=count_tokens,
        max_tokens=max_tokens,
        fix=fix,
    )
    for problem in islice(problems, show):
        typer.echo(f"{data}:{problem.line}: {problem.message}")
    for _ in problems:
        pass
    found = problems.summary
    typer.echo(f"{found.examples} examples, {found.images} pictures, problems: {found.problems}")
    if recipe:
        typer.echo(f"{found.tokens:,} tokens")
    for label, count in found.labels.most_common(20):
        typer.echo(f"  {label}: {count}")
    if len(found.labels) > 20:
        typer.echo(f"  and {len(found.labels) - 20} more labels")
    if fix:
        typer.echo(f"{fix}: {found.lines - found.bad_lines} good lines")
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(help="Examples: JSONL, Parquet or hf://...")],
    recipe: Annotated[Path, typer.Option(help="YAML recipe they shall be trained by.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("inspection.html"),
    number: Annotated[int, typer.Option(help="Examples to show.", min=1)] = 20,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recipe.")
    ] = None,
) -> None:
    """Show examples as the model will see them: crops, tokens, what is learnt, rows of a step."""
    from foveal.config import load_recipe

    loaded = load_recipe(recipe, (*(overrides or ()), f"data.train={data}"))
    from foveal.assemble import inspect_data

    typer.echo(f"inspection: {inspect_data(loaded, out, number)}")


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
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN_OR_MODEL] DATA",
            help="Run folder, model folder or hub name; then a JSONL file of examples.",
        ),
    ],
    predictions: Annotated[
        Path | None, typer.Option(help="Score these answers; give DATA alone.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the scores.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    num_crops: Annotated[int | None, typer.Option(help="Most crops a picture.")] = None,
    answer: Annotated[
        Literal["auto", "generate", "choices"],
        typer.Option(help="Write answers, or choose the likeliest label of a closed set."),
    ] = "auto",
    choices: Annotated[str, typer.Option(help="Labels with commas, if the data has none.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
    tokens_per_batch: Annotated[int, typer.Option(help="Tokens held at once.", min=1)] = 16384,
    metrics: Annotated[str, typer.Option(help="Names with commas.")] = "accuracy,anls",
    precision: Annotated[
        Literal["float32", "bf16", "fp16"], typer.Option(help="Number format of the passes.")
    ] = "float32",
) -> None:
    """Answer and score examples; writes predictions.jsonl and scores.json.

    Killed, the same command goes on where it was; works under torchrun.
    """
    from rich.console import Console

    from foveal.config import EvaluateSettings

    settings = EvaluateSettings(
        answer=answer,
        choices=tuple(choices.split(",") if choices else ()),
        max_new_tokens=max_new_tokens,
        tokens_per_batch=tokens_per_batch,
        metrics=tuple(metrics.split(",")),
    )
    console = Console(stderr=True)
    if predictions:
        from foveal.evaluate.evaluation import score_made_elsewhere

        (data,) = named(places, "DATA")
        folder, scores = score_made_elsewhere(predictions, Path(data), out, settings, console)
    else:
        from foveal.assemble import quiet_libraries
        from foveal.deliver.opening import open_model
        from foveal.evaluate.evaluation import evaluate_model
        from foveal.train.engine import make_engine

        model, data = named(places, "RUN_OR_MODEL", "DATA")
        quiet_libraries()
        engine = make_engine("auto", precision)
        loaded = open_model(model, num_crops)
        loaded.model.to(engine.device)
        folder, scores = evaluate_model(
            loaded,
            model,
            Path(data),
            out,
            images=images,
            settings=settings,
            workers=engine,
            console=console if engine.is_main else Console(quiet=True),
        )
        if not engine.is_main:
            return
    for name, score in scores.items():
        typer.echo(
            f"{name}: {score.value:.3f}  [{score.low:.3f}, {score.high:.3f}]  n={score.count}"
        )
    typer.echo(f"written: {folder}")


def named(places: list[str], *names: str) -> list[str]:
    """Take as many arguments as there are names for them."""
    if len(places) != len(names):
        raise ConfigError(f"evaluate: {len(places)} arguments; give {' and '.join(names)}")
    return places


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
    from foveal.errors import ConfigError

    if dtype not in (None, "bf16", "fp16", "float32"):
        raise ConfigError(f"--dtype {dtype}: give bf16, fp16 or float32")
    from rich.console import Console

    from foveal.assemble import quiet_libraries
    from foveal.deliver.export import export_run

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

    from foveal.assemble import quiet_libraries
    from foveal.deliver.answerer import load_answerer

    *images, question = words
    quiet_libraries()
    answer = load_answerer(model).answer(images, question, max_new_tokens=max_new_tokens)
    if as_json:
        asked = {"model": model, "images": images, "question": question, "answer": answer}
        typer.echo(json.dumps(asked, ensure_ascii=False))
    else:
        typer.echo(answer)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Run, model or adapter folder, or hub name.")],
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
    body_megabytes: Annotated[int, typer.Option(help="Largest request; more get 413.", min=1)] = 32,
    megapixels: Annotated[
        int, typer.Option(help="Pictures of a request; more get 413.", min=1)
    ] = 100,
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
    from foveal.assemble import quiet_libraries
    from foveal.machine import free_memory

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


@app.command()
def recipes(
    explain: Annotated[bool, typer.Option(help="Write a recipe with every setting.")] = False,
) -> None:
    """List the published rows that can be run again, with their scores."""
    if explain:
        from foveal.explain import explain_settings

        typer.echo(explain_settings(), nl=False)
        return
    from foveal.config import load_recipe
    from foveal.reproduce import RECIPES, list_rows, published_scores, row_name

    for path in list_rows():
        recipe = load_recipe(path)
        scores = published_scores(recipe) or {"": 0.0}
        beside = ", ".join(f"{name} {value:.4f}" if name else "-" for name, value in scores.items())
        model = recipe.model.rpartition("/")[2]
        typer.echo(f"{row_name(path):32} {recipe.precision:6} {beside:24} {model}")
    typer.echo(f"in {RECIPES}; run one with `foveal reproduce NAME`")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A row that `foveal recipes` lists.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    source: Annotated[
        Path | None, typer.Option(help="The data set's files; none: from the hub.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; none: runs/NAME.")] = None,
) -> None:
    """Run a published row again: convert, check, evaluate, train, evaluate, compare."""
    from rich.console import Console

    from foveal.reproduce import reproduce as run_again

    place = out or Path("runs") / name
    for line in run_again(name, source, place, tuple(overrides or ()), Console(stderr=True)):
        typer.echo(line)


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

    from foveal.assemble import load_in_passing
    from foveal.config import load_recipe
    from foveal.plan.command import run_plan

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

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Run the command line; a mendable error becomes one line and exit status 2."""
    try:
        sys.exit(app(prog_name="foveal", standalone_mode=False))
    except UserError as error:
        _refuse(f"foveal: {error}")
    except UsageError as error:
        if said := error.format_message():  # nothing where the whole help was shown
            place = error.ctx.command_path if error.ctx else "foveal"
            _refuse(f"{place}: {said.rstrip('.')}; `{place} --help` shows how")
        sys.exit(2)
    except NOT_A_PLACE as error:
        _refuse(f"foveal: {error.filename}: {error.strerror}; give another place")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _refuse(line: str) -> NoReturn:
    typer.echo(line, err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
