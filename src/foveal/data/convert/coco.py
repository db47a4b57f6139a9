"""Objects in pictures, each with a box (COCO's `instances_*.json`) -> drafts."""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from math import floor
from typing import Any

from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options, attempt
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.values import UnfitError
from foveal.data.example import Turn
from foveal.data.images.media import image_size, measure_image
from foveal.errors import DataError

QUESTION = "Where is every {name}? Answer with one box [left, top, right, bottom] a line."
"""Of each kind of object that a picture shows; `{name}` is the kind's."""

Objects = Mapping[str, Sequence[Mapping[str, Any]]]
"""Kind -> annotations of a picture."""


def convert_coco(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """COCO's annotations: of each picture, where every object of a kind is, in pixels."""
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("instances_*.json") or source.match("*.json"):
        try:
            drafts += attempt(str(file), _of_file, source, file, options)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: not as COCO has it ({error!r})") from error
    if not any(isinstance(one, Draft) for one in drafts):
        raise DataError(f"{source.path}: no JSON file with COCO's boxes of objects in it")
    return drafts


def _of_file(source: Source, file: Entry, options: Options) -> Iterator[Draft | LeftOutRow]:
    tree = file.read_json()
    parts = ("images", "annotations", "categories")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(one), list) for one in parts):
        raise UnfitError("no images, annotations and categories in it")
    names = {one["id"]: str(one["name"]) for one in tree["categories"]}
    by_image: dict[object, dict[str, list[Mapping[str, Any]]]] = {}
    for one in tree["annotations"]:
        kinds = by_image.setdefault(one["image_id"], {})
        kinds.setdefault(names[one["category_id"]], []).append(one)
    for image in tree["images"]:
        name, objects = str(image["file_name"]), by_image.get(image["id"], {})
        yield from attempt(name, _of_image, source, file.split, image, objects, options)


def _of_image(
    source: Source, split: str, image: Mapping[str, Any], objects: Objects, options: Options
) -> Iterator[Draft | LeftOutRow]:
    if not objects:
        raise UnfitError("no object in it")
    name = str(image["file_name"])
    entry, size = source.need(name), (image["width"], image["height"])
    if _size_of(entry) != size:  # it was turned or made smaller since
        raise UnfitError("a picture, upright, of another size than its annotations say")
    shown = DraftImage(entry, f"{split}/{name.lstrip('/')}")
    question = options.question or QUESTION
    for kind in sorted(objects):
        asked = question.replace("{name}", kind)
        yield from attempt(f"{name}, {kind}", _of_kind, shown, asked, objects[kind], size, split)


def _size_of(entry: Entry) -> tuple[int, int]:
    try:
        if entry.member is None:
            return image_size(entry.file)
        return measure_image(BytesIO(entry.read()), str(entry))
    except DataError as error:
        raise UnfitError(str(error).removeprefix(f"{entry}: ")) from None


def _of_kind(
    shown: DraftImage,
    asked: str,
    found: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    split: str,
) -> Draft:
    """Answer with the edges of each box in pixels, from top to bottom."""
    if any(one.get("iscrowd") for one in found):
        raise UnfitError("a crowd, which is not boxed one by one")
    boxes = {_edges(one["bbox"], size) for one in found}
    answer = "\n".join(str(list(box)) for box in sorted(boxes, key=lambda box: (box[1], box)))
    turn = Turn(images=(shown.target,), user=asked, assistant=answer)
    return Draft(split, (turn,), (shown,))


def _edges(box: Sequence[float], size: tuple[int, int]) -> tuple[int, ...]:
    """Turn left, top, width, height into edges, none of them outside of the picture."""
    left, top, wide, high = map(float, box)
    inside = (max(left, 0.0), max(top, 0.0), min(left + wide, size[0]), min(top + high, size[1]))
    edges = tuple(floor(edge + 0.5) for edge in inside)
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise UnfitError("a box of less than a pixel, or outside of its picture")
    return edges
