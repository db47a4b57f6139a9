"""Pairs of a better and worse answers, as other trainers and data sets have them -> drafts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from foveal.data.convert.chats import PLACE, ROLES, SYSTEM_KEYS, conversation_of
from foveal.data.convert.draft import Draft, Find, LeftOutRow, Options, attempt
from foveal.data.convert.sources.source import Source
from foveal.data.convert.sources.tables import Hub, all_rows
from foveal.data.convert.sources.values import (
    CHOSEN,
    REJECTED,
    UnfitError,
    present,
    refuse_meaningful,
    text_of,
)
from foveal.storage import RepeatedKeyError, unique_keys

ANSWERS = {"chosen": (*CHOSEN, "response"), "rejected": (*REJECTED, "reject")}
"""What columns of answers are called by TRL, LLaMA-Factory, MMPR; ms-swift; POVID; OpenAI."""

QUESTIONS = ("question", "prompt", "instruction", "query")
"""Columns of one text that is asked; LLaMA-Factory's `input` goes on behind it."""

MESSAGES = ("prompt", "conversations", "messages")
"""Columns of messages up to the one that is asked, or up to the chosen answer."""

PICTURES = ("images", "image", "image_path")


def convert_preferences(source: Source | Hub, options: Options) -> Iterator[Draft | LeftOutRow]:
    """Rows of a chosen and of rejected answers, with what is asked before them or in them."""
    for name, row, split in all_rows(source):
        yield from attempt(name, draft_of_pair, row, split, source.find)


def draft_of_pair(row: Any, split: str, find: Find) -> Draft:
    """Draft the conversation of a row; its last answer is the chosen one.

    Every answer ends a conversation, and those must be one and the same up to it.

    Args:
        row: of any of the layouts.
        split: that it belongs to.
        find: looks the path of a picture up.

    Raises:
        UnfitError: it cannot be an example.
    """
    row = present(row)
    if not isinstance(row, Mapping):
        raise UnfitError("not a row of named columns")
    row = {**row, **_written_in_text(row)}
    if isinstance(row.get("input"), Mapping):  # OpenAI's
        row |= row.pop("input")
    better, *worse = _conversations(row)
    beside = {key: row[key] for key in SYSTEM_KEYS if key in row}
    beside["images"] = next((row[key] for key in PICTURES if key in row), None)
    drafts = [
        conversation_of({"messages": said, **beside}, split, find) for said in (better, *worse)
    ]
    (*before, chosen), system = drafts[0].turns, drafts[0].system
    rejected = []
    for draft in drafts[1:]:
        *others, last = draft.turns
        if (*others, last.user, draft.system) != (*before, chosen.user, system):
            raise UnfitError("the answers of its pair end different conversations")
        rejected.append(last.assistant)
    if len({chosen.assistant, *rejected}) < len(drafts):
        raise UnfitError("the answers of its pair are equal")
    return replace(
        drafts[0], turns=(*before, chosen.model_copy(update={"rejected": tuple(rejected)}))
    )


def _written_in_text(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the question and answers that RLHF-V writes as JSON into a column `text`."""
    text = row.get("text")
    if "chosen" in row or not isinstance(text, str | Mapping):
        return {}
    try:
        found = json.loads(text, object_pairs_hook=unique_keys) if isinstance(text, str) else text
    except RepeatedKeyError as error:
        raise UnfitError(str(error)) from None
    except ValueError:
        return {}
    names = ("question", *ANSWERS)
    return {key: found[key] for key in names if key in found} if isinstance(found, dict) else {}


def _conversations(row: Mapping[str, Any]) -> list[list[Any]]:
    """List the messages up to the chosen answer, and up to each rejected one."""
    named = {
        kind: next((name for name in names if name in row), None) for kind, names in ANSWERS.items()
    }
    before = _messages_before(row)
    chosen, rejected = (row[name] if name else None for name in named.values())
    if before == chosen:  # told twice, as in some rows of TRL's
        before = []
    if chosen is None and before and _speaker(before[-1]) == "assistant":
        chosen = before.pop()
    for kind, found in (("chosen", chosen), ("rejected", rejected)):
        if found is None:
            raise UnfitError(f"no {kind} answer in it; its columns are {', '.join(row)}")
    refuse_meaningful({key: value for key, value in row.items() if key not in named.values()})
    worse: list[Any] = [rejected]
    if isinstance(rejected, list) and not any(isinstance(one, Mapping) for one in rejected):
        worse = rejected  # several texts; messages are one answer's
    return [_conversation(before, answer) for answer in (chosen, *worse)]


def _messages_before(row: Mapping[str, Any]) -> list[Any]:
    """List what is said before the answers, or with the chosen one."""
    for key in MESSAGES:
        if isinstance(row.get(key), list):
            return list(row[key])
    for key in QUESTIONS:
        if key in row:
            asked = [text_of(row.get(one), "a question") for one in (key, "input")]
            return [{"role": "user", "content": "\n".join(one for one in asked if one)}]
    return []


def _conversation(before: list[Any], answer: Any) -> list[Any]:
    """Put an answer behind what was said before it, unless it tells that once more."""
    said = [
        one if isinstance(one, Mapping) else {"role": "assistant", "content": one}
        for one in (answer if isinstance(answer, list) else [answer])
    ]
    if all(_speaker(one) == "assistant" for one in said):
        return [*before, *said]
    told = [(_speaker(one), _words(one)) for one in said if _speaker(one) != "system"]
    asked = [(_speaker(one), _words(one)) for one in before if _speaker(one) != "system"]
    if asked != told[: len(asked)]:
        raise UnfitError("what is asked beside its answers is not what is asked in them")
    return said


def _speaker(message: Any) -> str | None:
    name = message.get("from") or message.get("role") if isinstance(message, Mapping) else None
    return ROLES.get(str(name), name)


def _words(message: Mapping[str, Any]) -> str:
    """Read the words of a message alone, to see whether it is another once more."""
    content = message.get("value", message.get("content"))
    parts = content if isinstance(content, list) else [content]
    texts = (one.get("text") if isinstance(one, Mapping) else one for one in parts)
    return "".join(str(text) for text in texts if text).replace(PLACE, "").strip()
