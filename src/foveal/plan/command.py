"""A recipe and a machine's name -> the whole answer of `foveal plan`, printed."""

from dataclasses import replace

from rich.console import Console

from foveal.config import Recipe
from foveal.errors import ConfigError
from foveal.plan.estimate import Estimate, Machines, advise, compare, decide
from foveal.plan.machines.hardware import find_hardware
from foveal.plan.machines.this_machine import find_efficiency, measure_hardware, store_efficiency
from foveal.plan.measure import MeasuredRow
from foveal.plan.measure import measure as measure_rows
from foveal.plan.page import (
    print_comparison,
    print_data,
    print_estimate,
    print_measured,
    to_json,
)
from foveal.plan.question import ModelLoader, Question, ask
from foveal.plan.setup import Setup

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
