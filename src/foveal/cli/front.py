"""The command line as a whole: its entry, its exit statuses, its one-line errors."""

import sys
from typing import Annotated, Any, NoReturn

import typer

from foveal import __version__
from foveal.errors import UserError
from foveal.libraries import catch_remarks
from foveal.storage import FAILED_WRITES

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


def main() -> None:
    """Run the command line; a mendable error becomes one line and exit status 2."""
    catch_remarks()
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
    except OSError as error:
        if error.errno not in FAILED_WRITES:
            raise
        place = error.filename or "a file"
        _refuse(f"foveal: {place}: {error.strerror}; free space, or give another place")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _refuse(line: str) -> NoReturn:
    typer.echo(line, err=True)
    sys.exit(2)
