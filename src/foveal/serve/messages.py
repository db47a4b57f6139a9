"""OpenAI's chat protocol: what a request may say, and its messages as turns.

A field that would change the answer and that we do not honour is refused, never passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from foveal.data.message import IMAGE_TAG, SYSTEM_ROLES, join_system, write_turn
from foveal.serve.limits import RequestError
from foveal.serve.sent_files import SentFile, name_next

MOST_STOPS = 4
MOST_STOP_CHARACTERS = 256
MOST_TOP_LOGPROBS = 20

Neutral = Annotated[float, Field(ge=0, le=0)] | None
"""A number that may be sent, as long as it changes nothing."""

Nothing = Annotated[tuple[Any, ...], Field(max_length=0)] | None
"""A list that may be sent, as long as it is empty."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What OpenAI's clients may send, and a generator takes."""

Stop = Annotated[str, Field(max_length=MOST_STOP_CHARACTERS)]
"""Looked for at every token: a long one would hold up everybody."""

Stops = Annotated[
    tuple[Stop, ...],
    Field(max_length=MOST_STOPS),
    BeforeValidator(lambda sent: (sent,) if isinstance(sent, str) else sent),
]


class _Asked(BaseModel):
    """Base of what clients send: an unknown field is an error, and null is an absent value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, sent: object) -> object:
        if isinstance(sent, dict):
            return {name: value for name, value in sent.items() if value is not None}
        return sent


class TextPart(_Asked):
    """Text in a message."""

    type: Literal["text"]
    text: str


class VideoAddress(_Asked):
    """Where a clip is."""

    url: str
    """`data:...;base64,...`, or a web address where the server allows them."""


class ImageAddress(VideoAddress):
    """Where an image is."""

    detail: Literal["auto", "low", "high", "original"] = "auto"
    """Accepted and without effect: the model's own number of crops holds."""


class ImagePart(_Asked):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


class VideoPart(_Asked):
    """A clip in a message, by the name that vLLM's interface has for it."""

    type: Literal["video_url"]
    video_url: VideoAddress


KINDS_OF_PARTS = ("text", "image_url", "video_url")

Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]

Parts = Annotated[
    tuple[Part, ...],
    BeforeValidator(
        lambda sent: [TextPart(type="text", text=sent)] if isinstance(sent, str) else sent
    ),
]
"""A message's parts; a plain text is one."""


class Message(_Asked):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Parts
    name: str | None = None

    # As an answer of ours comes back; only where they say nothing.
    annotations: Nothing = None
    refusal: None = None
    tool_calls: Nothing = None


class StreamOptions(_Asked):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted and without effect."""


class TextFormat(_Asked):
    """The one format we answer in."""

    type: Literal["text"]


class ChatRequest(_Asked):
    """What a client asks for."""

    model: str = ""
    """Empty: the tuned one."""

    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    """0: the most likely token each time, as answers are scored."""

    top_p: float = Field(1.0, gt=0, le=1)
    stop: Stops = ()
    seed: Seed | None = None
    n: int = Field(1, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    stream: bool = False
    stream_options: StreamOptions | None = None

    # Without effect on the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    verbosity: str | None = None

    # Only where they ask for nothing.
    frequency_penalty: Neutral = None
    presence_penalty: Neutral = None
    logit_bias: dict[str, Neutral] | None = Field(None, max_length=0)
    response_format: TextFormat | None = None
    modalities: tuple[Literal["text"], ...] | None = None
    tools: Nothing = None
    functions: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if "" in self.stop:
            raise ValueError("stop holds an empty text, which every answer begins with")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def num_files(self) -> int:
        """Images and clips of all messages."""
        parts = [part for message in self.messages for part in message.content]
        return sum(not isinstance(part, TextPart) for part in parts)

    @property
    def most_tokens(self) -> int | None:
        """Longest answer asked for; the new name of the field wins."""
        return self.max_completion_tokens or self.max_tokens


def parse_request(body: bytes | str) -> ChatRequest:
    """Read a request.

    Raises:
        RequestError: it is no JSON, or holds what we do not know or do not honour.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _first_problem(error) from None


def _first_problem(error: ValidationError) -> RequestError:
    # What is wrong furthest within is what was meant; and what is said too much, such as a call
    # of tools, explains what is missing.
    first = max(
        error.errors(include_url=False, include_input=False),
        key=lambda one: (len(one["loc"]), one["type"] != "missing"),
    )
    # Behind its number in the list, pydantic names the kind of a part.
    names = [
        str(name)
        for before, name in pairwise((None, *first["loc"]))
        if not (isinstance(before, int) and name in KINDS_OF_PARTS)
    ]
    where, reason = ".".join(names), first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not JSON ({reason.removeprefix('Invalid JSON: ')})")
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"{where} is not a field that we know", "unknown_parameter", where)
    if first["type"] == "missing":
        return RequestError(400, f"{where} is missing", "missing_required_parameter", where)
    reason = reason[0].lower() + reason[1:]
    if not where:
        return RequestError(400, reason, "invalid_value")
    return RequestError(400, f"{where}: {reason}", "invalid_value", where)


Open = Callable[[str, str, bool], SentFile]
"""(url, what to call it, whether it is a clip) -> image or clip."""


@dataclass(frozen=True)
class Said:
    """What a user said in one turn, and what the model answered; none: that is asked for."""

    user: str
    files: tuple[SentFile, ...]
    """Clips behind images, as in training."""

    assistant: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns up to the one that is to be answered."""

    turns: tuple[Said, ...]
    system: str = ""


def read_conversation(
    messages: Sequence[Message],
    open_address: Open,
    beside: Sequence[SentFile] = (),
) -> Conversation:
    """Sort messages into turns.

    Args:
        messages: in OpenAI's form.
        open_address: reads the image or clip of an address.
        beside: files that came beside the messages; they stand before the last question.

    Raises:
        RequestError: the messages are out of order, or an image cannot be had.
    """
    opening = [one for one in messages if one.role in SYSTEM_ROLES]
    rest = [one for one in messages if one.role not in SYSTEM_ROLES]
    if not rest or rest[-1].role != "user":
        raise RequestError(400, "the last message must be a user's: that is the one answered")
    if rest[0].role != "user":
        raise RequestError(400, "the first message, system messages aside, must be a user's")
    if [*opening, *rest] != [*messages]:
        raise RequestError(400, "system messages stand before all others")
    turns: list[Said] = []
    for role, some in groupby(rest, key=lambda message: message.role):
        said = list(some)
        if role == "user":
            is_last = said[-1] is rest[-1]
            turns.append(_turn(said, open_address, beside if is_last else (), turns))
        elif len(said) > 1:
            raise RequestError(400, "two messages of the assistant follow each other; join them")
        else:
            turns[-1] = replace(turns[-1], assistant=_text_of(said[0]))
    return Conversation(tuple(turns), join_system(map(_text_of, opening)))


def _text_of(message: Message) -> str:
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) < len(message.content):
        raise RequestError(
            400, f"a message of the {message.role} has pictures or clips; users alone show them"
        )
    return write_turn(texts)


def _turn(
    messages: Sequence[Message],
    open_address: Open,
    beside: Sequence[SentFile],
    before: Sequence[Said],
) -> Said:
    """Join what a user said in a row; what came beside it stands before it."""
    earlier = [file for turn in before for file in turn.files]
    files = list(beside)
    parts: list[str | None] = [None] * len(files)
    for part in (part for message in messages for part in message.content):
        if isinstance(part, TextPart):
            parts.append(part.text)
            continue
        is_clip = isinstance(part, VideoPart)
        address = part.video_url if isinstance(part, VideoPart) else part.image_url
        name = name_next([*earlier, *files], is_clip)
        parts.append(None)
        files.append(open_address(address.url, name, is_clip))
    user = write_turn(parts)
    if any(file.is_clip for file in files) and IMAGE_TAG.search(user):
        raise RequestError(
            400,
            "a clip stands behind a turn's pictures and before its text; leave image tags, and "
            "texts between them, out",
            "bad_image_tags",
            "messages",
        )
    return Said(user, tuple(sorted(files, key=lambda file: file.is_clip)))
