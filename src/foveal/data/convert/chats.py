"""Conversations and pairs of answers as other trainers have them (LLaVA, OpenAI, TRL) -> drafts."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from foveal.data.convert.draft import (
    WRAPPERS,
    Draft,
    DraftImage,
    Find,
    LeftOutRow,
    Options,
    attempt,
    images_of,
)
from foveal.data.convert.sources.source import Source
from foveal.data.convert.sources.tables import Hub, all_rows, rows_of_files
from foveal.data.convert.sources.values import (
    CHOSEN,
    REJECTED,
    UnfitError,
    present,
    refuse_meaningful,
    text_of,
)
from foveal.data.example import Turn
from foveal.data.message import join_system, write_places
from foveal.storage import RepeatedKeyError, unique_keys

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
"""What others call who speaks -> what we call them."""

TOOLS = ("tool", "function", "function_call", "tool_call", "observation", "ipython")
"""Who speaks where an answer is worked out by a program."""

SYSTEM_KEYS = ("system", "system_prompt")
"""Where a row says beside its messages what the system says."""

PLACE = "<image>"
"""What stands in a text of others where an image is."""

ANSWERS = {"chosen": (*CHOSEN, "response"), "rejected": (*REJECTED, "reject")}
"""What columns of answers are called by TRL, LLaMA-Factory, MMPR; ms-swift; POVID; OpenAI."""

QUESTIONS = ("question", "prompt", "instruction", "query")
"""Columns of one text that is asked; LLaMA-Factory's `input` goes on behind it."""

MESSAGES = ("prompt", "conversations", "messages")
"""Columns of messages up to the one that is asked, or up to the chosen answer."""

IMAGES = ("images", "image", "image_path")

_OTHERS = re.compile(r"</?(?:img|video|audio)>|<(?:bbox|ref-object)>")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_TEXT_PARTS = ("text", "input_text", "output_text")


def convert_chats(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """Conversations in JSON or JSONL.

    LLaVA's have `image` and `conversations` of `from` and `value`, ShareGPT's messages of `role`
    and `content`, with image parts, or `<image>` and a list `images`; both are read alike.
    """
    return [
        draft
        for name, row, split in rows_of_files(source, ".json", ".jsonl")
        for draft in attempt(name, conversation_of, row, split, source.find)
    ]


@dataclass(frozen=True)
class _Said:
    """What one message says."""

    role: str
    text: str
    places: tuple[Any, ...] = ()
    """For each `<image>` in the text an image, its number in the row's list, or none: the next."""


def conversation_of(row: Any, split: str, find: Find) -> Draft:
    """Draft the conversation of a row.

    Args:
        row: with `messages` or `conversations`, and `images` or `image` beside them.
        split: that it belongs to.
        find: looks the path of an image up.

    Raises:
        UnfitError: it cannot be an example.
    """
    row = present(row)
    row = row if isinstance(row, dict) else {}
    said = row.get("conversations") or row.get("messages")
    if not isinstance(said, list) or not all(isinstance(message, Mapping) for message in said):
        raise UnfitError("no list of messages in it")
    refuse_meaningful(row)
    spoken = [_message(message) for message in said]
    system = [text_of(row.get(key), "a system text") or "" for key in SYSTEM_KEYS]
    while spoken and spoken[0].role == "system":
        system.append(spoken.pop(0).text)
    if any(message.role == "system" for message in spoken):
        raise UnfitError("a system message after the first question")
    roles = [message.role for message in spoken]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UnfitError("user and assistant do not take turns")
    beside = images_of(row.get("images") or row.get("image"), split, find)
    turns, media = _turns(spoken, beside, split, find)
    return Draft(split, turns, media, system=join_system(system))


def _turns(
    spoken: list[_Said], beside: list[DraftImage], split: str, find: Find
) -> tuple[tuple[Turn, ...], tuple[DraftImage, ...]]:
    """Deal the images that stand beside the messages to the places that the questions name."""
    waiting = dict(enumerate(beside))
    if waiting and not any(message.places for message in spoken):
        # No place is said: before the first question.
        spoken[0] = _Said("user", PLACE * len(waiting) + spoken[0].text, (None,) * len(waiting))
    media: list[DraftImage] = []
    turns: list[Turn] = []
    for asked, answered in zip(spoken[::2], spoken[1::2], strict=True):
        here: list[DraftImage] = []
        for place in asked.places:
            if isinstance(place, Mapping):
                here += images_of(place, split, find)
                # Some rows list once more what their messages hold.
                same = (one for one, image in waiting.items() if image == here[-1])
                waiting.pop(next(same, -1), None)
                continue
            number = next(iter(waiting), None) if place is None else place
            if number not in waiting:
                raise UnfitError("more <image> than pictures")
            here.append(waiting.pop(number))
        media += here
        turns.append(
            Turn(
                images=tuple(image.target for image in here),
                user=number_places(asked.text),
                assistant=answered.text.strip(),
            )
        )
    if waiting:
        raise UnfitError("more pictures than <image>")
    return tuple(turns), tuple(media)


def _message(message: Mapping[str, Any]) -> _Said:
    """Read who speaks, what, and the images in between."""
    name = message.get("from") or message.get("role")
    if name in TOOLS:
        raise UnfitError(f"a tool speaks in it ({name})")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise UnfitError(f"nobody that we know speaks ({name})")
    refuse_meaningful(message, ("prefix", "refusal", "images", "image"))
    content = message.get("value", message.get("content"))
    if content is None and role == "system":
        return _Said(role, "")
    text, places = _content(content)
    if places and role != "user":
        raise UnfitError(f"a message of the {role} with a picture")
    refuse_foreign_tags(text)
    return _Said(role, text, places)


def _content(content: Any) -> tuple[str, tuple[Any, ...]]:
    """Read the text of a message, with what stands at each `<image>` in it."""
    if content is None:
        raise UnfitError("a message that says nothing")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts: list[str | None] = []
    places: list[Any] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            said = text_of(part.get("text"), "a message") or ""
            texts.append(said)
            places += [None] * said.count(PLACE)
        elif kind in _IMAGE_PARTS:
            named = {key: part[key] for key in WRAPPERS if key in part}
            texts.append(None)
            places.append(named or part.get("index"))
        else:
            raise UnfitError(f"a part of a message that is neither text nor image ({kind})")
    text = write_places(texts, PLACE) if isinstance(content, list) else texts[0] or ""
    return text, tuple(places)


def refuse_foreign_tags(text: str) -> None:
    """Refuse a text in which another tool's tag stands for what is not there.

    Raises:
        UnfitError: it is named.
    """
    if found := _OTHERS.search(text):
        raise UnfitError(f"another tool's tag in a text ({found[0]})")


def number_places(text: str) -> str:
    """Drop places in front, where our images stand anyway; number them where words come first."""
    body = re.sub(rf"^(\s*{PLACE})+\s*", "", text)
    if PLACE not in body:
        return body.strip()
    numbers = iter(range(1, text.count(PLACE) + 1))
    return re.sub(PLACE, lambda _: f"<|image_{next(numbers)}|>", text).strip()


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
        find: looks the path of an image up.

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
    beside["images"] = next((row[key] for key in IMAGES if key in row), None)
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
