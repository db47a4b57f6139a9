"""A recipe and a machine's name -> the whole answer of `foveal plan`: tables, or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from foveal.config import Recipe
from foveal.data.row_planning.groups import Sizes
from foveal.errors import ConfigError
from foveal.plan.epoch import Epoch, histogram, questions_of_images
from foveal.plan.estimate import Estimate, Machines, advise, compare, decide
from foveal.plan.hardware import GB, find_hardware
from foveal.plan.measure import MeasuredRow
from foveal.plan.measure import measure as measure_rows
from foveal.plan.question import ModelLoader, Question, ask
from foveal.plan.seconds import Seconds
from foveal.plan.setup import Setup
from foveal.plan.this_machine import find_efficiency, measure_hardware, store_efficiency

THIS = "this"


def run_plan(
    recipe: Recipe,
    console: Console,
    load_model: ModelLoader,
    *,
    gpu: str = THIS,
    gpus: int = 1,
    nodes: int = 1,
    compare_all: bool = False,
    price_per_hour: float | None = None,
    measure: bool = False,
    as_json: bool = False,
) -> Estimate:
    """Plan a recipe on some machines and print what comes out.

    Args:
        recipe: to plan.
        console: to print on.
        load_model: recipe -> model with weights.
        gpu: name of `hardware`, or `this`.
        gpus: of each node.
        nodes: machines.
        compare_all: every sensible setup too.
        price_per_hour: of one accelerator.
        measure: run the worst row and typical ones for real, on this machine.
        as_json: print JSON instead of tables.
    """
    question = ask(recipe, load_model)
    hardware = measure_hardware() if gpu == THIS else find_hardware(gpu)
    hardware = replace(hardware, reached=find_efficiency(hardware))
    machines = Machines(hardware, gpus, nodes, price_per_hour)
    now = decide(question, machines)
    found = compare(question, machines) if compare_all else []
    advice = advise(question, machines, now)
    compared = _measure(question, machines, now.setup, load_model) if measure else None
    if as_json:
        console.out(to_json(now, found, advice, compared), highlight=False)
        return now
    world_size = now.setup.world_size
    print_data(console, question.dataset.sizes, question.epoch(world_size), world_size)
    for line in question.left_whole(hardware):
        console.print(line, style="yellow", highlight=False, markup=False)
    print_estimate(console, now)
    if found:
        print_comparison(console, found)
    if advice:
        console.print("It does not fit. Any one of these is enough:", highlight=False)
        for change in advice:
            console.print(f"  {change}", highlight=False)
    if compared:
        print_measured(console, compared)
    return now


def _measure(
    question: Question, machines: Machines, setup: Setup, load_model: ModelLoader
) -> MeasuredRow:
    """Run rows for real, and keep what they say about this machine for later plans."""
    if not machines.hardware.measured or setup.world_size > 1:
        raise ConfigError("--measure runs on this machine, in one process: leave --gpu and --gpus")
    compared = measure_rows(question, setup, machines.hardware, load_model)
    store_efficiency(machines.hardware.name, compared.efficiency)
    return compared


def print_data(console: Console, sizes: Sizes, epoch: Epoch, world_size: int) -> None:
    """Print what the data is made of, from image headers and token counts."""
    tokens, processes = epoch.total.tokens, "process" if world_size == 1 else "processes"
    console.print(
        f"{sizes.num_sets:,} examples, {len(sizes.image_tokens):,} pictures; "
        f"{len(epoch.steps):,} steps an epoch on {world_size} {processes}, "
        f"{len(epoch.rows):,} rows, {tokens:,} tokens "
        f"({1 - tokens / epoch.separate_tokens:.0%} spared by sharing)",
        highlight=False,
    )
    table = Table("of an image", "from", "to", "images", title="Pictures")
    for name, values in (
        ("tokens", sizes.image_tokens),
        ("crops", sizes.image_crops),
        ("questions", questions_of_images(sizes)),
    ):
        for start, end, count in histogram(values):
            table.add_row(name, f"{start:,}", f"{end:,}", f"{count:,}")
    console.print(table)


def print_estimate(console: Console, one: Estimate) -> None:
    """Print one estimate, kind by kind."""
    setup, worst = one.setup, one.worst_row
    console.print(
        f"{describe(one)}: worst row {worst.tokens:,} tokens, {worst.crops:,} crops, "
        f"{worst.examples:,} examples",
        highlight=False,
    )
    memory = Table("memory of one process", "GB", title=f"Worst moment: {one.memory.moment}")
    for name, amount in one.memory.kinds.items():
        memory.add_row(name.removesuffix("_bytes").replace("_", " "), f"{amount / GB:.2f}")
    verdict = "fits" if one.fits else "does NOT fit"
    memory.add_row("all", f"{one.memory.total_bytes / GB:.2f}", style="bold")
    memory.add_row(f"usable of {one.hardware.name}", f"{one.usable_bytes / GB:.2f} {verdict}")
    memory.add_row("host memory of workers", f"{one.memory.workers_bytes / GB:.2f}")
    console.print(memory)
    seconds = Table("time of a step", "seconds")
    for part in fields(Seconds):
        seconds.add_row(part.name.replace("_", " "), f"{getattr(one.seconds, part.name):.3f}")
    seconds.add_row("all but what is hidden", f"{one.seconds.total:.3f}", style="bold")
    console.print(seconds)
    if read := one.reading:
        console.print(
            f"before the first step {read.rows:,} rows of {read.tokens:,} tokens are read, to "
            f"compare with: {read.seconds:,.1f} s",
            highlight=False,
        )
    price = "" if one.price is None else f", costs {one.price:,.2f}"
    console.print(
        f"{one.examples_per_second:,.2f} examples/s, {one.images_per_second:,.2f} images/s on "
        f"{setup.world_size} x {one.hardware.name}; {one.steps:,} steps take {one.hours:,.2f} h"
        f"{price}",
        highlight=False,
    )
    console.print(
        f"Speeds: {one.hardware.source}. Shares of them: {one.hardware.reached.source}.",
        highlight=False,
    )


def print_comparison(console: Console, found: Sequence[Estimate]) -> None:
    """Print every setup: what fits first, the fastest first."""
    priced = any(one.price is not None for one in found)
    table = Table("strategy", "recompute", "engine", "GB", "fits")
    for name in ("step s", "examples/s", "hours", *(("cost",) if priced else ())):
        table.add_column(name)
    for one in found:
        setup = one.setup
        table.add_row(
            setup.strategy,
            setup.recompute,
            setup.engine,
            f"{one.memory.total_bytes / GB:.1f}",
            "yes" if one.fits else "no",
            f"{one.seconds.total:.2f}",
            f"{one.examples_per_second:.2f}",
            f"{one.hours:.2f}",
            *([] if one.price is None else [f"{one.price:,.2f}"]),
        )
    console.print(table)
    fitting = [one for one in found if one.fits]
    if fitting:
        console.print(f"Fastest that fits: {describe(fitting[0])}", highlight=False)


def print_measured(console: Console, compared: MeasuredRow) -> None:
    """Print what rows took beside their estimates, and what explains them."""
    table = Table("row", "tokens", "crops", "estimated", "measured", "estimate / measured")
    first, measured = compared.rows[0], compared.measured
    peak, total = measured.peak_bytes, compared.memory.total_bytes
    table.add_row(
        "worst, memory",
        f"{first.tokens:,}",
        f"{first.crops:,}",
        f"{total / GB:.3f} GB",
        f"{peak / GB:.3f} GB",
        f"{total / peak:.2f}",
    )
    names = ("worst, time", *["typical, time"] * (len(compared.rows) - 1))
    for name, row, estimated, taken in zip(
        names, compared.rows, compared.seconds, measured.step_seconds, strict=True
    ):
        table.add_row(
            name,
            f"{row.tokens:,}",
            f"{row.crops:,}",
            f"{estimated.total:.3f} s",
            f"{taken:.3f} s",
            f"{estimated.total / taken:.2f}",
        )
    console.print(table)
    found = compared.efficiency
    console.print(
        f"Kept for this machine: matrices at {found.matrix:.0%} of its speed, attention at "
        f"{found.attention:.0%}, the optimizer at {found.bandwidth:.0%} of its bandwidth",
        highlight=False,
    )


def describe(one: Estimate) -> str:
    """Name a setup in a line."""
    setup = one.setup
    return (
        f"{setup.strategy}, {setup.engine} on {setup.nodes} x {setup.gpus} x {one.hardware.name}, "
        f"{setup.precision}, {setup.attention} attention, recompute {setup.recompute}"
    )


def to_tree(one: Estimate) -> dict[str, Any]:
    """Lay an estimate out for machines."""
    setup = "strategy", "recompute", "engine", "precision", "attention", "gpus", "nodes"
    rest = "examples_per_second", "images_per_second", "steps"
    return {
        **{name: getattr(one.setup, name) for name in setup},
        "fits": one.fits,
        "usable_bytes": int(one.usable_bytes),
        "memory": asdict(one.memory) | {"total_bytes": one.memory.total_bytes},
        "seconds": asdict(one.seconds) | {"total": one.seconds.total},
        "worst_row": asdict(one.worst_row),
        **{name: getattr(one, name) for name in rest},
        "reading": one.reading and asdict(one.reading),
        "hours": one.hours,
        "price": one.price,
    }


def to_json(
    now: Estimate,
    found: Sequence[Estimate],
    advice: Sequence[str],
    compared: MeasuredRow | None = None,
) -> str:
    """Write everything for machines."""
    hardware = now.hardware
    tree: dict[str, Any] = {
        "machine": {
            "name": hardware.name,
            "source": hardware.source,
            "efficiency": asdict(hardware.reached),
        },
        "plan": to_tree(now),
        "compare": [to_tree(one) for one in found],
        "advice": list(advice),
    }
    if compared:
        tree["measured"] = asdict(compared)
    return json.dumps(tree, indent=1)
