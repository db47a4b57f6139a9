"""OpenAI's messages -> system text and turns, each with its pictures and clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foveal.data.message import IMAGE_TAG, SYSTEM_ROLES, join_system, write_turn
from foveal.serve.problems import RequestError
from foveal.serve.requests.messages import ImagePart, Message, TextPart
from foveal.serve.requests.sent_images import PictureFile

Open = Callable[[str, str], PictureFile]
"""(url, what to call it) -> picture or clip."""


@dataclass(frozen=True)
class Said:
    """What a user said in one turn, and what the model answered; none: that is asked for."""

    user: str
    pictures: tuple[PictureFile, ...]
    assistant: str | None = None
    clips: tuple[PictureFile, ...] = ()
    """They stand behind the pictures, as in training."""


@dataclass(frozen=True)
class Conversation:
    """Turns up to the one that is to be answered."""

    turns: tuple[Said, ...]
    system: str = ""

    @property
    def num_files(self) -> int:
        """Pictures and clips of all turns."""
        return sum(len(turn.pictures) + len(turn.clips) for turn in self.turns)


def read_conversation(
    messages: Sequence[Message],
    open_address: Open,
    uploads: Sequence[PictureFile] = (),
    clips: Sequence[PictureFile] = (),
) -> Conversation:
    """Sort messages into turns.

    Args:
        messages: in OpenAI's form.
        open_address: reads the picture or clip of an address.
        uploads: pictures that came beside the messages; they stand before the last question.
        clips: that came so.

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
    for message in rest:
        if message.role == "user":
            asked.append(message)
            continue
        if not asked:
            raise RequestError(400, "two messages of the assistant follow each other; join them")
        turns.append(_turn(asked, open_address, Said("", (), _text_of(message)), turns))
        asked = []
    turns.append(_turn(asked, open_address, Said("", tuple(uploads), None, tuple(clips)), turns))
    return Conversation(tuple(turns), join_system(map(_text_of, opening)))


def _text_of(message: Message) -> str:
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    if len(texts) < len(message.parts):
        raise RequestError(
            400, f"a message of the {message.role} has pictures or clips; users alone show them"
        )
    return write_turn(texts)


def _turn(
    messages: Sequence[Message], open_address: Open, begun: Said, before: Sequence[Said]
) -> Said:
    """Join what a user said in a row; uploads stand before it."""
    pictures, clips = list(begun.pictures), list(begun.clips)
    num_pictures = sum(len(turn.pictures) for turn in before)
    num_clips = sum(len(turn.clips) for turn in before)
    parts: list[str | None] = [None] * (len(pictures) + len(clips))
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, TextPart):
            parts.append(part.text)
            continue
        parts.append(None)
        if isinstance(part, ImagePart):
            name = f"picture {num_pictures + len(pictures) + 1}"
            pictures.append(open_address(part.image_url.url, name))
        else:
            name = f"clip {num_clips + len(clips) + 1}"
            clips.append(open_address(part.video_url.url, name))
    user = write_turn(parts)
    if clips and IMAGE_TAG.search(user):
        raise RequestError(
            400,
            "a clip stands behind a turn's pictures and before its text; leave image tags, and "
            "texts between them, out",
            "bad_image_tags",
            "messages",
        )
    return Said(user, tuple(pictures), begun.assistant, tuple(clips))
