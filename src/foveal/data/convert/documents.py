"""Questions about pages (DocVQA, FUNSD, SROIE) -> drafts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from foveal.data.convert.columns import ANSWER_BRIEFLY, read_rows
from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options
from foveal.data.convert.folders import choose_groups
from foveal.data.convert.sources.json_entry import read_json
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.splits import SPLITS
from foveal.data.convert.sources.tables import Hub
from foveal.data.convert.sources.values import UnfitError, text_of, texts_of
from foveal.data.example import Turn
from foveal.errors import DataError

LONGEST_ANSWER = 80
"""Characters of a form's field; longer ones are paragraphs, which no one would answer with."""

RECEIPT_QUESTIONS = {
    "company": "What is the name of the company on the receipt?",
    "date": "What is the date on the receipt?",
    "address": "What is the address on the receipt?",
    "total": "What is the total amount on the receipt?",
}


def convert_docvqa(source: Source | Hub, options: Options) -> Iterable[Draft | LeftOutRow]:
    """DocVQA's task-1 JSON files with their pages, or its columns on the hub or in Parquet."""
    if isinstance(source, Hub) or source.match("*.parquet"):
        return read_rows(source, "docvqa", options)
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("*.json"):
        data = read_json(file)
        if isinstance(data, dict) and isinstance(data.get("data"), list):
            split = data.get("dataset_split")
            drafts += [_task_1(source, file, split, row, options) for row in data["data"]]
    if not drafts:
        raise DataError(f"{source.path}: no JSON file with DocVQA's `data` list, no Parquet file")
    return drafts


def _task_1(
    source: Source, file: Entry, split: str | None, row: Any, options: Options
) -> Draft | LeftOutRow:
    try:
        name = f"{file}, question {row['questionId']}"
        image, split = row["image"], split or row["data_split"]
        question = text_of(row["question"], "a question")
        answers = texts_of(row.get("answers"), "an answer")
    except (KeyError, TypeError, AttributeError):
        return LeftOutRow(str(file), "not a question of DocVQA")
    except UnfitError as error:
        return LeftOutRow(name, str(error))
    if question is None or not isinstance(image, str):
        return LeftOutRow(name, "no question about a page")
    entry = source.find(image)
    if entry is None:
        return LeftOutRow(name, "no page of that name")
    if not answers:
        return LeftOutRow(name, "no answers (a hidden test set)")
    return ask_document(
        entry, split, question, answers, Random(f"{options.seed}/{row['questionId']}")
    )


def ask_document(
    page: Entry, split: str, question: str, answers: Sequence[str], random: Random
) -> Draft:
    """Draft a question about a page; one of its answers, drawn at random, is learnt."""
    target = f"{split}/{page.last_name}"
    turn = Turn(
        images=(target,),
        user=f"{question}{ANSWER_BRIEFLY}",
        assistant=random.choice(answers),
        answers=tuple(answers),
    )
    return Draft(split, (turn,), (DraftImage(page, target),))


def convert_funsd(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """FUNSD's annotated forms: a question for each named field with one answer."""
    forms = [file for file in source.match("annotations/*.json") if len(file.folders) > 1]
    if not forms:
        raise DataError(f"{source.path}: no <split>_data/annotations/*.json in it")
    training = {file.name for file in forms if _split(file) == "train"}
    held_out = choose_groups(training, options.validation_fraction, options.seed)
    drafts: list[Draft | LeftOutRow] = []
    for file in forms:
        page = source.find("/".join((*file.folders[:-1], "images", f"{file.stem}.png")))
        fields = list(_fields(read_json(file)))
        if page is None or page.folders[:-1] != file.folders[:-1]:
            drafts.append(LeftOutRow(str(file), "no page of that name"))
        elif not fields:
            drafts.append(LeftOutRow(str(file), "no field with one short answer"))
        else:
            split = "val" if file.name in held_out else _split(file)
            drafts += [
                ask_document(
                    page, split, f'What is the value of the field "{key}"?', [value], Random(0)
                )
                for key, value in fields
            ]
    return drafts


def _split(file: Entry) -> str:
    """`testing_data/annotations/1.json` -> test."""
    for folder in reversed(file.folders):
        if split := SPLITS.get(folder.lower().removesuffix("_data")):
            return split
    return "train"


def _fields(form: Any) -> Iterable[tuple[str, str]]:
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
        return


def _key(box: Any) -> str:
    """`Date :` -> Date."""
    return (box["text"] or "").strip().rstrip(":").strip()


def convert_sroie(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """SROIE's receipts: what `key/NNN.json` holds of company, date, address and total."""
    keys = source.match("key/*.json")
    if not keys:
        raise DataError(f"{source.path}: no key/*.json in it")
    held_out = choose_groups(
        {file.name for file in keys if _split(file) == "train"},
        options.validation_fraction,
        options.seed,
    )
    drafts: list[Draft | LeftOutRow] = []
    for file in keys:
        page = source.find("/".join((*file.folders[:-1], "img", f"{file.stem}.jpg")))
        values = read_json(file)
        if page is None:
            drafts.append(LeftOutRow(str(file), "no page of that name"))
            continue
        split = "val" if file.name in held_out else _split(file)
        for name, question in RECEIPT_QUESTIONS.items():
            value = values.get(name) if isinstance(values, dict) else None
            if isinstance(value, str) and value.strip():
                drafts.append(ask_document(page, split, question, [value.strip()], Random(0)))
            else:
                drafts.append(LeftOutRow(f"{file}, {name}", "no such field on the receipt"))
    return drafts
