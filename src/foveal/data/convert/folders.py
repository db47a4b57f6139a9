"""Folders named after classes, of pictures or clips (UCF-101 among them) -> drafts."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from random import Random

from foveal.data.convert.draft import TWIN, Clip, Draft, DraftImage, LeftOutRow, Options
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.splits import SPLITS
from foveal.data.example import Turn
from foveal.data.images.frames import CLIP_ENDINGS
from foveal.errors import DataError

PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".png", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)


def convert_imagefolder(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """Pictures in `<class>/` or `<split>/<class>/`; without splits, part of each class is `val`."""
    return _class_folders(source, PICTURES, options)


def convert_video_folder(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """Clips in `<class>/` or `<split>/<class>/`; without splits, part of each class is `val`."""
    return _class_folders(source, CLIP_ENDINGS, options)


def convert_ucf101(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """UCF-101 with its lists, or a subset of it in `<split>/<class>/`.

    The lists know train and test; `val` is taken from train by whole groups, since clips of a
    group are cut from one film and look alike.
    """
    train = source.match(f"trainlist0{options.official_split}.txt")
    test = source.match(f"testlist0{options.official_split}.txt")
    if not train or not test:
        return convert_video_folder(source, options)
    there = [entry for entry in source.entries if entry.suffix in CLIP_ENDINGS]
    clips = {entry.last_name: entry for entry in reversed(there)}
    drafts: list[Draft | LeftOutRow] = [
        LeftOutRow(str(entry), TWIN) for entry in there if clips[entry.last_name] != entry
    ]
    listed = _read_list(train[0], "train") | _read_list(test[0], "test")
    index = source.match("classInd.txt")
    names = (
        [line.split()[-1] for line in index[0].read_text().splitlines() if line.split()]
        if index
        else []
    )
    classes = choose_classes(
        names or sorted({name.partition("/")[0] for name in listed}), options.classes
    )

    groups = {group_of(name) for name, split in listed.items() if split == "train"}
    held_out = choose_groups(groups, options.validation_fraction, options.seed)
    for name, split in listed.items():
        class_name, file = name.partition("/")[0], _last(name)
        entry = clips.pop(file, None)
        if class_name not in classes:
            if entry:
                drafts.append(LeftOutRow(str(entry), "class not chosen"))
        elif entry is None:
            drafts.append(LeftOutRow(name, "named by a list, but not there"))
        else:
            moved = "val" if split == "train" and group_of(name) in held_out else split
            folder = f"{moved}/{class_name}"
            drafts.append(_clip(entry, folder, entry.stem, class_name, classes, options))
    strays = [LeftOutRow(str(entry), "in no list of this split") for entry in clips.values()]
    return sorted(drafts, key=_reading_order) + strays


def _read_list(file: Entry, split: str) -> dict[str, str]:
    """Read lines like `Archery/v_Archery_g01_c01.avi 3`."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: split for line in lines if line}


def _reading_order(draft: Draft | LeftOutRow) -> str:
    if isinstance(draft, LeftOutRow):
        return draft.name
    return (*draft.turns[0].images, *draft.turns[0].videos)[0]


@dataclass(frozen=True)
class _Placed:
    """A file and where it stands."""

    entry: Entry
    split: str
    """Empty: the source has none."""

    class_name: str
    below: tuple[str, ...]
    """Folders between the class and the file."""


def _class_folders(
    source: Source, suffixes: Sequence[str], options: Options
) -> list[Draft | LeftOutRow]:
    entries = [entry for entry in source.entries if entry.suffix in suffixes]
    if not entries:
        raise DataError(f"{source.path}: no file that ends in {', '.join(suffixes)}")
    drafts: list[Draft | LeftOutRow] = [
        LeftOutRow(str(entry), f"of another kind ({entry.suffix or 'no ending'})")
        for entry in source.entries
        if entry.suffix not in suffixes
    ]
    # A class may itself be called "train", so splits count only where classes stand below them.
    with_splits = any(_below_a_split(entry) for entry in entries)
    outer = 0 if with_splits else _outer_folders(entries)
    placed: list[_Placed] = []
    for entry in entries:
        found = _below_a_split(entry) if with_splits else ("", entry.folders[outer:])
        if not found or not found[1]:
            drafts.append(LeftOutRow(str(entry), "in no class folder"))
        else:
            split, (class_name, *below) = found
            placed.append(_Placed(entry, split, class_name, tuple(below)))
    classes = choose_classes(sorted({one.class_name for one in placed}), options.classes)
    held_out = set() if with_splits else _held_out(placed, options)
    taken: set[str] = set()
    for one in placed:
        if one.class_name not in classes:
            drafts.append(LeftOutRow(str(one.entry), "class not chosen"))
            continue
        apart = (one.class_name, group_of(one.entry.name)) in held_out
        folder = "/".join([one.split or ("val" if apart else "train"), one.class_name, *one.below])
        same_name = f"{folder}/{one.entry.stem}" in taken  # a.png beside a.jpg
        taken.add(f"{folder}/{one.entry.stem}")
        if suffixes is CLIP_ENDINGS:
            stem = one.entry.last_name if same_name else one.entry.stem
            drafts.append(_clip(one.entry, folder, stem, one.class_name, classes, options))
        else:
            drafts.append(_picture(one.entry, folder, one.class_name, classes, options))
    return drafts


def _below_a_split(entry: Entry) -> tuple[str, tuple[str, ...]] | None:
    for position, folder in enumerate(entry.folders[:-1]):
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()], entry.folders[position + 1 :]
    return None


def _outer_folders(entries: Sequence[Entry]) -> int:
    """Count the folders around all classes, as a zip has them; one class alone has none."""
    levels = zip(*(entry.folders for entry in entries), strict=False)
    around = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
    classes = {entry.folders[around] for entry in entries if len(entry.folders) > around}
    return around if len(classes) > 1 else max(around - 1, 0)


def _held_out(placed: Sequence[_Placed], options: Options) -> set[tuple[str, str]]:
    groups: dict[str, set[str]] = {}
    for one in placed:
        groups.setdefault(one.class_name, set()).add(group_of(one.entry.name))
    return {
        (class_name, group)
        for class_name, names in groups.items()
        for group in choose_groups(
            names, options.validation_fraction, f"{options.seed}/{class_name}"
        )
    }


def group_of(name: str) -> str:
    """Name what a file must not be parted from: the film of `v_Archery_g07_c02.avi` is 07."""
    group = re.search(r"_g(\d+)_c\d+\.\w+$", name)
    return group[1] if group else name


def choose_groups(groups: Iterable[str], fraction: float, seed: int | str) -> set[str]:
    """Draw a share of groups: at least one where there are several, never all."""
    names = sorted(groups)
    if fraction <= 0 or len(names) < 2:
        return set()
    number = min(max(1, round(fraction * len(names))), len(names) - 1)
    return set(Random(seed).sample(names, number))


def choose_classes(classes: Sequence[str], wish: str) -> tuple[str, ...]:
    """Choose `all`, `first10` (any number), or `A,B,C`.

    Raises:
        DataError: there is no class of that name.
    """
    if wish == "all":
        return tuple(classes)
    if first := re.fullmatch(r"first(\d+)", wish):
        return tuple(classes[: int(first[1])])
    chosen = tuple(name.strip() for name in wish.split(",") if name.strip())
    for name in chosen:
        if name not in classes:
            close = get_close_matches(name, classes, n=1)
            raise DataError(f"no class {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
    return chosen


def _clip(
    entry: Entry,
    folder: str,
    stem: str,
    class_name: str,
    classes: Sequence[str],
    options: Options,
) -> Draft:
    if options.keep_clips:
        whole = (f"{folder}/{stem.removesuffix(entry.suffix)}{entry.suffix}",)
        turn = _question("video", (), class_name, classes, options, clips=whole)
        return Draft(_split_in(folder), (turn,), (Clip(entry, whole, stays_whole=True),))
    targets = tuple(f"{folder}/{stem}.{k}.jpg" for k in range(options.num_frames))
    turn = _question("video", targets, class_name, classes, options)
    return Draft(_split_in(folder), (turn,), (Clip(entry, targets),))


def _picture(
    entry: Entry, folder: str, class_name: str, classes: Sequence[str], options: Options
) -> Draft:
    target = f"{folder}/{entry.last_name}"
    turn = _question("image", (target,), class_name, classes, options)
    return Draft(_split_in(folder), (turn,), (DraftImage(entry, target),))


def _split_in(folder: str) -> str:
    return folder.partition("/")[0]


def _question(
    what: str,
    targets: tuple[str, ...],
    class_name: str,
    classes: Sequence[str],
    options: Options,
    clips: tuple[str, ...] = (),
) -> Turn:
    # The published recipe's words.
    asked = f"Classify the {what} into one of the following classes: {', '.join(classes)}."
    return Turn(
        images=targets,
        videos=clips,
        user=options.question or asked,
        assistant=class_name,
        choices=tuple(classes),
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]
