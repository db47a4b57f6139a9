"""Parts of messages, texts and images in any order -> the text of a turn, written in one way.

Conversion, the chat template and the endpoint all come through here, so that a model is asked as it
was trained.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import count, groupby

IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
"""Stands in a text where image n of its turn is."""

SYSTEM_ROLES = ("system", "developer")
"""Who may speak before all others; `developer` is the newer name."""


def write_turn(parts: Sequence[str | None]) -> str:
    """Write what a user says in one turn, as an example's `user` has it.

    Each text is a line of its own. Images stand before the text and need no tag; where texts stand
    between images, tags keep each in its place. A text with tags of its own decides by itself.

    Args:
        parts: texts, and none where an image stands.
    """
    said = [part for part in parts if part != ""]
    texts = [part for part in said if part is not None]
    runs = [list(run) for _, run in groupby(said, lambda part: part is None)]
    if len(runs) < 3 or any(IMAGE_TAG.search(text) for text in texts):
        return "\n".join(texts)
    numbers = count(1)
    lines: list[str] = []
    for run in runs:
        tags = "".join(f"<|image_{next(numbers)}|>" for part in run if part is None)
        lines += [tags] if tags else [part for part in run if part]
    return "\n".join(lines)


def write_places(parts: Sequence[str | None], place: str) -> str:
    """Write a turn with the word of others, such as `<image>`, wherever an image stands.

    Texts that have that word themselves are joined as they are.
    """
    texts = [part for part in parts if part]
    if any(place in text for text in texts):
        return "".join(place if part is None else part for part in parts)
    text = write_turn(parts)
    if IMAGE_TAG.search(text) and not any(IMAGE_TAG.search(one) for one in texts):
        return IMAGE_TAG.sub(place, text)
    return place * parts.count(None) + ("\n" + text if None in parts else text)


def write_tags(user: str, num_images: int, images_before: int = 0) -> str:
    """Write the tags of a turn's images into its text: in front, if it has none of its own.

    Args:
        user: text of the turn.
        num_images: of the turn.
        images_before: of the turns before it; the tags count on from there.
    """
    if IMAGE_TAG.search(user):
        return IMAGE_TAG.sub(lambda tag: f"<|image_{int(tag[1]) + images_before}|>", user)
    tags = "".join(f"<|image_{images_before + one}|>" for one in range(1, num_images + 1))
    return f"{tags}\n{user}" if tags else user


def join_system(texts: Iterable[str]) -> str:
    """Join what system messages say; empty ones say nothing."""
    return "\n\n".join(text for text in texts if text)


def tag_order(text: str, num_images: int) -> list[int]:
    """Read in which order a text shows its images, counted from 0.

    Raises:
        ValueError: the tags are not 1 to `num_images`, each once.
    """
    tags = [int(tag) for tag in IMAGE_TAG.findall(text)]
    if sorted(tags) != list(range(1, num_images + 1)):
        named = ", ".join(f"<|image_{tag}|>" for tag in tags) or "none"
        raise ValueError(
            f"image tags in the text ({named}) do not match {num_images} images; "
            "write each of <|image_1|> to <|image_n|> once"
        )
    return [tag - 1 for tag in tags]
