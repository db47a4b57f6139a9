"""A template and values -> one self-contained page; numbers as people write them."""

import math
from base64 import b64encode
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from foveal.storage import write_text


def write_page(out: Path, template: str, folder: Path | None = None, **values: object) -> Path:
    """Fill a template, of this folder or another, and write it whole or not at all.

    Whatever is filled in is escaped: it may come from data or from a model. The one exception is
    the filter `svg`, for the charts, whose text matplotlib escapes.
    """
    text = _environment(folder).get_template(template).render(version=version("foveal"), **values)
    write_text(out, text)
    return out


@cache
def _environment(folder: Path | None) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([*([folder] if folder else []), Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "chance": chance,
        "duration": duration,
        "cut": cut,
        "title": metric_title,
        "svg": Markup,
    }
    return environment


def data_uri(image: Image.Image) -> str:
    """Write an image as it stands in a page by itself."""
    file = BytesIO()
    image.save(file, "WEBP", quality=72, method=4)
    return "data:image/webp;base64," + b64encode(file.getvalue()).decode()


def percent(value: float | None, decimals: int = 1) -> str:
    """Write 0.8125 as 81.2, without its sign; nothing known as a dash."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    return f"{100 * value:.{decimals}f}"


def points(value: float) -> str:
    """Write 0.031 as +3.1, with a true minus sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def chance(p_value: float) -> str:
    """Write a p-value to three digits."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    if round(seconds, 1) < 60:  # 59.96 is not 60.0 s
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def metric_title(metric: str) -> str:
    """Write the name of a metric for people."""
    short = {"anls": "ANLS", "auroc": "AUROC", "f1": "F1"}
    words = [short.get(word, word) for word in metric.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def cut(text: object, most: int = 400) -> str:
    """Write the start of a long text, or of a list."""
    whole = ", ".join(map(str, text)) if isinstance(text, list | tuple) else str(text)
    return whole if len(whole) <= most else whole[: most - 1].rstrip() + "…"
