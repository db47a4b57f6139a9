"""Results -> a table to read, or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from foveal.plan.model_costs.arithmetic import Work

WAYS = {
    "recipe": "recipe's way",
    "separate": "not shared",
    "shared": "ours",
    "light": "light",
    "recompute": "recomputed",
}


@dataclass(frozen=True)
class Result:
    """What one way of one case came to."""

    strategy: str
    questions: int
    """Of the page."""

    way: str
    seconds: float
    """Median of the rounds: forward, backward, clip and AdamW over all questions of the page."""

    fastest_seconds: float
    slowest_seconds: float
    questions_per_second: float
    images_per_second: float
    """Pages all of whose questions are done."""

    tokens_per_second: float
    """Of the examples, shared ones counted once for each."""

    operations_per_second: float
    """Useful ones."""

    matrix_share: float
    """`operations_per_second` of this machine's matrix speed."""

    peak_bytes: int
    """Of a step, above weights and optimizer state."""

    speed_ratio: float
    """To the recipe's way, same strategy and questions."""

    memory_ratio: float
    """To the recipe's way, same strategy and questions."""


@dataclass(frozen=True)
class Machine:
    """What the numbers were taken on."""

    name: str
    threads: int
    matrix_speed: float
    """Operations a second of a large float32 matrix product, best of several."""


def print_results(
    console: Console, size: str, machine: Machine, shape: Work, results: Sequence[Result]
) -> None:
    """Print one table for each strategy."""
    console.print(
        f"{machine.name}, {machine.threads} threads, float32; "
        f"matrix speed {machine.matrix_speed / 1e9:,.0f} GFLOP/s\n"
        f"size {size}; decoder : tower : head = 1 : {shape.tower / shape.decoder:.3f} : "
        f"{shape.head / shape.decoder:.3f}",
        highlight=False,
    )
    for strategy, some in groupby(results, key=lambda result: result.strategy):
        console.print(_table(strategy, list(some)))


def _table(strategy: str, results: Sequence[Result]) -> Table:
    # 80 columns wide at most: what is not a terminal has no more, and loses the rest unseen.
    table = Table(title=strategy, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in ("asked\na page", "way"):
        table.add_column(name, no_wrap=True)
    rates = "s a\nstep", "asked\n/s", "images\n/s", "tokens\n/s"
    for name in (*rates, "matrix", "peak\nGB", "speed", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in results:
        table.add_row(
            str(one.questions),
            WAYS[one.way],
            f"{one.seconds:.2f}",
            f"{one.questions_per_second:.3f}",
            f"{one.images_per_second:.3f}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.matrix_share:.0%}",
            f"{one.peak_bytes / 1e9:.2f}",
            f"{one.speed_ratio:.2f}x",
            f"{one.memory_ratio:.0%}",
            end_section=one.way == "recompute",
        )
    return table


def results_to_json(size: str, machine: Machine, shape: Work, results: Sequence[Result]) -> str:
    """Write everything that `print_results` shows, and more, for machines."""
    tree = {
        "size": size,
        "machine": asdict(machine),
        "forward_operations": asdict(shape),
        "results": [asdict(result) for result in results],
    }
    return json.dumps(tree, indent=1)
