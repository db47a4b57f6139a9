"""Print the tables of docs/scale.md: letter pages with four questions each, on 1 to 1,024 nodes.

    python benchmarks/scale_on_paper.py

All ranks are taken to have the same rows; the planner's own balance (`foveal plan`) comes on top.
"""

from collections.abc import Sequence

import numpy as np
from pieces import make_sizes

from foveal.config import LoraSettings, ShardingSettings
from foveal.data.rows import RowPlanner
from foveal.models.phi3_vision.seam import FAMILY
from foveal.plan.epoch import RowCounts, plan_steps
from foveal.plan.hardware import find_hardware
from foveal.plan.memory import estimate_memory
from foveal.plan.model_costs.asked import AskedModel
from foveal.plan.question import published_model
from foveal.plan.seconds import Seconds, rank_seconds
from foveal.plan.setup import Setup
from foveal.train.engines import EngineName

NODES = (1, 2, 8, 32, 128, 1024)
GPUS = 8
SMALLEST_STEP, EXAMPLES_A_RANK = 64, 16
NODE, IN_16_BITS = {"group": "node"}, {"gather": "precision"}
SETTINGS: tuple[tuple[str, EngineName, dict[str, str]], ...] = (
    ("full", "fsdp2", {}),
    ("full", "fsdp2", IN_16_BITS),
    ("full", "fsdp2", NODE),
    ("full", "fsdp2", IN_16_BITS | NODE),
    ("full", "zero2", {}),
    ("frozen_vision", "fsdp2", {}),
    ("frozen_vision", "fsdp2", IN_16_BITS | NODE),
    ("lora", "ddp", {}),
    ("qlora", "ddp", {}),
)
EXAMPLES = (10**4, 10**6, 10**8)


def rows_of_rank(examples: int) -> tuple[RowCounts, ...]:
    """Plan one rank's share of a step."""
    sizes = make_sizes(examples * 8)
    targets = np.full(examples * 8, 10, np.int64)
    plan = RowPlanner(sizes, examples_per_step=examples, tokens_per_pass=8192)
    return plan_steps(plan, targets, [0]).steps[0][0]


def step(setup: Setup, rows: Sequence[RowCounts]) -> Seconds:
    """Time a step on H100 nodes."""
    return rank_seconds(setup, rows, find_hardware("h100"), workers=4)


def main() -> None:
    """Print the tables."""
    config, processor = published_model(16)
    print("| strategy, engine | nodes | examples a step | GB a GPU | step s | exposed s | ", end="")
    print(" | ".join(f"{count:,} examples" for count in EXAMPLES), "|")
    print("| --- " * (6 + len(EXAMPLES)) + "|")
    for strategy, engine, sharding in SETTINGS:
        said = ", ".join([strategy, engine, *sharding.values()])
        model = AskedModel(config, FAMILY, processor, strategy, LoraSettings(rank=64))
        for nodes in NODES:
            world = nodes * GPUS
            at_once = max(SMALLEST_STEP, EXAMPLES_A_RANK * world)
            rows = rows_of_rank(at_once // world)
            setup = Setup(
                model,
                "bf16",
                "blocks",
                engine,
                "flex",
                GPUS,
                nodes,
                sharding=ShardingSettings(**sharding),
            )
            seconds = step(setup, rows)
            worst = max(rows, key=setup.costs.weigh)
            memory = estimate_memory(setup, worst, len(rows), 4, 10**9).total_bytes
            hours = [-(-count // at_once) * seconds.total / 3600 for count in EXAMPLES]
            print(
                f"| {said} | {nodes:,} | {at_once:,} | {memory / 1e9:.0f} | "
                f"{seconds.total:.2f} | {seconds.communication_exposed:.2f} | "
                + " | ".join(f"{one:,.2f} h" for one in hours),
                "|",
            )


if __name__ == "__main__":
    main()
