"""OpenAI's chat protocol: what a request may say.

A field that would change the answer and that we do not honour is refused, never passed over.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from foveal.serve.problems import RequestError

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


class ImageAddress(_Asked):
    """Where a picture is."""

    url: str
    """`data:image/png;base64,...`, or a web address where the server allows them."""

    detail: Literal["auto", "low", "high", "original"] = "auto"
    """Accepted and without effect: the model's own number of crops holds."""


class ImagePart(_Asked):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


class VideoAddress(_Asked):
    """Where a clip is."""

    url: str
    """`data:video/mp4;base64,...`, or a web address where the server allows them."""


class VideoPart(_Asked):
    """A clip in a message, by the name that vLLM's interface has for it."""

    type: Literal["video_url"]
    video_url: VideoAddress


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Asked):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...]
    name: str | None = None

    # As an answer of ours comes back; only where they say nothing.
    annotations: Nothing = None
    refusal: None = None
    tool_calls: Nothing = None

    @property
    def parts(self) -> tuple[TextPart | ImagePart | VideoPart, ...]:
        """Its parts; a plain text is one."""
        if isinstance(self.content, str):
            return (TextPart(type="text", text=self.content),)
        return self.content


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
    temperature: float | None = Field(None, ge=0, le=2)
    """None: 0, the most likely token each time, as answers are scored."""

    top_p: float | None = Field(None, gt=0, le=1)
    stop: tuple[Stop, ...] = Field((), max_length=MOST_STOPS)
    seed: Seed | None = None
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    stream: bool | None = None
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

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, stop: object) -> object:
        return (stop,) if isinstance(stop, str) else stop

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
    # Of a union's members, the one that got furthest is the one that was meant; and what is said
    # too much, such as a call of tools, explains what is missing.
    first = max(
        error.errors(include_url=False, include_input=False),
        key=lambda e: (len(e["loc"]), e["type"] != "missing"),
    )
    places = first["loc"]
    pairs = zip((None, *places), places, strict=False)
    names = [str(place) for before, place in pairs if _is_field(before, place)]
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


def _is_field(before: int | str | None, part: int | str) -> bool:
    """Tell fields and places from the names that pydantic gives the members of a union."""
    if isinstance(part, int):
        return True
    is_tag = isinstance(before, int) and part in ("text", "image_url", "video_url")
    return not is_tag and part != "str" and "[" not in part
