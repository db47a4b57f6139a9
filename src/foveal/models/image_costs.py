"""What an image costs a family as it is published: tokens, and crops or patches of the tower.

The processors themselves counted them (`.ci/write_image_costs`), since only they know; here the
numbers are read.
"""

import json
from collections.abc import Iterator
from pathlib import Path

LETTER_PAGE = "letter page, 150 dpi"


def _read() -> tuple[dict[str, list[int]], dict[str, dict[str, list[list[int]]]]]:
    path = Path(__file__).with_suffix(".json")
    tree = json.loads(path.read_text(encoding="utf-8"))
    return tree["sizes"], tree["types"]


def letter_page_tokens() -> dict[str, int]:
    """Count the tokens of a page of 1275 x 1650 pixels, by model type."""
    sizes, types = _read()
    place = list(sizes).index(LETTER_PAGE)
    return {kind: one["tokens and crops"][place][0] for kind, one in types.items()}


def cost_table() -> Iterator[str]:
    """Write tokens / crops by type and size, as lines of Markdown."""
    sizes, types = _read()
    heads = [f"{name}<br>{width} x {height}" for name, (width, height) in sizes.items()]
    yield f"| published as | {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * len(heads)
    for kind, one in types.items():
        cells = [f"{tokens:,} / {crops:,}" for tokens, crops in one["tokens and crops"]]
        yield f"| `{kind}`: {one['of']} | {' | '.join(cells)} |"
