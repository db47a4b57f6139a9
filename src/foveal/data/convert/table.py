"""Rows of columns that hold images, questions and answers -> drafts."""

from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import Any

from foveal.config import Columns
from foveal.data.convert.chats import (
    PLACE,
    SYSTEM_KEYS,
    conversation_of,
    number_places,
    refuse_foreign_tags,
)
from foveal.data.convert.draft import (
    Draft,
    DraftImage,
    Find,
    LeftOutRow,
    Options,
    attempt,
    images_of,
)
from foveal.data.convert.sources.source import Source
from foveal.data.convert.sources.tables import Hub, NamedRow, open_splits, rows_by, rows_of_files
from foveal.data.convert.sources.values import (
    UnfitError,
    present,
    refuse_meaningful,
    text_of,
    texts_of,
)
from foveal.data.example import Turn

VALIDATION_ROWS = 500
"""Most rows of an only split that become `val`: its first, as in the published recipe."""

ANSWER_BRIEFLY = "\nAnswer briefly."
"""What the published recipe puts behind every question about a page."""

SAID = ("choices", "text", "number", "rating")
"""Keys under which a result of Label Studio holds what was chosen or written."""

_ASKS_MORE = ("hint", "context", "A", "B")
"""Columns that belong to a question, which would be another one without them."""


USUAL_NAMES = {
    "images": (
        ("images", "image"),
        ("file_name", "image_path", "imgname"),
        ("img", "picture", "photo", "jpg", "jpeg", "png", "image_bytes"),
    ),
    "messages": (("messages", "conversations"),),
    "question": (("question", "query"), ("prompt", "text", "instruction")),
    "answer": (("answer",), ("label", "caption", "response", "output", "completion")),
    "answers": (("answers",),),
    "choices": (("choices", "options"),),
    "system": (SYSTEM_KEYS,),
}
"""What a column holds -> names that say so, the clearest first; two as clear are asked about."""

CAPTIONS = ("text", "txt")
"""Columns that hold the answer where every row is asked the same."""


def convert_table(source: Source, options: Options) -> Iterator[Draft | LeftOutRow]:
    """Parquet, CSV, TSV, JSON or JSONL whose rows hold images, questions and answers."""
    answers = _answers_elsewhere(source)
    asked = set()
    for named in rows_of_files(source):
        key = str(named.row.get("question_id")) if isinstance(named.row, dict) else ""
        if key in answers:
            if "question" not in named.row:
                continue
            asked.add(key)
            named = named._replace(row=named.row | answers[key])
        yield from attempt(named.name, drafts_of_row, named, options, source.find)
    for key in (one for one in answers if one not in asked):
        yield LeftOutRow(f"answer to {key}", "an answer whose question is not there")


def _answers_elsewhere(source: Source) -> dict[str, dict[str, Any]]:
    """Read the files that answer questions of other files, by their ids, as VQA has them."""
    rows = rows_by("question_id", (one.row for one in rows_of_files(source, "annotations.json")))
    return {key: row for key, row in rows.items() if "question" not in row}


def convert_columns(
    source: Source | Hub, options: Options, config: str | None = None
) -> Iterator[Draft | LeftOutRow]:
    """Draft each question of each row; an image is named by its content, so it is stored once.

    Args:
        source: Parquet files, or a name on the hub.
        options: of them `validation_fraction`, `columns`, `question` and `seed` matter.
        config: which of the hub data set's parts, where it has several: the published task.

    Raises:
        UserError: `datasets` is not installed.
        DataError: the rows cannot be fetched.
    """

    def drafts_on(side: str, row: NamedRow) -> list[Draft | LeftOutRow]:
        moved = row._replace(split=side)
        return list(
            attempt(row.name, drafts_of_row, moved, options, source.find, config == "docvqa")
        )

    splits = open_splits(source, config)
    for split, rows, count in splits:
        held_out = 0
        if len(splits) == 1 and split == "train":
            share = VALIDATION_ROWS if count is None else int(options.validation_fraction * count)
            held_out = min(VALIDATION_ROWS, share)
        seen: set[str] = set()
        for number, row in enumerate(rows):
            drafts = drafts_on("val" if number < held_out else split, row)
            if config is None and seen & _images(drafts):  # no image is on both sides
                drafts = drafts_on("val", row)
            if number < held_out:
                seen |= _images(drafts)
            yield from drafts


def _images(drafts: Iterable[Draft | LeftOutRow]) -> set[str]:
    """Name the images of a row's drafts by what stands behind their split."""
    media = (one for draft in drafts if isinstance(draft, Draft) for one in draft.media)
    return {one.target.partition("/")[2] for one in media if isinstance(one, DraftImage)}


def drafts_of_row(
    named: NamedRow, options: Options, find: Find, pages: bool = False
) -> Iterator[Draft]:
    """Draft each question of a row.

    Args:
        named: columns, with images as bytes, or paths; or a task of Label Studio.
        options: of them `columns`, `question` and `seed` matter.
        find: looks the path of an image up.
        pages: whether they are DocVQA's, whose questions get the published recipe's words.

    Raises:
        UnfitError: there is none.
    """
    name, row, split = named
    if not isinstance(row, Mapping):
        raise UnfitError("not a row of named columns")
    if isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list):
        row = _row_of_task(row)
    guessed = not _says_all(options.columns)
    if guessed:
        refuse_meaningful(present(row) or {})

    def held(what: str) -> Any:
        column = _find_column(what, row, options.columns)
        return None if column is None else present(row[column])

    messages = held("messages") or (_two_halves(row) if guessed else None)
    if messages:
        said = {"messages": messages, "images": held("images"), "system": held("system")}
        yield conversation_of(said, split, find)
        return
    if _find_column("images", row, options.columns) is None:
        raise UnfitError(_missing("images", row))
    media = tuple(images_of(held("images"), split, find))
    if not media:
        raise UnfitError("no picture in the row")
    targets = tuple(image.target for image in media)
    if guessed and isinstance(row.get("texts"), list):
        for user, assistant in map(_pair, row["texts"]):
            choices = () if pages else closed_set(assistant)
            turn = Turn(images=targets, user=user, assistant=assistant, choices=choices)
            yield Draft(split, (turn,), media)
        return
    turn = _turn(row, targets, name, options)
    if pages:
        turn = turn.model_copy(update={"user": turn.user + ANSWER_BRIEFLY})
    yield Draft(split, (turn,), media, system=text_of(held("system"), "a system text") or "")


def _row_of_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Put what the first annotation that stands says beside the task's data, under its own names.

    Where it says one thing alone, that is the answer, unless the data has one.
    """
    annotations = present(task["annotations"]) or []
    told = (one for one in annotations if isinstance(one, Mapping) and one.get("result"))
    stands = [one for one in told if not one.get("was_cancelled")]
    if not stands:
        raise UnfitError("a task that nobody has labelled")
    said: dict[str, Any] = {}
    for result in stands[0]["result"]:
        value = result.get("value") or {}
        held = next((value[key] for key in SAID if key in value), None)
        if held is None:
            raise UnfitError(f"marks that are neither a choice nor a text ({result.get('type')})")
        said[result["from_name"]] = held
    row = {**task["data"], **said}
    if len(said) == 1:
        row.setdefault("answer", *said.values())
    return row


def _two_halves(row: Mapping[str, Any]) -> list[Any] | None:
    """Join a conversation that stands in the columns `prompt` and `completion`, as TRL has it."""
    halves = [present(row.get(name)) for name in ("prompt", "completion")]
    if not all(isinstance(half, list) for half in halves):
        return None
    messages = [message for half in halves for message in half]
    return messages if all(isinstance(one, Mapping) for one in messages) else None


def _pair(text: Any) -> tuple[str, str]:
    """Read a question and its answer, as the_cauldron has them."""
    if not isinstance(text, Mapping):
        raise UnfitError("texts that hold no question and answer")
    user, assistant = text_of(text.get("user"), "a question"), text_of(text.get("assistant"), "it")
    if user is None or assistant is None:
        raise UnfitError("a question or an answer without a text")
    return user, assistant


def _turn(row: Mapping[str, Any], images: tuple[str, ...], name: str, options: Options) -> Turn:
    ask = options.question or options.columns.ask
    if not _says_all(options.columns):
        refuse_meaningful(present(row) or {}, _ASKS_MORE)
    columns = {what: _find_column(what, row, options.columns) for what in USUAL_NAMES}
    if columns["answers"] and columns["answer"] in USUAL_NAMES["answer"][1]:
        columns["answer"] = options.columns.answer  # `label` beside `answers` is something else
    if ask and not columns["answer"] and not columns["answers"]:
        columns["answer"] = next((one for one in CAPTIONS if present(row.get(one))), None)
        if columns["question"] == columns["answer"]:
            columns["question"] = None
    if not columns["question"] and ask is None:
        raise UnfitError(_missing("question", row))
    if not columns["answer"] and not columns["answers"]:
        raise UnfitError(_missing("answer", row))
    values = {what: present(row[one]) if one else None for what, one in columns.items()}
    question = text_of(values["question"], "a question") if columns["question"] else ask
    if question is not None and columns["question"] == "instruction":  # as Alpaca's rows have it
        question = "\n".join(filter(None, [question, text_of(row.get("input"), "an input")]))
    choices = texts_of(values["choices"], "a choice")
    guessed = options.columns.answer is None
    answer = _answer(values["answer"], choices, guessed and columns["answer"] == "label")
    answers = texts_of(values["answers"], "an answer")
    if question is None or (answer is None and not answers):
        raise UnfitError("no question with an answer in the row")
    if answer is None:
        identity = row.get("id") or row.get("questionId") or name
        answer = Random(f"{options.seed}/{identity}").choice(answers)
    elif answers and answer not in answers:
        answers = (answer, *answers)
    if choices and answer not in choices:
        raise UnfitError("an answer that is none of its choices")
    user = _placed(question, answer, len(images))
    return Turn(images=images, user=user, assistant=answer, answers=answers, choices=choices)


def _placed(question: str, answer: str, num_images: int) -> str:
    """Write a question whose `<image>`s say where its images stand, if it has any."""
    for text in (question, answer):
        refuse_foreign_tags(text)
    if PLACE in answer:
        raise UnfitError("an answer with a picture")
    places = question.count(PLACE)
    if places and places != num_images:
        raise UnfitError(f"{'more' if places > num_images else 'fewer'} <image> than pictures")
    return number_places(question) if places else question


def _answer(value: Any, choices: tuple[str, ...], is_label: bool) -> str | None:
    """Read what is learnt; the number of a choice counts from 0."""
    if isinstance(value, list):
        if len(value) > 1:
            raise UnfitError("several answers where one is meant")
        (value,) = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if choices and value not in range(len(choices)):
            raise UnfitError("an answer that is none of its choices")
        if choices:
            return choices[int(value)]
        if is_label:
            raise UnfitError("a label that is a number; name it in words")
    return text_of(value, "an answer")


def closed_set(answer: str) -> tuple[str, ...]:
    """Find the set that an answer is one of, yes or no, true or false, written in its way."""
    stop = "." if answer.endswith(".") else ""
    for pair in (("Yes", "No"), ("True", "False")):
        written = tuple(word + stop for word in pair)
        if answer in written:
            return written
    return ()


def _find_column(what: str, row: Mapping[str, Any], named: Columns) -> str | None:
    """Find which column holds something; none: no column does.

    Args:
        what: one of USUAL_NAMES.
        row: with all its columns.
        named: by the user; where they say both what is asked and answered, no other is guessed at.

    Raises:
        UnfitError: a named column is not there, or two could be meant.
    """
    name: str | None = getattr(named, what)
    if name is not None:
        if name not in row:
            raise UnfitError(f"no column {name} among {', '.join(row)}")
        return name
    if _says_all(named) and what != "images":
        return None
    taken = named.model_dump(exclude={"ask"}).values()
    for names in USUAL_NAMES[what]:
        found = [one for one in row if one.lower() in names and one not in taken]
        found.sort(key=lambda one: names.index(one.lower()))
        if len(found) > 1:  # what a row leaves empty is not meant
            found = [one for one in found if present(row[one]) is not None] or found[:1]
        if len(found) > 1:
            raise UnfitError(
                f"{' and '.join(found)} could each be the {what}; say which: "
                f"{_to_name(what, found[0])}"
            )
        if found:
            return found[0]
    return None


def _says_all(named: Columns) -> bool:
    """Whether a person has named what is asked and what is answered."""
    asked, answered = named.question or named.ask, named.answer or named.answers
    return bool(named.messages or (asked and answered))


def _missing(what: str, row: Mapping[str, Any]) -> str:
    """Say that no column holds something, and how to name one."""
    usual = ", ".join(name for names in USUAL_NAMES[what] for name in names)
    captions = [name for name in CAPTIONS if name in row]
    asked = _to_name("ask", "TEXT")
    alike = f"; or ask every row the same: {asked}" if what == "question" else ""
    if what == "answer" and captions:
        alike = f"; where {captions[0]} is the answer, say what is asked: {asked}"
    return (
        f"no column of the {what} ({usual}) among {', '.join(row)}; "
        f"name it: {_to_name(what, 'NAME')}{alike}"
    )


def _to_name(what: str, name: str) -> str:
    return f"--columns {what}={name}, of a run data.columns.{what}={name}"
