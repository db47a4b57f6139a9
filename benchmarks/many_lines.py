"""Makes up many lines about many pages, and encodes them in the time that a tenth of them takes.

Lines come in blocks: block b asks about the pages of `b.tar`, in the words of block 0, and ends
where a piece of the encoder does. So the pieces of block b are those of block 0 under other names
of examples and pages: `encode_renamed` makes the ones, then the others, and the encoder finds them
as a run does that was killed when it had encoded all. `check_renaming` encodes a small file in both
ways and compares what is written, byte by byte.
"""

import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from foveal.data.encoded import encoding
from foveal.data.encoded.column_files import KINDS, Texts, digest_of
from foveal.data.encoded.encoding import ABOUT, ChunkEncoder, Span
from foveal.data.encoded.packed import ExampleColumns
from foveal.data.images.archives import state_of
from foveal.data.parallel import parallel
from foveal.models.loading import find_family
from foveal.models.phi3_vision.tiny import write_tiny

QUESTIONS = 4
WORDS = (  # noqa: SIM905
    "what is the total amount on page invoice number date of name who signed this letter when was "
    "it printed where in table figure first second last"
).split()


def make_scale_model(folder: Path) -> Path:
    """Write a tiny model whose vocabulary suits the lines."""
    write_tiny(folder, 0, texts=[f"\n{' '.join(WORDS)}?\nAnswer briefly.", " ".join(WORDS)])
    return folder


def make_block(lines: int, whole_chunks: bool) -> bytes:
    """Make up the lines of block 0: so many, and as many more as a last piece takes."""
    choose, made = random.Random(0), list[bytes]()
    number = cut = end = 0
    while number < lines or (whole_chunks and cut != end):
        asked = " ".join(choose.choices(WORDS, k=choose.randint(8, 16)))
        turn = {
            "images": [f"0.tar/{number // QUESTIONS:07}.png"],
            "user": f"{asked}?\nAnswer briefly.",
            "assistant": " ".join(choose.choices(WORDS, k=choose.randint(1, 5))),
        }
        one = {"id": f"0-{number:07}", "source": "scale", "conversations": [turn]}
        made.append(f"{json.dumps(one)}\n".encode())
        number, end = number + 1, end + len(made[-1])
        cut = end if end > cut + encoding.CHUNK_BYTES else cut
    return b"".join(made)


def make_lines(folder: Path, lines: int, blocks: int = 1) -> Path:
    """Write lines and pages.

    Args:
        folder: to write to; pages go into tar files there.
        lines: of a block, at least.
        blocks: at most ten.
    """
    block = make_block(lines, blocks > 1)
    folder.mkdir(exist_ok=True)
    data = folder / f"{lines}x{blocks}.jsonl"
    with data.open("wb") as file:
        for number in range(blocks):
            name = b"%d" % number
            named = block.replace(b'["0.tar/', b'["%s.tar/' % name)
            file.write(named.replace(b'{"id": "0-', b'{"id": "%s-' % name))
    pages = -(-block.count(b"\n") // QUESTIONS)
    for number in range(blocks):
        _write_pages(folder / f"{number}.tar", pages)
    return data


def _write_pages(place: Path, pages: int) -> None:
    kinds = []
    for width in range(60, 260):
        content = BytesIO()
        Image.new("1", (width, 40)).save(content, "PNG")
        kinds.append(content.getvalue())
    with tarfile.open(place, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for page in range(pages):
            member = tarfile.TarInfo(f"{page:07}.png")
            member.size = len(kinds[page % 200])
            tar.addfile(member, BytesIO(kinds[page % 200]))
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold them all


def encode_block(encoder: ChunkEncoder, blocks: int, workers: int) -> list[Span]:
    """Encode the pieces of the first of so many blocks; returns where they are."""
    spans = encoder.examples().files[0].cut(encoding.CHUNK_BYTES)
    of_block = spans[: len(spans) // blocks]
    for _ in parallel(encoder, of_block, workers, 1):
        pass
    return of_block


def rename_chunks(encoder: ChunkEncoder, spans: Sequence[Span], blocks: int) -> Iterator[Span]:
    """Make the pieces of the other blocks from those of block 0."""
    length = spans[-1][1]
    for start, end in spans:
        arrays = encoder.read((start, end))
        for number in range(1, blocks):
            span = start + number * length, end + number * length
            np.savez(encoder.file(span), **_renamed(arrays, str(number)))
            yield span


def _renamed(arrays: dict[str, Any], block: str) -> dict[str, Any]:
    table = ExampleColumns.of_arrays(arrays)
    names = [f"{block}{name[1:]}" for name in table.ids]
    paths = [path.replace("/0.tar#", f"/{block}.tar#") for path in table.paths]
    digests = [digest_of(path.encode()) for path in paths]
    beginnings = bytearray()
    for example in range(len(table)):
        start = int(table.entries.offsets[example])
        begun = table.entries.values[start : start + int(table.beginning_entries[example])].copy()
        begun[begun < 0] = -1
        (own,) = table.images.take([example])
        beginnings += digest_of(begun.tobytes() + b"".join(digests[one] for one in own))
    count, first, same, states = json.loads(arrays[ABOUT].tobytes())
    named = {path.replace("/0.tar", f"/{block}.tar") for path in states}
    about = [count, first, same, {path: state_of(path) for path in named}]
    renamed = replace(
        table,
        ids=Texts.of(names),
        identities=np.frombuffer(
            b"".join(digest_of(name.encode(), 1) for name in names), np.uint64
        ),
        beginnings=np.frombuffer(beginnings, np.uint64).reshape(-1, 2),
        paths=Texts.of(paths),
        path_names=np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2),
    )
    return {**renamed.arrays(), ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}


def encode_renamed(data: Path, model: Path, cache: Path, blocks: int, workers: int) -> None:
    """Leave in a cache the pieces that a run finds which was killed when it had encoded all."""
    processor = _processor(model)
    kept = cache / encoding.ENCODED
    kept.mkdir(parents=True, exist_ok=True)
    place = encoding._place(kept, data, state_of(data), data.parent, processor, False)
    encoder = ChunkEncoder(
        data, cache, data.parent, processor, False, kept / f".{place.name}.pieces"
    )
    for _ in rename_chunks(encoder, encode_block(encoder, blocks, workers), blocks):
        pass


def _processor(model: Path) -> Any:
    return find_family(str(model)).load_processor(str(model), 4)


def check_renaming(model: Path) -> None:
    """Encode a small file in both ways.

    Raises:
        SystemExit: they differ.
    """
    usual = encoding.CHUNK_BYTES
    encoding.CHUNK_BYTES = 2**15
    try:
        with TemporaryDirectory() as name:
            folder = Path(name)
            data, made = make_lines(folder / "lines", 500, 3), []
            encode_renamed(data, model, folder / "renamed", 3, 1)
            for way in ("renamed", "encoded"):
                encoding.encode_file(data, _processor(model), data.parent, folder / way)
                (columns,) = (folder / way / encoding.ENCODED).glob(f"*/{KINDS}")
                made.append({one.name: one.read_bytes() for one in columns.parent.iterdir()})
            if made[0] != made[1]:
                raise SystemExit("renamed pieces are not those that encoding writes")
    finally:
        encoding.CHUNK_BYTES = usual
