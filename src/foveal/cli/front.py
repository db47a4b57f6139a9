"""The command line as a whole: its entry, its exit statuses, its one-line errors."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import expanduser
from time import monotonic
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from foveal import __version__
from foveal.errors import UserError
from foveal.libraries import catch_remarks
from foveal.storage import FAILED_WRITES, AtWorkError

INTERRUPTED = 130

UsageError: Any = typer.BadParameter.__base__
"""What a wrong command line raises; typer names only this child of it."""

NOT_A_PLACE = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What a file where a folder should be, or the reverse, raises."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


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


STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What schedulers and terminals that close send; Ctrl-C is Python's own affair."""

ONE_REQUEST_SECONDS = 1.0
"""Signals so near each other are one: `timeout` sends its own to the process and to its group."""


LOST_AGAIN_SECONDS = 0.05
"""When an interruption comes again that fell into code which lets none through, as `__del__`."""


@contextmanager
def _signals_that_interrupt() -> Iterator[list[int]]:
    """Let a request to end break off the work as Ctrl-C does, so that no part of it stays behind.

    Yields the signals that came. One that somebody had ignored, as nohup does, stays ignored.
    """
    received: list[int] = []
    latest = -ONE_REQUEST_SECONDS

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal latest
        if number != signal.SIGALRM:
            before, latest = latest, monotonic()
            if latest - before < ONE_REQUEST_SECONDS:
                return
            received.append(number)
        raise KeyboardInterrupt

    def not_raised(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, LOST_AGAIN_SECONDS)
        else:
            told(lost)

    former = {
        one: signal.signal(one, interrupt)
        for one in (*STOPS, signal.SIGALRM)
        if signal.getsignal(one) == signal.SIG_DFL
    }
    told, sys.unraisablehook = sys.unraisablehook, not_raised
    try:
        yield received
    finally:
        sys.unraisablehook = told
        for one, handler in former.items():
            signal.signal(one, handler)


@contextmanager
def _interruptions_unwrapped() -> Iterator[None]:
    """Let an interruption through that was made an error, as Python 3.11 does in `__set_name__`."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__
        while cause and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        if cause:
            raise cause from None
        raise


def main() -> None:
    """Run the command line; a mendable error becomes one line and exit status 2.

    A signal that asked for an end gives the status that a shell gives it, 128 and its number.
    """
    catch_remarks()
    with _signals_that_interrupt() as received:
        status = _run()
    if received and status == INTERRUPTED:
        typer.echo(f"foveal: stopped by {signal.Signals(received[0]).name}", err=True)
        status = 128 + received[0]
    # A module into whose `exec` an interruption fell would end by SIGINT; the next one forgets it.
    exec("")
    sys.exit(status)


def _run() -> Any:
    try:
        words = [_with_home(word) for word in sys.argv[1:]]
        with _interruptions_unwrapped():
            return app(words, prog_name="foveal", standalone_mode=False)
    except UserError as error:
        _refuse(f"foveal: {error}")
    except UsageError as error:
        if said := error.format_message():  # nothing where the whole help was shown
            place = error.ctx.command_path if error.ctx else "foveal"
            _refuse(f"{place}: {said.rstrip('.')}; {_remedy(error, place)}")
        return 2
    except AtWorkError as error:
        _refuse(f"foveal: {error.filename}: {error.strerror}; let it end, or give another place")
    except NOT_A_PLACE as error:
        _refuse(f"foveal: {error.filename}: {error.strerror}; give another place")
    except OSError as error:
        if error.errno not in FAILED_WRITES:
            raise
        place = error.filename or "a file"
        _refuse(f"foveal: {place}: {error.strerror}; free space, or give another place")
    except KeyboardInterrupt:
        return INTERRUPTED


def _remedy(error: Any, place: str) -> str:
    """Say how a wrong command line is written; settings are no options, and bear no dashes."""
    option = getattr(error, "option_name", "").lstrip("-")
    of_command = error.ctx.command.params if error.ctx else ()
    takes_settings = any(one.opts == ["overrides"] for one in of_command)
    # Any short word is near `--help`.
    if option and takes_settings and not {*(error.possibilities or ())} - {"--help"}:
        from foveal.config import nearest_setting

        if setting := nearest_setting(option.replace("-", "_").split(".")):
            return f"write {setting}=..., without dashes"
    return f"`{place} --help` shows how"


def _with_home(word: str) -> str:
    """Put the home in for a `~`, as shells do before a word but not behind `--option=`."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + expanduser(value)


def _refuse(line: str) -> NoReturn:
    typer.echo(line, err=True)
    sys.exit(2)
