"""Files written whole or not at all, whatever stops the writing; an error names the file meant."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAILED_WRITES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
)
"""What the system says of a disk that is full or takes no more."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the place beside `path` to write to; it takes `path`'s place behind the block.

    Whatever breaks off the block leaves what stood there before.

    Raises:
        OSError: it cannot be written; names `path`, not the place beside it.
    """
    # Two processes may write one file, each its own copy of it.
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.filename in (None, str(beside)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; its folder is made if need be.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(path, text.encode())


def write_json(path: Path, tree: Any, indent: int | None = 1) -> None:
    """Write a tree of numbers, texts, lists and mappings, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(tree, indent=indent, ensure_ascii=False) + "\n")


def flush(path: Path) -> None:
    """See that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
