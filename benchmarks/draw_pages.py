"""Draw pages of six printed lines, and ask 1 to 8 questions about each, with exact answers.

    python benchmarks/draw_pages.py OUT --pages 400 --seed 0

Writes OUT/images/*.png and OUT/pages.jsonl. Each question asks one thing of every line, from the
top, such as its color, in one of two wordings; what is printed is nonsense. Answers are six words,
so that all examples weigh the same however a trainer averages. The same arguments draw the same
pages.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal.data.example import Example, Turn, write_examples

INKS = {"black": (20, 20, 20), "blue": (30, 70, 220), "red": (220, 40, 40), "green": (20, 150, 60)}
PAPERS = {"no": (255, 255, 255), "yes": (255, 235, 120)}
"""Whether it is yellow."""

WIDTHS = {"short": (0.1, 0.35), "long": (0.55, 0.75)}
"""Share of the page's width that a line's letters take, at least and at most."""

FEATURES = {
    "color": tuple(INKS),
    "length": tuple(WIDTHS),
    "left": ("yes", "no"),
    "paper": tuple(PAPERS),
}
"""What a line has, and what it may be: at the left or not, on yellow or not. All are words that a
cut tokenizer writes as one token."""

NUM_LINES = 6
VERBS = ("Name", "List")
QUESTIONS = tuple((verb, feature) for verb in VERBS for feature in FEATURES)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class PageStyle:
    """Size of a page."""

    width: int = 96
    """Pixels."""

    height: int = 96

    @property
    def pitch(self) -> int:
        """From line to line, pixels."""
        return self.height // NUM_LINES

    @property
    def font_size(self) -> int:
        """Height of the letters, pixels."""
        return max(6, self.pitch * 5 // 8)


@dataclass(frozen=True)
class Line:
    """One printed line."""

    features: dict[str, str]
    """For each of `FEATURES`, what is true of it."""

    text: str


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Take the font that Pillow brings along."""
    return ImageFont.load_default(size)


def invent_line(style: PageStyle, randomness: np.random.Generator) -> Line:
    """Draw lots for a line's features, and make up words until it is as long as it should be."""
    features = {name: str(randomness.choice(values)) for name, values in FEATURES.items()}
    fewest, most = (share * style.width for share in WIDTHS[features["length"]])
    font, text = font_of(style.font_size), ""
    while font.getlength(text) < fewest:
        word = "".join(randomness.choice(list(LETTERS), int(randomness.integers(1, 4))))
        longer = f"{text} {word}".strip()
        text = longer if font.getlength(longer) <= most else text
    return Line(features, text)


def draw_page(lines: list[Line], style: PageStyle) -> Image.Image:
    """Print lines on white, from the top."""
    page = Image.new("RGB", (style.width, style.height), "white")
    pen = ImageDraw.Draw(page)
    for place, line in enumerate(lines):
        draw_line(pen, line, style, place * style.pitch)
    return page


def draw_line(pen: ImageDraw.ImageDraw, line: Line, style: PageStyle, top: int) -> None:
    """Print one line on its paper."""
    has, margin = line.features, style.pitch // 4
    ink, font, right = INKS[has["color"]], font_of(style.font_size), style.width - 1
    pen.rectangle((0, top, right, top + style.pitch - 1), PAPERS[has["paper"]])
    at_left = has["left"] == "yes"
    start = margin if at_left else right - margin - font.getlength(line.text)
    bold = style.font_size / 20  # thin letters show little of their color
    middle = top + style.pitch // 2
    pen.text((start, middle), line.text, ink, font, anchor="lm", stroke_width=bold)


def question(verb: str, feature: str) -> str:
    """Ask for a feature of all lines."""
    return f"{verb} the {feature} of each line."


def draw_pages(
    out: Path,
    pages: int,
    seed: int = 0,
    style: PageStyle | None = None,
    questions: tuple[int, int] = (1, len(QUESTIONS)),
    name: str = "pages",
) -> Path:
    """Fill a folder; returns the JSONL file.

    Args:
        out: folder for images/ and `name`.jsonl.
        pages: how many.
        seed: start of every random choice.
        style: size of a page.
        questions: fewest and most of a page.
        name: of the file and of the pictures.
    """
    style = style or PageStyle()
    (out / "images").mkdir(parents=True, exist_ok=True)
    examples = []
    for page in range(pages):
        randomness = np.random.default_rng((seed, page))
        lines = [invent_line(style, randomness) for _ in range(NUM_LINES)]
        image = f"{name}-{page:05d}.png"
        draw_page(lines, style).save(out / "images" / image)
        wanted = int(randomness.integers(questions[0], questions[1] + 1))
        for number in randomness.permutation(len(QUESTIONS))[:wanted]:
            verb, feature = QUESTIONS[number]
            turn = Turn(
                images=(image,),
                user=question(verb, feature),
                assistant=" ".join(line.features[feature] for line in lines),
            )
            identity = f"{name}-{page:05d}-{verb}-{feature}"
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
    parser.add_argument("--most", type=int, default=len(QUESTIONS), help="questions of a page")
    parser.add_argument("--name", default="pages", help="of the JSONL file")
    asked = parser.parse_args()
    style = PageStyle(asked.width, asked.height)
    questions = (asked.fewest, asked.most)
    print(draw_pages(asked.out, asked.pages, asked.seed, style, questions, asked.name))


if __name__ == "__main__":
    main()
