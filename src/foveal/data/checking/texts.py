"""An example's texts -> what is wrong with them or worth a word."""

import re
from collections import Counter
from collections.abc import Iterator
from unicodedata import category

from foveal.data.example import Example, Turn
from foveal.data.message import IMAGE_TAG

_SPECIAL_TOKEN = re.compile(r"<\|(?!image_\d+\|>)\w+\|>|</?s>|<unk>")
_FOREIGN_TAG = re.compile(
    r"</?(?:image|img|video|audio)(?:[ _-]?(?:\d+|token|soft_token|placeholder|pad|here))?>"
    r"|<(?:start|end)_of_(?:turn|image|utterance)>|<(?:bos|eos|pad)>"
    r"|\[/?INST\]|\[IMG(?:_\w+)?\]|<</?SYS>>",
    re.IGNORECASE,
)
NO_PAIR = 'no turn has a "rejected" answer, and objective=preferences learns from nothing else'
"""What is wrong with an example that teaches no preference."""

_NOTHING = ("nan", "none", "null")
"""What other tools write for a value that is absent, in small letters."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is spaces and signs without width, as U+200B."""
    return all(one.isspace() or category(one) in ("Cc", "Cf") for one in text)


def example_problems(example: Example, pairs: bool = False) -> Iterator[str]:
    """Find what is wrong with an example's texts; with `pairs`, it has to teach a preference."""
    if pairs and not any(turn.rejected for turn in example.turns):
        yield NO_PAIR
    if example.system:
        yield from _text_problems("system", example.system)
        if IMAGE_TAG.search(example.system):
            yield "system holds an image tag"
    for place, turn in enumerate(example.turns, start=1):
        for message in _turn_problems(turn):
            yield f"turn {place}: {message}"


def example_warnings(example: Example) -> Iterator[str]:
    """Find what may be meant as it is, and is wrong more often than not."""
    for place, turn in enumerate(example.turns, start=1):
        for who, text in (("user", turn.user), ("assistant", turn.assistant)):
            is_word = who == "assistant" and text.strip().lower() == "none"  # of several, say
            if text.strip().lower() in _NOTHING and not is_word:
                yield f'turn {place}: {who} is "{text}", which tables write for nothing'


def _turn_problems(turn: Turn) -> Iterator[str]:
    for who, text in (("user", turn.user), ("assistant", turn.assistant)):
        yield from _text_problems(who, text)
    if IMAGE_TAG.search(turn.assistant):
        yield "assistant holds an image tag"
    named = [int(number) for number in IMAGE_TAG.findall(turn.user)]
    if named and turn.videos:
        yield "user holds image tags beside clips, whose frames have none; leave the tags out"
    elif named and sorted(named) != list(range(1, len(turn.images) + 1)):
        tags = ", ".join(f"<|image_{number}|>" for number in named)
        yield f"user names {tags}, but the turn has {len(turn.images)} images"
    if turn.choices and turn.assistant not in turn.choices:
        yield f'"{turn.assistant}" is none of the choices'
    if any(map(is_blank, turn.answers)):
        yield "an answer is empty"
    yield from choices_problems(turn.choices)
    yield from _pair_problems(turn)


def _pair_problems(turn: Turn) -> Iterator[str]:
    for rejected in turn.rejected:
        yield from _text_problems("rejected", rejected)
        if IMAGE_TAG.search(rejected):
            yield "rejected holds an image tag"
        if rejected.strip() == turn.assistant.strip():
            yield "rejected is the assistant's answer: such a pair teaches nothing"
    if len({one.strip() for one in turn.rejected}) < len(turn.rejected):
        yield "the same answer is rejected twice"


def _text_problems(who: str, text: str) -> Iterator[str]:
    if is_blank(text):
        yield f"{who} is empty"
    if tokens := sorted(set(_SPECIAL_TOKEN.findall(text))):
        yield f"{who} holds {', '.join(tokens)}, which the model would read as plain text"
    if tags := sorted({tag[0] for tag in _FOREIGN_TAG.finditer(text)}):
        yield f"{who} holds {', '.join(tags)}, which another tool reads, and ours as plain text"


def choices_problems(choices: tuple[str, ...]) -> Iterator[str]:
    """Find what is wrong with a closed set of labels."""
    if any(map(is_blank, choices)):
        yield "a choice is empty"
    if spaced := [choice for choice in choices if choice.strip() and choice != choice.strip()]:
        yield f'the choice "{spaced[0]}" begins or ends with a space'
    if twice := [choice for choice, count in Counter(choices).items() if count > 1]:
        yield f'the choice "{twice[0]}" is there twice'
