"""What many examples cost a process: bytes held, seconds to the first step, lines a second, plans.

    python benchmarks/scale.py [--lines 10000 1000000] [--processes 1 8] [--before CHECKOUT]

Lines are made up: four short questions about each page, of which a thousand small ones are drawn. A
process reads them as a run does, plans its first step and one in the midst, and lays the rows out;
no model is loaded. What it holds is memory that it alone has written, beyond that for 10,000 lines;
of all processes together, what they map is counted once. `--before` names another checkout,
measured in turn with this one. Needs about a kilobyte of disk a line.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
QUESTIONS, PAGES = 4, 1000
WORDS = (  # noqa: SIM905
    "what is the total amount on page invoice number date of name who signed this letter when was "
    "it printed where in table figure first second last"
).split()
RANKS = (8, 64, 1024)
EXAMPLES_A_RANK = 16

PROCESS = """
import json, os, sys, time
from pathlib import Path
import torch
from foveal.data.dataset import read_dataset
from foveal.data.batch import build_batch
from foveal.data.rows import Plan
from foveal.plan.question import published_model

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    of = {name: int(value.split()[0]) << 10 for name, value in (one.split(":") for one in lines)}
    return {"own": of["Private_Dirty"], "share": of["Pss"]}

def main():
    data, cache, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    processor = published_model(16)[1]
    print(json.dumps({}), flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    _, dataset = read_dataset(data, processor, None, cache, workers)
    read = time.perf_counter() - started
    dataset.without_targets()
    plan = Plan(dataset.sizes, examples_per_step=64, tokens_per_pass=8192)
    rows = [row for at in (0, plan.steps_per_epoch // 2) for row in plan.step(at).ranks[0]]
    for row in rows:
        build_batch(row, dataset, processor)
    first = time.perf_counter() - started
    print(json.dumps({"read": read, "first": first, "steps": plan.steps_per_epoch}), flush=True)
    sys.stdin.readline()  # all are here now
    print(json.dumps(memory()), flush=True)
    sys.stdin.readline()

if __name__ == "__main__":
    main()
"""

PLANNING = """
import json, statistics, sys, time
from pieces import make_sizes
from foveal.data.rows import Plan
costs = {}
try:
    from foveal.models.phi3_vision.seam import COSTS
    costs["costs"] = COSTS
except ImportError:  # an older build, whose planner knows no other
    pass
ranks, each = int(sys.argv[1]), int(sys.argv[2])
sizes = make_sizes(ranks * each * 8)
plan = Plan(sizes, examples_per_step=ranks * each, tokens_per_pass=8192, world_size=ranks, **costs)
one = getattr(plan, "rows_of", None) or (lambda step, rank: plan.step(step).ranks[rank])
plan.examples(0)
taken = []
for step in range(6):
    started = time.perf_counter()
    one(step, ranks // 2)
    taken.append(time.perf_counter() - started)
loads = [sum(plan.costs.row(row, sizes) for row in rank) for rank in plan.step(0).ranks]
print(json.dumps([statistics.median(taken), sum(loads) / (max(loads) * len(loads))]))
"""


def make_lines(folder: Path, lines: int) -> Path:
    """Write pages and questions about them."""
    from PIL import Image

    data = folder / f"{lines}.jsonl"
    (folder / "images").mkdir(exist_ok=True)
    for page in range(PAGES):
        path = folder / "images" / f"{page}.png"
        if not path.exists():
            Image.new("L", (60 + page % 200, 40)).save(path)
    choose = random.Random(0)
    with data.open("w", encoding="utf-8") as file:
        for number in range(lines):
            asked = " ".join(choose.choices(WORDS, k=choose.randint(8, 16)))
            turn = {
                "images": [f"{number // QUESTIONS % PAGES}.png"],
                "user": f"{asked}?\nAnswer briefly.",
                "assistant": " ".join(choose.choices(WORDS, k=choose.randint(1, 5))),
            }
            one = {"id": f"example-{number}", "source": "scale", "conversations": [turn]}
            file.write(json.dumps(one) + "\n")
    return data


def run_processes(
    build: Path, data: Path, cache: Path, processes: int, workers: int
) -> tuple[list[dict[str, Any]], int]:
    """Have processes read the same lines at once; returns what each says, and bytes of all."""
    environment = os.environ | {"PYTHONPATH": str(build / "src")}
    command = [sys.executable, "-c", PROCESS, str(data), str(cache), str(workers)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=environment, **pipes) for _ in range(processes)]
    said: list[dict[str, Any]] = [{} for _ in started]
    for _ in range(3):
        for place, one in enumerate(started):
            said[place] |= json.loads(one.stdout.readline())
        for one in started:
            one.stdin.write("\n")
            one.stdin.flush()
    for one in started:
        one.communicate()
    return said, sum(one["share"] for one in said)


def plan_step(build: Path, ranks: int) -> tuple[float, float]:
    """Plan what one of many ranks does in a step: seconds, and how even the ranks' work is."""
    environment = os.environ | {"PYTHONPATH": str(build / "src")}
    command = [sys.executable, "-c", PLANNING, str(ranks), str(EXAMPLES_A_RANK)]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds, balance = json.loads(found.stdout)
    return seconds, balance


FEW = 10_000
"""Lines that a process holds about nothing for, beside its libraries."""


def measure_lines(builds: dict[str, Path], folder: Path, lines: int, asked: Any) -> None:
    """Measure each build at so many lines, and print."""
    data = make_lines(folder, lines)
    few = make_lines(folder, FEW)
    for name, build in builds.items():
        cache = folder / f"cache-{name}-{lines}"
        (first,), _ = run_processes(build, data, cache, 1, asked.workers)
        print(
            f"| {name} | {lines:,} | {lines / first['read']:,.0f} | - | first start | "
            f"{first['first']:.1f} | | |",
            flush=True,
        )
        for processes in asked.processes:
            base, base_node = run_processes(build, few, cache, processes, 0)
            said, node = run_processes(build, data, cache, processes, asked.workers)
            more = max(lines - FEW, 1)
            own = max(one["own"] for one in said) - max(one["own"] for one in base)
            size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
            print(
                f"| {name} | {lines:,} | | {size / lines:,.0f} | {processes} | "
                f"{max(one['first'] for one in said):.1f} | {own / more:,.0f} | "
                f"{(node - base_node) / 1e6:,.0f} |",
                flush=True,
            )
        shutil.rmtree(cache)
    if lines != FEW:
        data.unlink()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lines", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS)
    parser.add_argument("--workers", type=int, default=2, help="processes that encode")
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--folder", type=Path, help="where to write lines")
    asked = parser.parse_args()
    builds = {"before": asked.before} if asked.before else {}
    builds["now"] = HERE
    print(
        "| build | lines | lines/s | bytes on disk a line | processes | s to first step, again | "
        "own bytes a line | MB all processes |\n" + "| --- " * 8 + "|"
    )
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for lines in asked.lines:
            measure_lines(builds, Path(folder), lines, asked)
    print("\n| build | ranks | ms a step and rank | balance |\n" + "| --- " * 4 + "|")
    for ranks in asked.ranks:
        for name, build in builds.items():
            seconds, balance = plan_step(build, ranks)
            print(f"| {name} | {ranks:,} | {1e3 * seconds:.1f} | {balance:.3f} |", flush=True)


if __name__ == "__main__":
    main()
