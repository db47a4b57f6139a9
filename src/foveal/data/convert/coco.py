"""Objects in pictures, each with a box (COCO's `instances_*.json`) -> drafts."""

from collections.abc import Iterable, Mapping
from io import BytesIO
from math import floor
from typing import Any

from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options
from foveal.data.convert.sources.json_entry import read_json
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.splits import split_of
from foveal.data.example import Turn
from foveal.data.images.media import image_size, measure_image
from foveal.errors import DataError

QUESTION = "Where is every {name}? Answer with one box [left, top, right, bottom] a line."
"""Of each kind of object that a picture shows; `{name}` is the kind's."""

Boxes = list[tuple[int, int, int, int]]


def convert_coco(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """COCO's annotations: of each picture, where every object of a kind is, in pixels."""
    files = source.match("instances_*.json") or source.match("*.json")
    drafts: list[Draft | LeftOutRow] = []
    for file in files:
        tree = read_json(file)
        if not _holds_boxes(tree):
            drafts.append(LeftOutRow(str(file), "no images, annotations and categories in it"))
            continue
        try:
            drafts += _of_file(source, file, tree, options)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: not as COCO has it ({error!r})") from error
    if not any(isinstance(one, Draft) for one in drafts):
        raise DataError(f"{source.path}: no JSON file with COCO's boxes of objects in it")
    return drafts


def _holds_boxes(tree: Any) -> bool:
    keys = ("images", "annotations", "categories")
    return isinstance(tree, dict) and all(isinstance(tree.get(key), list) for key in keys)


def _of_file(
    source: Source, file: Entry, tree: Mapping[str, Any], options: Options
) -> Iterable[Draft | LeftOutRow]:
    split = split_of(file.stem, file.folders) or "train"
    names = {one["id"]: str(one["name"]) for one in tree["categories"]}
    by_image: dict[object, dict[object, list[Mapping[str, Any]]]] = {}
    for one in tree["annotations"]:
        by_image.setdefault(one["image_id"], {}).setdefault(one["category_id"], []).append(one)
    for image in tree["images"]:
        name = str(image["file_name"])
        kinds = by_image.get(image["id"])
        entry = source.find(name)
        if not kinds or entry is None:
            yield LeftOutRow(name, "no picture of that name" if kinds else "no object in it")
            continue
        if problem := _size_problem(entry, image["width"], image["height"]):
            yield LeftOutRow(name, problem)
            continue
        target = f"{split}/{name.lstrip('/')}"
        for kind in sorted(kinds, key=lambda one: names[one]):
            boxes, reason = _boxes(kinds[kind], image["width"], image["height"])
            if reason:
                yield LeftOutRow(f"{name}, {names[kind]}", reason)
                continue
            turn = Turn(
                images=(target,),
                user=(options.question or QUESTION).replace("{name}", names[kind]),
                assistant="\n".join(str(list(box)) for box in boxes),
            )
            yield Draft(split, (turn,), (DraftImage(entry, target),))


def _size_problem(entry: Entry, width: int, height: int) -> str:
    """Say why boxes would not fit a picture: it was turned or made smaller since."""
    try:
        size = (
            image_size(entry.file)
            if entry.member is None
            else measure_image(BytesIO(entry.read()), str(entry))
        )
    except DataError as error:
        return str(error).removeprefix(f"{entry}: ")
    if size == (width, height):
        return ""
    return "a picture, upright, of another size than its annotations say"


def _boxes(found: list[Mapping[str, Any]], width: int, height: int) -> tuple[Boxes, str]:
    """Turn left, top, width, height into edges, from top to bottom; or say why not."""
    if any(one.get("iscrowd") for one in found):
        return [], "a crowd, which is not boxed one by one"
    boxes: Boxes = []
    for one in found:
        left, top, wide, high = map(float, one["bbox"])
        right, bottom = min(left + wide, width), min(top + high, height)
        edges = max(left, 0.0), max(top, 0.0), right, bottom
        rounded = (
            floor(edges[0] + 0.5),
            floor(edges[1] + 0.5),
            floor(edges[2] + 0.5),
            floor(edges[3] + 0.5),
        )
        if rounded[0] >= rounded[2] or rounded[1] >= rounded[3]:
            return [], "a box of less than a pixel, or outside of its picture"
        boxes.append(rounded)
    return sorted(set(boxes), key=lambda box: (box[1], box[0], box)), ""
