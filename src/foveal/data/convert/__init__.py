"""A data set in the layout it is published in -> our layout: images and JSONL files."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from foveal.config import Columns
from foveal.data.convert.annotations import (
    convert_coco,
    convert_docvqa,
    convert_funsd,
    convert_hateful_memes,
    convert_nlvr,
    convert_nlvr2,
    convert_sroie,
)
from foveal.data.convert.chats import convert_chats, convert_preferences
from foveal.data.convert.draft import Draft, LeftOutRow, Options
from foveal.data.convert.folders import convert_imagefolder, convert_ucf101, convert_video_folder
from foveal.data.convert.sources.source import Source
from foveal.data.convert.sources.tables import Hub, holds_columns
from foveal.data.convert.table import convert_columns, convert_table
from foveal.data.convert.write import Converted, Progress, claimed, write_drafts
from foveal.errors import DataError

__all__ = ["KINDS", "Converted", "Options", "Progress", "convert"]

LAYOUTS: Mapping[str, Callable[[Source, Options], Iterable[Draft | LeftOutRow]]] = {
    "coco": convert_coco,
    "docvqa": convert_docvqa,
    "funsd": convert_funsd,
    "hateful-memes": convert_hateful_memes,
    "imagefolder": convert_imagefolder,
    "llava": convert_chats,
    "nlvr": convert_nlvr,
    "nlvr2": convert_nlvr2,
    "preferences": convert_preferences,
    "sharegpt": convert_chats,
    "sroie": convert_sroie,
    "table": convert_table,
    "ucf101": convert_ucf101,
    "video-folder": convert_video_folder,
}

OF_COLUMNS: Mapping[str, Callable[[Source | Hub, Options], Iterable[Draft | LeftOutRow]]] = {
    "docvqa": partial(convert_columns, config="docvqa"),
    "hateful-memes": partial(convert_columns, config="hateful_memes"),
    "nlvr2": partial(convert_columns, config="nlvr2"),
    "preferences": convert_preferences,
    "table": convert_columns,
}
"""Layouts that are also read from the columns of Parquet files, or of a data set on the hub."""

KINDS = tuple(LAYOUTS)
"""Names of the layouts that we read."""


def convert(
    kind: str,
    source: Path,
    out: Path,
    *,
    options: Options | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Converted:
    """Convert a data set; run again after a kill, it goes on where it was.

    Writes OUT/images/<split>/..., OUT/<name>_<split>.jsonl and OUT/left_out.txt.

    Args:
        kind: one of KINDS.
        source: folder, zip, or folder of zips; for some kinds `owner/name` on the hub.
        out: a new folder, or one that the same conversion began to fill.
        options: choices, as far as they concern the kind.
        workers: processes that decode; 1: none beside this one.
        progress: called as examples are done.

    Raises:
        DataError: the source is not of that kind, or OUT holds something else.
        UserError: a package that the source needs is not installed.
        AtWorkError: another process fills OUT.
    """
    options = options or Options()
    if kind not in LAYOUTS:
        raise DataError(f"{kind}: unknown kind of data set; give one of {', '.join(KINDS)}")
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out}: lies inside the source; give a folder elsewhere")
    place: Source | Hub
    if kind in OF_COLUMNS and not source.exists() and len(source.parts) == 2:
        place = Hub(source.as_posix())
    else:
        place = Source(source)
    layouts: Mapping[str, Any] = (
        OF_COLUMNS if kind in OF_COLUMNS and holds_columns(place) else LAYOUTS
    )
    drafts = layouts[kind](place, options)
    columns = options.columns.model_dump_json(exclude_defaults=True)
    # What is not among the options' words: a folder that was begun before they were still goes on.
    named = {} if options.columns == Columns() else {"columns": columns}
    named |= {"clips": "whole"} if options.keep_clips else {}
    fingerprint = place.fingerprint()  # walks the source
    left_out = [
        LeftOutRow(name, "a link out of the source, or to a folder") for name in place.links_out
    ]
    reads = (LAYOUTS[kind].__doc__ or "another layout").partition("\n")[0]
    with claimed(out, kind=kind, options=repr(options), source=fingerprint, **named):
        return write_drafts(
            drafts,
            out,
            kind,
            nothing=f"{source} holds none of what {kind} reads: {reads}",
            left_out=left_out,
            workers=workers,
            progress=progress,
        )
