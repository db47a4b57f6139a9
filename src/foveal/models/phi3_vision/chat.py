"""Messages with text and image parts -> messages of text with tags, and their images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foveal.data.images.media import ImageInput
from foveal.data.message import IMAGE_TAG, SYSTEM_ROLES, join_system, write_tags, write_turn

LOST_KEYS = ("tool_calls", "function_call", "images", "videos", "audio")
"""Of a message: what the published template would pass over, though it changes the meaning."""

IMAGE_KEYS = ("image", "path", "url")
"""Of an image part: any of them holds the image."""

Message = Mapping[str, Any]


def plain_messages(messages: Sequence[Message]) -> tuple[list[dict[str, str]], list[ImageInput]]:
    """Write each message as training writes its turn; an absent value and a null are the same.

    System messages are joined, and so are messages of a user in a row. An image part may leave its
    image out, to be given to the processor with the written prompt.

    Raises:
        ValueError: what no turn of ours can say, such as tool calls or images of the assistant.
    """
    system: list[str] = []
    said: list[tuple[str, list[str | None]]] = []
    images: list[ImageInput] = []
    for message in messages:
        role = message.get("role")
        parts, shown = read_parts(message)
        images += shown
        if role != "user" and None in parts:
            raise ValueError(f"a message of the {role} has pictures; users alone show them")
        if role in SYSTEM_ROLES:
            if said:
                raise ValueError("system messages stand before all others")
            system.append(write_turn(parts))
        elif role == "user" and said and said[-1][0] == "user":
            said[-1][1].extend(parts)
        elif role in ("user", "assistant"):
            if said and said[-1][0] == role:
                raise ValueError("two messages of the assistant follow each other; join them")
            said.append((role, parts))
        else:
            raise ValueError(f"a message is of system, user or assistant, not of {role!r}")
    opening = join_system(system)
    plain = [{"role": "system", "content": opening}] if opening else []
    num_images = 0
    for role, parts in said:
        text, own = write_turn(parts), parts.count(None)
        plain.append({"role": role, "content": write_tags(text, own, num_images) if own else text})
        num_images += own
    return plain, images


def read_parts(message: Message) -> tuple[list[str | None], list[ImageInput]]:
    """Read a message's texts in order, none where an image stands, and the images it brings.

    Raises:
        ValueError: a part is neither an image nor text, or the message says more than its parts.
    """
    lost = next((key for key in LOST_KEYS if message.get(key)), None)
    if lost:
        raise ValueError(f"a message has {lost!r}, which this model's template does not write")
    content = message.get("content")
    if content is None:
        raise ValueError(f"a message of the {message.get('role')} has no content")
    if isinstance(content, str):
        return [content], []
    parts: list[str | None] = []
    images: list[ImageInput] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "image":
            parts.append(None)
            given = [part[key] for key in IMAGE_KEYS if part.get(key) is not None]
            images += given[:1]
        elif kind == "text":
            parts.append(part.get("text") or "")
        else:
            raise ValueError(f"a message part is image or text, not {kind!r}")
    return parts, images


def answer_spans(messages: Sequence[Message], render: Callable[..., str]) -> list[tuple[int, int]]:
    """Find from which character to which the assistant's answers stand, with what ends them.

    Args:
        messages: plain.
        render: (messages, add_generation_prompt=...) -> text.

    Raises:
        ValueError: the template does not write message after message.
    """
    whole = render(messages)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:place], add_generation_prompt=True)
        upto = render(messages[: place + 1])
        if not whole.startswith(upto) or not upto.startswith(before):
            raise ValueError("the chat template shows no place of the answers; mask them yourself")
        spans.append((len(before), len(upto)))
    return spans


def images_by_prompt(prompts: Sequence[str], images: Any) -> list[list[ImageInput]]:
    """Give each prompt its images.

    Raises:
        ValueError: a flat list of images is longer or shorter than the prompts' tags.
    """
    if images is None:
        images = []
    if isinstance(images, ImageInput):
        images = [images]
    if any(isinstance(entry, list | tuple) for entry in images):
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} lists of images for {len(prompts)} prompts")
        return [[entry] if isinstance(entry, ImageInput) else list(entry or ()) for entry in images]
    if len(prompts) == 1:
        return [list(images)]
    counts = [len(IMAGE_TAG.findall(prompt)) for prompt in prompts]
    if sum(counts) != len(images):
        raise ValueError(
            f"{sum(counts)} image tags in {len(prompts)} prompts, {len(images)} images"
        )
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in counts]
