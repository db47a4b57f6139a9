"""Where the seconds of one training step go: matrix products, attention, and everything else.

    python benchmarks/step_profile.py --size standard --questions 1

Takes steps of our way and of the recipe's under torch's profiler and adds up the time that each
operator spent itself, by kind.
"""

import argparse
import heapq
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from foveal_bench.contender import Case, Contender, Way
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from foveal.plan.this_machine import matrix_speed

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention (fused)": ("flash_attention", "scaled_dot_product"),
    "softmax": ("softmax",),
    "norms": ("layer_norm", "rms_norm", "rsqrt", "aten::mean", "aten::pow"),
    "activations": ("silu", "gelu", "sigmoid"),
    "patch embedding": ("conv",),
    "optimizer and clip": ("_fused_adam", "_foreach", "linalg_vector_norm"),
    "copies, fills": (
        "copy_",
        "cat",
        "fill_",
        "zero_",
        "index",
        "masked",
        "embedding",
        "contiguous",
    ),
    "sums, products of elements": (
        "aten::add",
        "aten::mul",
        "aten::sub",
        "aten::div",
        "aten::neg",
        "aten::sum",
    ),
}
OTHER = "other"


def kind_of(operator: str) -> str:
    """Name the kind of an operator: the first one with a part of its name."""
    kinds = (kind for kind, parts in KINDS.items() if any(part in operator for part in parts))
    return next(kinds, OTHER)


def seconds_by_kind(
    case: Case, steps: int
) -> tuple[dict[str, float], float, list[tuple[str, float]]]:
    """Profile some steps after one to warm up.

    Returns:
        Seconds a step of each kind; useful operations a step; the costliest operators of no kind.
    """
    with TemporaryDirectory() as folder:
        side = Contender(case, Path(folder))
    side.step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            side.step()
    kinds: dict[str, float] = defaultdict(float)
    others: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        seconds = event.self_cpu_time_total / 1e6 / steps
        kind = kind_of(event.key)
        kinds[kind] += seconds
        if kind == OTHER:
            others[event.key] += seconds
    return kinds, side.operations, heapq.nlargest(3, others.items(), key=lambda one: one[1])


def main() -> None:
    """Print one table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--size", default="standard")
    words.add_argument("--strategy", default="full")
    words.add_argument("--questions", type=int, default=1)
    words.add_argument("--steps", type=int, default=2)
    words.add_argument("--threads", type=int)
    given = words.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    speed = matrix_speed()
    ways: dict[Way, str] = {
        "recipe": "the recipe's way",
        "shared": "ours",
        "recompute": "ours, recomputed",
    }
    columns = {
        title: seconds_by_kind(Case(given.size, given.strategy, given.questions, way), given.steps)
        for way, title in ways.items()
    }
    table = Table(title=f"Seconds a step, {given.size}, {given.strategy}, {given.questions} a page")
    table.add_column("kind")
    for title in columns:
        table.add_column(title, justify="right")
    for kind in (*KINDS, OTHER):
        table.add_row(kind, *(f"{kinds[kind]:.2f}" for kinds, _, _ in columns.values()))
    table.add_row("whole", *(f"{sum(kinds.values()):.2f}" for kinds, _, _ in columns.values()))
    table.add_row(
        "useful work at matrix speed",
        *(f"{operations / speed:.2f}" for _, operations, _ in columns.values()),
    )
    console = Console()
    console.print(f"matrix speed {speed / 1e9:,.0f} GFLOP/s, {torch.get_num_threads()} threads")
    console.print(table)
    for title, (_, _, others) in columns.items():
        console.print(f"other, {title}: " + ", ".join(f"{name} {s:.2f}" for name, s in others))


if __name__ == "__main__":
    main()
