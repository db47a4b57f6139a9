"""Commands of learning: the demo, what a run will cost, the run, its scores and its page."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.front import INTERRUPTED, app
from foveal.errors import ConfigError

if TYPE_CHECKING:
    from foveal.evaluate.intervals import Score
    from foveal.run import Outcome

PANEL = "Learning"


@app.command(rich_help_panel=PANEL)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run and report.")] = Path("runs/demo"),
    family: Annotated[
        str, typer.Option(help="Of the tiny model: phi3_v by itself, qwen3_vl, smolvlm.")
    ] = "",
) -> None:
    """Train a tiny model on real bundled pictures, in minutes, and write a report."""
    from rich.console import Console

    from foveal.demo.walk import GPU_COMMAND, run_demo

    announce(run_demo(out, Console(stderr=True), family))
    typer.echo(f"On GPUs, with your own data:\n  {GPU_COMMAND}")


@app.command(rich_help_panel=PANEL)
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
    from foveal.inputs import check_recipe, load_in_passing
    from foveal.plan.command import run_plan

    loaded = load_recipe(recipe, tuple(overrides or ()))
    check_recipe(loaded)  # as a run does
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


@app.command(rich_help_panel=PANEL)
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    fresh: Annotated[bool, typer.Option(help="Start anew; the old run is kept aside.")] = False,
) -> None:
    """Train a recipe; goes on by itself where a checkpoint stands in the run folder.

    Exit status: 0 done (or asked to stop by SIGTERM, SIGUSR1 or SIGHUP, with a checkpoint), 1 done
    but no weight has moved, 2 something to mend, 130 interrupted, with a checkpoint.
    """
    from foveal.config import load_recipe

    loaded = load_recipe(recipe, tuple(overrides or ()))
    try:
        from rich.console import Console

        from foveal.run import TrainingRun

        run = TrainingRun(loaded, Console(stderr=True), fresh)
    except KeyboardInterrupt:  # from then on the run itself sees it
        typer.echo("Stopped before the first step; the same command begins again.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    announce(run.go(), run.engine.is_main)


def announce(outcome: "Outcome", is_main: bool = True) -> None:
    """Say how a run ended; one that was interrupted or learnt nothing has its own exit status.

    Of several processes the main one speaks, and all end alike.
    """
    import signal

    if is_main:
        _tell_outcome(outcome)
    if outcome.stopped:
        raise typer.Exit(INTERRUPTED if outcome.stopped.signal == signal.SIGINT else 0)
    if not outcome.has_learnt:
        raise typer.Exit(1)


def _tell_outcome(outcome: "Outcome") -> None:
    if outcome.stopped:
        typer.echo(
            f"Stopped at step {outcome.stopped.step}; the same command goes on from there.",
            err=True,
        )
        return
    for name, score in (outcome.after or {}).items():
        before = (outcome.before or {}).get(name)
        typer.echo(f"{_with_ends(name, score)}{_was(before)}")
    if outcome.after:
        _announce_pairs(outcome.run / "evaluation" / "after", outcome.run / "evaluation" / "before")
    whole = outcome.run / "final"
    typer.echo(f"model:  {whole if whole.exists() else outcome.run / 'adapter'}")
    typer.echo(f"report: {outcome.report}")
    if not outcome.has_learnt:
        typer.echo(
            f"foveal: no weight has moved in {outcome.steps} steps: the rate was too small, or no "
            "step was finite (incidents.jsonl); train longer, or raise train.learning_rate",
            err=True,
        )


@app.command(rich_help_panel=PANEL)
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
    num_crops: Annotated[int | None, typer.Option(help="Most crops a picture.", min=1)] = None,
    boxes: Annotated[
        Literal["pixels", "thousandths"] | None,
        typer.Option(help="What numbers of boxes in the data count; of a run: as in training."),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Most frames a clip.", min=1)] = None,
    frames_per_second: Annotated[
        float | None, typer.Option(help="Frames for each second of a clip.")
    ] = None,
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

    if frames_per_second is not None and not frames_per_second > 0:
        raise ConfigError(f"--frames-per-second {frames_per_second:g}: give more than 0")
    labels = tuple(choices.split(",") if choices else ())
    settings = EvaluateSettings(
        answer=answer,
        choices=labels,
        max_new_tokens=max_new_tokens,
        tokens_per_batch=tokens_per_batch,
        metrics=tuple(metrics.split(",")),
    )
    console = Console(stderr=True)
    if settings.choices != labels:
        typer.echo(f"choices, without what stands around them: {settings.choices}", err=True)
    if predictions:
        from foveal.evaluate.evaluation import score_made_elsewhere

        (data,) = named(places, "DATA")
        folder, scores = score_made_elsewhere(predictions, Path(data), out, settings, console)
    else:
        from foveal.deliver.open import open_model
        from foveal.evaluate.evaluation import evaluate_model
        from foveal.inputs import quiet_libraries
        from foveal.train.engines import make_engine

        model, data = named(places, "RUN_OR_MODEL", "DATA")
        quiet_libraries()
        engine = make_engine("auto", precision)
        loaded = open_model(model, num_crops)
        if boxes:
            loaded.processor.boxes = boxes
        given = {"most": frames, "per_second": frames_per_second}
        loaded.processor.frame_choice = replace(
            loaded.processor.frame_choice, **{name: one for name, one in given.items() if one}
        )
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
        typer.echo(f"{_with_ends(name, score)}  n={score.count}")
    _announce_pairs(folder)
    typer.echo(f"written: {folder}")


def _announce_pairs(folder: Path, before: Path | None = None) -> None:
    """Say how likely the answers of pairs are, if an evaluation compared some."""
    from foveal.evaluate.kept import PREDICTIONS
    from foveal.evaluate.prediction import read_predictions
    from foveal.report.scores import pair_rows

    now, then = (
        read_predictions(one / PREDICTIONS) if one and (one / PREDICTIONS).exists() else []
        for one in (folder, before)
    )
    for row in pair_rows(then, now):
        typer.echo(f"{_with_ends(row.metric, row.after)} nats{_was(row.before)}")


def _with_ends(name: str, score: "Score") -> str:
    return f"{name}: {score.value:.3f}  [{score.low:.3f}, {score.high:.3f}]"


def _was(before: "Score | None") -> str:
    return f"  (before {before.value:.3f})" if before else ""


def named(places: list[str], *names: str) -> list[str]:
    """Take as many arguments as there are names for them."""
    if len(places) != len(names):
        raise ConfigError(f"evaluate: {len(places)} arguments; give {' and '.join(names)}")
    return places


@app.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="The page.")] = None,
) -> None:
    """Write one self-contained page about a run, or comparing runs."""
    if len(runs) == 1:
        from foveal.report.report import write_report

        page = write_report(runs[0], out=out)
    else:
        from foveal.report.report import write_comparison

        page = write_comparison(runs, out or Path("comparison.html"))
    typer.echo(f"report: {page}")
