"""Commands on what was published: its rows run again, its way measured beside ours."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.front import app

PANEL = "The published recipe"


@app.command(rich_help_panel=PANEL)
def recipes(
    explain: Annotated[bool, typer.Option(help="Write a recipe with every setting.")] = False,
) -> None:
    """List the published rows that can be run again, with scores, and recipes of other models."""
    if explain:
        from foveal.manual import explain_settings

        typer.echo(explain_settings(), nl=False)
        return
    from foveal.config import load_recipe
    from foveal.published import (
        RECIPES,
        list_rows,
        list_starts,
        published_scores,
        row_name,
    )

    for path in (*list_rows(), *list_starts()):
        recipe = load_recipe(path)
        scores = published_scores(recipe).items()
        beside = ", ".join(f"{name} {value:.4f}" for name, value in scores) or "-"
        model = recipe.model.rpartition("/")[2]
        typer.echo(f"{row_name(path):32} {recipe.precision:6} {beside:24} {model}")
    typer.echo(
        f"in {RECIPES}; `foveal reproduce NAME` runs a row with a score, "
        "`foveal train FILE data.train=...` any of them"
    )


@app.command(rich_help_panel=PANEL)
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

    from foveal.published import reproduce_row

    place = out or Path("runs") / name
    for line in reproduce_row(name, source, place, tuple(overrides or ()), Console(stderr=True)):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
def bench(
    size: Annotated[str, typer.Option(help="tiny, half, standard or narrow.")] = "standard",
    rounds: Annotated[int, typer.Option(help="Turns of each way.", min=1)] = 3,
    strategies: Annotated[str, typer.Option(help="Names with commas.")] = "full,frozen_vision,lora",
    threads: Annotated[
        int | None, typer.Option(help="Processor threads; none: all.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure a training step beside the published recipe's way, on this machine."""
    from foveal_bench.timing import run_bench
    from rich.console import Console

    run_bench(size, rounds, tuple(strategies.split(",")), threads, as_json, Console())


@app.command(rich_help_panel="For whoever reads it all at once")
def manual(
    errors: Annotated[bool, typer.Option(help="List the messages of all errors.")] = True,
) -> None:
    """Print all commands, settings and errors in one text, as the code has them."""
    from typer.main import get_command

    from foveal.manual import write_manual

    typer.echo(write_manual(get_command(app), errors), nl=False)
