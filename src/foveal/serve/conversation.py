"""OpenAI's messages -> system text and turns, each with its pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foveal.data.message import SYSTEM_ROLES, join_system, write_turn
from foveal.serve.messages import ImageAddress, ImagePart, Message, TextPart
from foveal.serve.problems import RequestError
from foveal.serve.sent_images import PictureFile

Open = Callable[[ImageAddress, str], PictureFile]
"""(address, what to call it) -> picture."""


@dataclass(frozen=True)
class Said:
    """What a user said in one turn, and what the model answered; none: that is asked for."""

    user: str
    pictures: tuple[PictureFile, ...]
    assistant: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns up to the one that is to be answered."""

    turns: tuple[Said, ...]
    system: str = ""

    @property
    def pictures(self) -> tuple[PictureFile, ...]:
        """Of all turns, in order."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)


def read_conversation(
    messages: Sequence[Message], open_address: Open, uploads: Sequence[PictureFile] = ()
) -> Conversation:
    """Sort messages into turns.

    Args:
        messages: in OpenAI's form.
        open_address: reads the picture of an address.
        uploads: pictures that came beside the messages; they stand before the last question.

    Raises:
        RequestError: the messages are out of order, or a picture cannot be had.
    """
    opening = [one for one in messages if one.role in SYSTEM_ROLES]
    rest = [one for one in messages if one not in opening]
    if not rest or rest[-1].role != "user":
        raise RequestError(400, "the last message must be a user's: that is the one answered")
    if rest[0].role != "user":
        raise RequestError(400, "the first message, system messages aside, must be a user's")
    if tuple(messages[: len(opening)]) != tuple(opening):
        raise RequestError(400, "system messages stand before all others")
    turns: list[Said] = []
    asked: list[Message] = []
    opened = 0
    for message in rest:
        if message.role == "user":
            asked.append(message)
            continue
        if not asked:
            raise RequestError(400, "two messages of the assistant follow each other; join them")
        turns.append(_turn(asked, open_address, (), _text_of(message), opened))
        opened += len(turns[-1].pictures)
        asked = []
    turns.append(_turn(asked, open_address, uploads, None, opened))
    return Conversation(tuple(turns), join_system(map(_text_of, opening)))


def _text_of(message: Message) -> str:
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    if len(texts) < len(message.parts):
        raise RequestError(
            400, f"a message of the {message.role} has pictures; users alone show them"
        )
    return write_turn(texts)


def _turn(
    messages: Sequence[Message],
    open_address: Open,
    uploads: Sequence[PictureFile],
    answer: str | None,
    opened: int,
) -> Said:
    """Join what a user said in a row; uploads stand before it."""
    pictures = list(uploads)
    parts: list[str | None] = [None] * len(uploads)
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, ImagePart):
            pictures.append(open_address(part.image_url, f"picture {opened + len(pictures) + 1}"))
            parts.append(None)
        else:
            parts.append(part.text)
    return Said(write_turn(parts), tuple(pictures), answer)
