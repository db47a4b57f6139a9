"""A folder written beside its place -> in its place, on the disk, whole or not at all."""

import shutil
from pathlib import Path

from foveal.errors import RunError
from foveal.storage import flush


def beside(place: Path) -> Path:
    """Name the folder to fill; nothing takes a name with a dot before it for a finished one."""
    return place.with_name(f".{place.name}.part")


def keep_folder(place: Path) -> None:
    """Flush what was written beside `place`, and put it there.

    Raises:
        OSError: it cannot be written; what stood there may be gone, but nothing is torn.
    """
    written = beside(place)
    for path in (*written.rglob("*"), written):
        flush(path)
    if place.exists():
        drop_folder(place)
    written.rename(place)
    flush(place.parent)


def drop_folder(place: Path) -> None:
    """Delete a folder so that a kill on the way leaves none that looks whole."""
    gone = place.with_name(f".{place.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    place.rename(gone)
    shutil.rmtree(gone)


def drop_parts(run: Path) -> None:
    """Take away what a run that was killed while it wrote a file has left beside it."""
    for folder in (run, *run.glob("evaluation/*")):
        for part in folder.glob(".*.part"):
            if part.is_file():
                part.unlink(missing_ok=True)


def make_folder(run: Path) -> None:
    """See that a run has its folder before anything is paid for.

    Raises:
        RunError: it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"run={run}: {error.strerror}; give a folder to write to") from error


def set_aside(run: Path) -> None:
    """Keep a former run under another name."""
    if not run.exists():
        return
    number = 1
    while (kept := run.with_name(f"{run.name}.before-{number}")).exists():
        number += 1
    run.rename(kept)
