"""Names of files and folders -> the split that they belong to."""

import re
from collections.abc import Sequence

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
"""Word in a name -> split."""


def split_of(stem: str, folders: Sequence[str] = ()) -> str | None:
    """Find the split that a file's name speaks of, else the nearest folder's; none: neither does.

    `train-00000-of-00002` and `llava_val` name theirs, `latest` does not.
    """
    for name in (stem, *reversed(folders)):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None
