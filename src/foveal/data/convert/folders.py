"""Folders named after classes, of images or clips (UCF-101 among them) -> drafts."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile
from random import Random

from foveal.data.convert.draft import TWIN, Clip, Draft, DraftImage, LeftOutRow, Options
from foveal.data.convert.sources.source import SPLITS, Entry, Source
from foveal.data.example import Turn
from foveal.data.images.frames import CLIP_ENDINGS
from foveal.errors import DataError

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".png", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)


def convert_imagefolder(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """Images in `<class>/` or `<split>/<class>/`; without splits, part of each class is `val`."""
    return _class_folders(source, IMAGES, options)


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
    index = "\n".join(file.read_text() for file in source.match("classInd.txt")[:1])
    names = [line.split()[-1] for line in index.splitlines() if line.split()]
    names = names or sorted({name.partition("/")[0] for name in listed})
    classes = choose_classes(names, options.classes)
    groups = {group_of(name) for name, split in listed.items() if split == "train"}
    held_out = choose_groups(groups, options.validation_fraction, options.seed)
    for name, split in listed.items():
        class_name = name.partition("/")[0]
        entry = clips.pop(name.rpartition("/")[2], None)
        if class_name not in classes:
            if entry:
                drafts.append(LeftOutRow(str(entry), "class not chosen"))
        elif entry is None:
            drafts.append(LeftOutRow(name, "named by a list, but not there"))
        else:
            moved = "val" if split == "train" and group_of(name) in held_out else split
            drafts.append(_draft(entry, (moved, class_name), entry.stem, classes, options))
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
    placed: list[tuple[Entry, str, tuple[str, ...]]] = []  # with its folders from its class on
    for entry in entries:
        found = _below_a_split(entry) if with_splits else ("", entry.folders[outer:])
        if found and found[1]:
            placed.append((entry, *found))
        else:
            drafts.append(LeftOutRow(str(entry), "in no class folder"))
    classes = choose_classes(sorted({below[0] for _, _, below in placed}), options.classes)
    groups: dict[str, set[str]] = {}
    for entry, _, below in placed:
        groups.setdefault(below[0], set()).add(group_of(entry.name))
    share = 0 if with_splits else options.validation_fraction
    held_out = {
        name: choose_groups(groups[name], share, f"{options.seed}/{name}") for name in groups
    }
    taken: set[tuple[str, ...]] = set()
    for entry, split, below in placed:
        if below[0] not in classes:
            drafts.append(LeftOutRow(str(entry), "class not chosen"))
            continue
        side = "val" if group_of(entry.name) in held_out[below[0]] else "train"
        folders = (split or side, *below)
        same_name = (*folders, entry.stem) in taken  # a.avi beside a.mp4
        taken.add((*folders, entry.stem))
        stem = entry.last_name if same_name else entry.stem
        drafts.append(_draft(entry, folders, stem, classes, options))
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


def _draft(
    entry: Entry, folders: tuple[str, ...], stem: str, classes: Sequence[str], options: Options
) -> Draft:
    """Ask for the class of an image or clip, the second of the folders that it is to lie in."""
    folder = "/".join(folders)
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    medium: DraftImage | Clip
    if entry.suffix not in CLIP_ENDINGS:
        images = (f"{folder}/{entry.last_name}",)
        medium = DraftImage(entry, *images)
    elif options.keep_clips:
        videos = (f"{folder}/{stem.removesuffix(entry.suffix)}{entry.suffix}",)
        medium = Clip(entry, videos, stays_whole=True)
    else:
        images = tuple(f"{folder}/{stem}.{k}.jpg" for k in range(options.num_frames))
        medium = Clip(entry, images)
    # The published recipe's words.
    what = "video" if isinstance(medium, Clip) else "image"
    asked = f"Classify the {what} into one of the following classes: {', '.join(classes)}."
    turn = Turn(
        images=images,
        videos=videos,
        user=options.question or asked,
        assistant=folders[1],
        choices=tuple(classes),
    )
    return Draft(folders[0], (turn,), (medium,))
