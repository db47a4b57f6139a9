"""Builds preference data: questions about pictures with a better answer and worse ones."""

from collections.abc import Sequence
from pathlib import Path

from tiny import make_image, turn, write_data

CHOSEN = ("It is red.", "yes", "It is a long answer that goes on for a while.", "It is blue.")
REJECTED = ("It is red and green.", "no", "short", "It is not to be seen here.")
"""Two of them begin with the same tokens as what they are compared with."""


def pair_pages(
    folder: Path,
    num_pages: int = 3,
    questions: int = 3,
    name: str = "pairs",
    images: int = 1,
    rejected: int = 1,
    places: Sequence[int] = (),
) -> Path:
    """A JSONL file: `questions` pairs about each of `num_pages` sets of pictures.

    Args:
        folder: of the file; pictures stand in `images` below it.
        num_pages: sets of pictures.
        questions: pairs about each.
        name: of the file.
        images: of each set.
        rejected: worse answers of each question.
        places: which of the answers above are taken, question by question; empty: in turn.
    """
    conversations = []
    for page in range(num_pages):
        shown = [f"{name}-{page}-{number}.png" for number in range(images)]
        for number, image in enumerate(shown):
            make_image(folder / "images" / image, 10 * page + number, (60 + 20 * page, 40))
        for number in range(questions):
            at = places[number] if places else (page + number) % len(CHOSEN)
            worse = [f"{REJECTED[at]}{' Really.' * k}" for k in range(rejected)]
            conversations.append(
                [turn(f"What is {number} of it?", CHOSEN[at], shown, rejected=worse)]
            )
    return write_data(folder / f"{name}.jsonl", conversations)
