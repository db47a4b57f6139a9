"""Commands on data: into examples, checked, looked at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from foveal.cli.front import app

if TYPE_CHECKING:
    from foveal.config import Columns as NamedColumns

PANEL = "Data"

BETWEEN_TURNS = (
    "between two, training writes <|end|>, <|endoftext|> and a new <s>, as the published recipe "
    "does; data.turns=template writes <|end|> alone, as the published chat template does"
)

Columns = Annotated[
    str, typer.Option(help="Columns of a table, if not usual: question=ask,answer=reply.")
]


class _ListsKinds(TyperCommand):
    """Ends its help with the layouts there are; they are asked for no sooner."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from foveal.data.convert import KINDS

        self.epilog = f"Kinds: {', '.join(KINDS)}."
        super().format_help(ctx, formatter)


@app.command(rich_help_panel=PANEL, cls=_ListsKinds)
def convert(
    kind: Annotated[str, typer.Argument(help="Layout of the source; all are listed below.")],
    source: Annotated[Path, typer.Argument(help="Folder, zip, file of rows, or hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to fill: images/ and JSONL files.")],
    frames: Annotated[int, typer.Option(help="Pictures a clip.", min=1)] = 8,
    keep_clips: Annotated[
        bool, typer.Option("--keep-clips", help="Leave clips whole; a run takes their frames.")
    ] = False,
    classes: Annotated[str, typer.Option(help="first10, all, or names with commas.")] = "all",
    split: Annotated[int, typer.Option(help="Official split of UCF-101.", min=1, max=3)] = 1,
    question: Annotated[str | None, typer.Option(help="What to ask of each picture.")] = None,
    columns: Columns = "",
    seed: Annotated[int, typer.Option(help="Start of random choices.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that decode.", min=0)] = 2,
) -> None:
    """Turn a data set in its published layout into pictures and JSONL files."""
    from foveal.data.convert import Options
    from foveal.data.convert import convert as convert_data

    options = Options(
        num_frames=frames,
        keep_clips=keep_clips,
        classes=classes,
        official_split=split,  # type: ignore[arg-type]  # the option's range
        question=question,
        seed=seed,
        columns=read_columns(columns),
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


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar that is told how much is done, and of how much."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command(rich_help_panel=PANEL)
def check(
    data: Annotated[Path, typer.Argument(help="Examples: JSONL, Parquet or hf://...")],
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    other: Annotated[
        list[Path] | None, typer.Option(help="Split to share no picture with.")
    ] = None,
    headers_only: Annotated[bool, typer.Option(help="Do not decode pictures: faster.")] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML recipe; its model counts the tokens.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="File for the good lines.")] = None,
    show: Annotated[int, typer.Option(help="Problems to print; the rest are counted.", min=0)] = 20,
    workers: Annotated[int, typer.Option(help="Processes.", min=0)] = 2,
    columns: Columns = "",
) -> None:
    """Check every example before a run: broken pictures, empty answers, wrong tags.

    Exit status: 0 all well, 1 problems found, 2 the file cannot be read.
    """
    from tempfile import TemporaryDirectory

    from foveal.config import DataSettings, load_recipe
    from foveal.data.checking.check import check_file
    from foveal.data.convert.unpack import find_rows, unpacked
    from foveal.data.images.frames import FrameChoice
    from foveal.data.images.objects import image_base
    from foveal.errors import ConfigError

    loaded = load_recipe(recipe) if recipe else None
    named = loaded.data.columns if loaded and not columns else read_columns(columns)
    with TemporaryDirectory() as scratch:
        # A file of one example a line is checked as it lies, whatever is wrong with it.
        file = data if data.is_file() and find_rows(data) is None else None
        if file is None and fix:
            raise ConfigError(
                f"{data}: --fix writes lines of a JSONL file; make one first: foveal convert table"
            )
        file = file or unpacked(data, Path(scratch), named)
        count_tokens, max_tokens, choice = None, None, FrameChoice()
        if loaded:
            from foveal.data.turn_processor import frame_choice_of
            from foveal.inputs import token_counter

            choice = frame_choice_of(loaded.data)

            count_tokens, max_tokens = token_counter(loaded, file)
        problems = check_file(
            file,
            image_base(loaded.data if loaded else DataSettings(), images),
            decode=not headers_only,
            workers=workers,
            other_splits=tuple(other or ()),
            count_tokens=count_tokens,
            max_tokens=max_tokens,
            frame_choice=choice,
            pairs=bool(loaded and loaded.learns_pairs and data != loaded.data.validation),
            fix=fix,
        )
        for problem in islice(problems, show):
            typer.echo(f"{data}:{problem.line}: {problem.message}")
        for _ in problems:
            pass
    found = problems.summary
    for warning in found.first_warnings[:show]:
        typer.echo(f"{data}:{warning.line}: warning: {warning.message}")
    if found.warnings > show:
        typer.echo(f"and {found.warnings - show} more warnings")
    if found.several_turns and not (loaded and loaded.data.turns == "template"):
        typer.echo(f"examples of several turns: {found.several_turns}; {BETWEEN_TURNS}")
    pairs = f"{found.pairs} pairs of answers, " * bool(found.pairs)
    typer.echo(
        f"{found.examples} examples, {pairs}{found.images} pictures, problems: {found.problems}"
    )
    if recipe:
        typer.echo(f"{found.tokens:,} tokens")
    for label, count in found.labels.most_common(20):
        typer.echo(f"  {label}: {count}")
    if len(found.labels) > 20:
        typer.echo(f"  and {len(found.labels) - 20} more labels")
    if fix:
        typer.echo(f"{fix}: {found.lines - found.bad_lines} good lines")
    raise typer.Exit(1 if found.problems else 0)


def read_columns(written: str) -> "NamedColumns":
    """Read `question=ask,answer=reply`.

    Raises:
        ConfigError: it is written otherwise, or holds what no column can.
    """
    from foveal.config import Columns as NamedColumns
    from foveal.errors import ConfigError

    pairs = [pair.partition("=") for pair in written.split(",") if pair.strip()]
    known = tuple(NamedColumns.model_fields)
    for what, equals, name in pairs:
        if what.strip() not in known or not equals or not name.strip():
            raise ConfigError(
                f"--columns {written}: write {known[0]}=NAME, with commas between; "
                f"a column holds {', '.join(known)}"
            )
    return NamedColumns(**{what.strip(): name.strip() for what, _, name in pairs})


@app.command(rich_help_panel=PANEL)
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
    from foveal.inputs import inspect_data

    typer.echo(f"inspection: {inspect_data(loaded, out, number)}")
