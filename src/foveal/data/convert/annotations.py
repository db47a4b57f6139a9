"""Data sets with files of annotations (COCO, DocVQA, FUNSD, SROIE, NLVR, memes) -> drafts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import floor
from random import Random
from typing import Any

from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options, attempt
from foveal.data.convert.folders import choose_groups
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.values import UnfitError, text_of, texts_of
from foveal.data.convert.table import ANSWER_BRIEFLY
from foveal.data.example import Turn
from foveal.data.images.media import image_size
from foveal.errors import DataError

BOX_QUESTION = "Where is every {name}? Answer with one box [left, top, right, bottom] a line."
"""Of each kind of object that an image shows; `{name}` is the kind's."""

Objects = Mapping[str, Sequence[Mapping[str, Any]]]
"""Kind -> annotations of an image."""

LONGEST_ANSWER = 80
"""Characters of a form's field; longer ones are paragraphs, which no one would answer with."""

RECEIPT_QUESTIONS = {
    "company": "What is the name of the company on the receipt?",
    "date": "What is the date on the receipt?",
    "address": "What is the address on the receipt?",
    "total": "What is the total amount on the receipt?",
}

CHOICES = ("True", "False")


def convert_coco(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """COCO's annotations: of each image, where every object of a kind is, in pixels."""
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
    question = options.question or BOX_QUESTION
    for kind in sorted(objects):
        asked = question.replace("{name}", kind)
        yield from attempt(f"{name}, {kind}", _of_kind, shown, asked, objects[kind], size, split)


def _size_of(entry: Entry) -> tuple[int, int]:
    try:
        return image_size(entry.file if entry.member is None else entry.read(), entry)
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
    return _ask(split, [shown], asked, answer)


def _edges(box: Sequence[float], size: tuple[int, int]) -> tuple[int, ...]:
    """Turn left, top, width, height into edges, none of them outside of the image."""
    left, top, wide, high = map(float, box)
    inside = (max(left, 0.0), max(top, 0.0), min(left + wide, size[0]), min(top + high, size[1]))
    edges = tuple(floor(edge + 0.5) for edge in inside)
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise UnfitError("a box of less than a pixel, or outside of its picture")
    return edges


def convert_docvqa(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """DocVQA's task-1 JSON files, each with a list `data`, and their pages; or columns."""
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("*.json"):
        tree = file.read_json()
        rows = tree.get("data") if isinstance(tree, dict) else None
        for row in rows if isinstance(rows, list) else ():
            name = f"{file}, question {row.get('questionId') if isinstance(row, dict) else row}"
            split = tree.get("dataset_split")
            drafts += attempt(name, _task_1, source, split, row, options.seed)
    return drafts


def _task_1(source: Source, split: str | None, row: Any, seed: int) -> Draft:
    try:
        number, image, split = row["questionId"], row["image"], split or row["data_split"]
        question = text_of(row["question"], "a question")
        answers = texts_of(row.get("answers"), "an answer")
    except (KeyError, TypeError, AttributeError):
        raise UnfitError("not a question of DocVQA") from None
    if question is None or not isinstance(image, str):
        raise UnfitError("no question about a page")
    page = source.need(image, "page")
    if not answers:
        raise UnfitError("no answers (a hidden test set)")
    return _ask_page(page, split, question, answers, Random(f"{seed}/{number}").choice(answers))


def _ask_page(page: Entry, split: str, question: str, answers: Sequence[str], learnt: str) -> Draft:
    """Draft a question about a page, one of whose answers is learnt."""
    image = DraftImage(page, f"{split}/{page.last_name}")
    return _ask(split, [image], f"{question}{ANSWER_BRIEFLY}", learnt, answers=answers)


def convert_funsd(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """FUNSD's forms, `<split>_data/annotations/*.json`: each named field with one answer."""
    forms = [file for file in source.match("annotations/*.json") if len(file.folders) > 1]
    return [
        draft
        for file, split in _with_validation(forms, options)
        for draft in attempt(str(file), _form, source, file, split)
    ]


def _with_validation(files: Sequence[Entry], options: Options) -> list[tuple[Entry, str]]:
    """Find the split of each file; some of the training files become `val`."""
    training = {file.name for file in files if file.split == "train"}
    held_out = choose_groups(training, options.validation_fraction, options.seed)
    return [(file, "val" if file.name in held_out else file.split) for file in files]


def _form(source: Source, file: Entry, split: str) -> Iterator[Draft]:
    page = source.need("/".join((*file.folders[:-1], "images", f"{file.stem}.png")), "page")
    if page.folders[:-1] != file.folders[:-1]:
        raise UnfitError("no page of that name")
    fields = list(_fields(file.read_json()))
    if not fields:
        raise UnfitError("no field with one short answer")
    for key, value in fields:
        question = f'What is the value of the field "{key}"?'
        yield _ask_page(page, split, question, [value], value)


def _fields(form: Any) -> Iterator[tuple[str, str]]:
    """Pick keys that occur once on the form and are linked to exactly one answer."""
    try:
        boxes = {box["id"]: box for box in form["form"]}
        asked = {number: box for number, box in boxes.items() if box["label"] == "question"}
        keys = Counter(_key(box) for box in asked.values())
        for number, box in asked.items():
            key = _key(box)
            if not key or keys[key] > 1:
                continue
            linked = {other for pair in box["linking"] for other in pair if other != number}
            values = [
                boxes[other]["text"].strip()
                for other in sorted(linked)
                if other in boxes and boxes[other]["label"] == "answer"
            ]
            values = [value for value in values if value]
            if len(values) == 1 and len(values[0]) <= LONGEST_ANSWER:
                yield key, values[0]
    except (KeyError, TypeError, AttributeError):
        raise UnfitError("not a form of FUNSD") from None


def _key(box: Any) -> str:
    """`Date :` -> Date."""
    return (box["text"] or "").strip().rstrip(":").strip()


def convert_sroie(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """SROIE's receipts, `key/*.json`: what they hold of company, date, address and total."""
    return [
        draft
        for file, split in _with_validation(source.match("key/*.json"), options)
        for draft in attempt(str(file), _receipt, source, file, split)
    ]


def _receipt(source: Source, file: Entry, split: str) -> Iterator[Draft | LeftOutRow]:
    page = source.need("/".join((*file.folders[:-1], "img", f"{file.stem}.jpg")), "page")
    values = file.read_json()
    for name, question in RECEIPT_QUESTIONS.items():
        value = values.get(name) if isinstance(values, dict) else None
        if isinstance(value, str) and (text := value.strip()):
            yield _ask_page(page, split, question, [text], text)
        else:
            yield LeftOutRow(f"{file}, {name}", "no such field on the receipt")


def convert_nlvr(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """NLVR's `<split>/<split>.json`, one image a statement, and `nlvr_pairs/<split>.json`, two.

    A statement becomes one example for each permutation of its image that is there; pairs become
    the set `nlvr_pairs`.
    """
    images: dict[str, list[str]] = {}
    for entry in source.match("*.png"):
        images.setdefault(entry.stem.rpartition("-")[0], []).append(entry.name)
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("*.json"):
        if file.folders[-1:] == (file.stem,):
            for line in file.read_lines():
                stem = f"{file.stem}-{line.get('identifier')}"
                for image in images.get(stem, [stem]):
                    drafts += _statements(source, file, line, image)
    for file in source.match("nlvr_pairs/*.json"):
        for line in file.read_lines():
            pair = str(line.get("left_image")), str(line.get("right_image"))
            drafts += _statements(source, file, line, *pair, set_name="nlvr_pairs")
    return drafts


def convert_nlvr2(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """NLVR2's `<split>.json` with images called `...-img0.png` and `...-img1.png`, or columns."""
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("*.json"):
        for line in file.read_lines():
            pair = str(line.get("identifier", "")).rpartition("-")[0]  # the last one: the sentence
            drafts += _statements(source, file, line, f"{pair}-img0.png", f"{pair}-img1.png")
    return drafts


def _statements(
    source: Source, file: Entry, line: dict[str, Any], *images: str, set_name: str | None = None
) -> Iterator[Draft | LeftOutRow]:
    def draft() -> Draft:
        sentence, label = line.get("sentence"), str(line.get("label")).capitalize()
        if not isinstance(sentence, str) or label not in CHOICES:
            raise UnfitError("no sentence with a label")
        media = []
        for entry in map(source.need, images):
            # nlvr/dev/images/0/dev-1-0-2.png -> dev/0/dev-1-0-2.png
            split, folder = entry.stem.partition("-")[0], "".join(entry.folders[-1:])
            media.append(DraftImage(entry, f"{split}/{folder}/{entry.last_name}"))
        asked = ask_statement(sentence.strip())
        return _ask(file.stem, media, asked, label, choices=CHOICES, set_name=set_name)

    return attempt(f"{file}, {line.get('identifier')}", draft)


def ask_statement(sentence: str) -> str:
    """Turn a statement into a question; what all questions share stands in front, to be shared."""
    return f"True or False?\n{sentence}"


def convert_hateful_memes(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """Hateful Memes' `<split>.jsonl` with images in `img/`, or columns."""
    return [
        draft
        for file in source.match("*.jsonl")
        for line in file.read_lines()
        for draft in attempt(f"{file}, {line.get('id')}", _meme, source, file, line, options)
    ]


def _meme(source: Source, file: Entry, line: dict[str, Any], options: Options) -> Draft:
    if line.get("label") not in (0, 1):
        raise UnfitError("no label (a hidden test set)")
    entry = source.need(str(line.get("img", "")))
    image = DraftImage(entry, f"{file.stem}/{entry.last_name}")
    asked = options.question or "Is this meme hateful? Answer Yes or No."
    answer = "Yes" if line["label"] else "No"
    return _ask(file.stem, [image], asked, answer, choices=("Yes", "No"))


def _ask(
    split: str,
    media: Sequence[DraftImage],
    user: str,
    assistant: str,
    *,
    answers: Sequence[str] = (),
    choices: tuple[str, ...] = (),
    set_name: str | None = None,
) -> Draft:
    """Draft one question about some images."""
    turn = Turn(
        images=tuple(image.target for image in media),
        user=user,
        assistant=assistant,
        answers=tuple(answers),
        choices=choices,
    )
    return Draft(split, (turn,), tuple(media), set_name)
