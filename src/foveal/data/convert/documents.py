"""Questions about pages (DocVQA, FUNSD, SROIE) -> drafts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options, attempt
from foveal.data.convert.folders import choose_groups
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.values import UnfitError, text_of, texts_of
from foveal.data.convert.table import ANSWER_BRIEFLY
from foveal.data.example import Turn

LONGEST_ANSWER = 80
"""Characters of a form's field; longer ones are paragraphs, which no one would answer with."""

RECEIPT_QUESTIONS = {
    "company": "What is the name of the company on the receipt?",
    "date": "What is the date on the receipt?",
    "address": "What is the address on the receipt?",
    "total": "What is the total amount on the receipt?",
}


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
    return ask_document(page, split, question, answers, Random(f"{seed}/{number}").choice(answers))


def ask_document(
    page: Entry, split: str, question: str, answers: Sequence[str], learnt: str
) -> Draft:
    """Draft a question about a page, one of whose answers is learnt."""
    target = f"{split}/{page.last_name}"
    turn = Turn(
        images=(target,),
        user=f"{question}{ANSWER_BRIEFLY}",
        assistant=learnt,
        answers=tuple(answers),
    )
    return Draft(split, (turn,), (DraftImage(page, target),))


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
        yield ask_document(page, split, question, [value], value)


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
            yield ask_document(page, split, question, [text], text)
        else:
            yield LeftOutRow(f"{file}, {name}", "no such field on the receipt")
