"""Draw pages of printed lines, and ask 1 to 8 questions about each, with exact answers.

    python benchmarks/draw_pages.py OUT --pages 400 --seed 0

Writes OUT/images/*.png and OUT/pages.jsonl. A line is black, blue, red or green and short or long;
what is printed is nonsense. Every answer is one word, so that all examples weigh the same however
a trainer averages. The same arguments draw the same pages.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal.data.example import Example, Turn, write_examples

INKS = {"black": (20, 20, 20), "blue": (30, 70, 220), "red": (220, 40, 40), "green": (20, 150, 60)}
LENGTHS = {"short": 0.4, "long": 0.95}
"""Widest share of the page's width that a line takes; a long one takes 0.7 at least."""

LONG_SHARE = 0.7
NUMBERS = ("one", "two", "three", "four", "five", "six")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_QUESTIONS = 8


@dataclass(frozen=True)
class PageStyle:
    """Size of a page; it has room for six lines."""

    width: int = 96
    """Pixels."""

    height: int = 96
    fewest_lines: int = 2

    @property
    def pitch(self) -> int:
        """From line to line, pixels."""
        return self.height // len(NUMBERS)

    @property
    def font_size(self) -> int:
        """Height of the letters, pixels."""
        return max(6, self.pitch * 3 // 4)


@dataclass(frozen=True)
class Line:
    """One printed line."""

    ink: str
    length: str
    text: str


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Take the font that Pillow brings along."""
    return ImageFont.load_default(size)


def invent_line(style: PageStyle, randomness: np.random.Generator) -> Line:
    """Make up words until the line is as long as it should be."""
    ink, length = str(randomness.choice(list(INKS))), str(randomness.choice(list(LENGTHS)))
    font, text = font_of(style.font_size), ""
    fewest = LONG_SHARE * style.width if length == "long" else 1
    most = LENGTHS[length] * style.width - 2
    while font.getlength(text) < fewest:
        word = "".join(randomness.choice(list(LETTERS), int(randomness.integers(1, 4))))
        longer = f"{text} {word}".strip()
        text = longer if font.getlength(longer) <= most else text
    return Line(ink, length, text)


def draw_page(lines: list[Line], style: PageStyle) -> Image.Image:
    """Print lines on white, from the top."""
    page = Image.new("RGB", (style.width, style.height), "white")
    pen = ImageDraw.Draw(page)
    for place, line in enumerate(lines):
        middle = (style.width // 48, place * style.pitch + style.pitch // 2)
        pen.text(middle, line.text, INKS[line.ink], font_of(style.font_size), anchor="lm")
    return page


def questions_about(lines: list[Line]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Ask all that can be asked of a page: question, answer, closed set."""
    asked = [("How many lines are there?", NUMBERS[len(lines) - 1], NUMBERS[1:])]
    for place, line in enumerate(lines):
        name = NUMBERS[place]
        asked.append((f"What color is line {name}?", line.ink, tuple(INKS)))
        asked.append((f"Is line {name} short or long?", line.length, tuple(LENGTHS)))
    return asked


def draw_pages(
    out: Path,
    pages: int,
    seed: int = 0,
    style: PageStyle | None = None,
    questions: tuple[int, int] = (1, MOST_QUESTIONS),
    name: str = "pages",
) -> Path:
    """Fill a folder; returns the JSONL file.

    Args:
        out: folder for images/ and `name`.jsonl.
        pages: how many.
        seed: start of every random choice.
        style: size of a page.
        questions: fewest and most of a page; a page of few lines may have fewer.
        name: of the file and of the pictures.
    """
    style = style or PageStyle()
    (out / "images").mkdir(parents=True, exist_ok=True)
    examples = []
    for page in range(pages):
        randomness = np.random.default_rng((seed, page))
        count = int(randomness.integers(style.fewest_lines, len(NUMBERS) + 1))
        lines = [invent_line(style, randomness) for _ in range(count)]
        picture = f"{name}-{page:05d}.png"
        draw_page(lines, style).save(out / "images" / picture)
        asked = questions_about(lines)
        wanted = min(int(randomness.integers(questions[0], questions[1] + 1)), len(asked))
        for number, place in enumerate(randomness.permutation(len(asked))[:wanted]):
            user, assistant, choices = asked[place]
            turn = Turn(images=(picture,), user=user, assistant=assistant, choices=choices)
            identity = f"{name}-{page:05d}-{number}"
            examples.append(Example(id=identity, source="drawn-pages", conversations=(turn,)))
    path = out / f"{name}.jsonl"
    write_examples(path, examples)
    return path


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=96, help="pixels")
    parser.add_argument("--height", type=int, default=96, help="pixels")
    parser.add_argument("--fewest", type=int, default=1, help="questions of a page")
    parser.add_argument("--most", type=int, default=MOST_QUESTIONS, help="questions of a page")
    parser.add_argument("--name", default="pages", help="of the JSONL file")
    asked = parser.parse_args()
    style = PageStyle(asked.width, asked.height)
    questions = (asked.fewest, asked.most)
    print(draw_pages(asked.out, asked.pages, asked.seed, style, questions, asked.name))


if __name__ == "__main__":
    main()
