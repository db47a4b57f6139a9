"""What many examples cost a process: bytes held, seconds to the first step, lines a second, plans.

    python benchmarks/scale.py [--lines 10000 1000000] [--processes 1 8] [--before CHECKOUT]

Lines are made up (`many_lines.py`): four short questions about each page, all of them different
files in tar archives. A process reads them as a run does, plans its first step and one in the
midst, and lays the rows out; no model is loaded. What it holds is memory that it alone has written,
beyond that for 10,000 lines; of all processes together, what they map is counted once. Then
`foveal train` itself takes the same lines, with a tiny model: seconds from the command to its first
step, and to the next when it is resumed. Of more than a million lines a million is encoded, the
rest renamed. `--before` names another checkout, measured in turn with this one. Needs 650 bytes of
disk a line, and as much again while lines are encoded.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from many_lines import check_renaming, encode_renamed, make_lines, make_scale_model

HERE = Path(__file__).parents[1]
RANKS = (8, 64, 1024)
EXAMPLES_A_RANK = 16
BLOCK = 1_000_000
"""Lines that are encoded; of more, the rest is renamed."""

PROCESS = """
import json, os, sys, time
from pathlib import Path
import torch
from foveal.data.dataset import read_dataset
from foveal.data.batch import build_batch
from foveal.data.rows import Plan
from foveal.models.loading import find_family

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    of = {name: int(value.split()[0]) << 10 for name, value in (one.split(":") for one in lines)}
    return {"own": of["Private_Dirty"], "share": of["Pss"]}

def main():
    data, cache, model, workers = *map(Path, sys.argv[1:4]), int(sys.argv[4])
    processor = find_family(str(model)).load_processor(str(model), 4)
    print(json.dumps({}), flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    _, dataset = read_dataset(data, processor, data.parent, cache, workers)
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


def run_processes(
    build: Path, data: Path, cache: Path, model: Path, processes: int, workers: int
) -> tuple[list[dict[str, Any]], int]:
    """Have processes read the same lines at once; returns what each says, and bytes of all."""
    environment = os.environ | {"PYTHONPATH": str(build / "src")}
    command = [sys.executable, "-c", PROCESS, str(data), str(cache), str(model), str(workers)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started: list[Any] = [
        subprocess.Popen(command, env=environment, **pipes) for _ in range(processes)
    ]
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
    paths = os.pathsep.join([str(build / "src"), str(HERE / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", PLANNING, str(ranks), str(EXAMPLES_A_RANK)]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds, balance = json.loads(found.stdout)
    return seconds, balance


def train(build: Path, data: Path, cache: Path, model: Path, run: Path) -> str:
    """Run `foveal train` until it has kept a step; says when it took one, and what it held then.

    Raises:
        SystemExit: it failed.
    """
    places = f"model={model}", f"run={run}", f"data.train={data}", f"data.images={data.parent}"
    how = f"data.cache={cache}", "data.workers=1", "train.save_every_steps=1"
    recipe = str(HERE / "recipes" / "demo.yaml")
    command = sys.executable, "-m", "foveal.cli", "train", recipe, *places, *how
    environment = os.environ | {"PYTHONPATH": str(build / "src")}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    lines, kept = run / "metrics.jsonl", run / "checkpoints"
    former = lines.read_text(encoding="utf-8").count("\n") if lines.exists() else 0
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, **quiet) as process:
        while process.poll() is None and not (
            lines.exists() and lines.read_text(encoding="utf-8").count("\n") > former
        ):
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if process.returncode is not None:
            raise SystemExit(process.communicate()[1])
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
        held = int(rollup.partition("Private_Dirty:")[2].split()[0]) << 10
        while not any(kept.glob("step-*")):
            time.sleep(0.01)
        process.kill()
        process.communicate()
    return f"{seconds:.1f} s, {held / 1e6:,.0f} MB"


FEW = 10_000
"""Lines that a process holds about nothing for, beside its libraries."""


def measure_lines(
    builds: dict[str, Path], folder: Path, model: Path, lines: int, asked: Any
) -> None:
    """Measure each build at so many lines, and print."""
    blocks = max(1, lines // BLOCK)
    few, data = make_lines(folder / "few", FEW), make_lines(folder / "all", lines // blocks, blocks)
    with data.open("rb") as file:
        lines = sum(1 for _ in file)
    for name, build in builds.items():
        cache = folder / f"cache-{name}-{lines}"
        speed = "renamed"
        if blocks > 1:
            encode_renamed(data, model, cache, blocks, asked.workers)
        (first,), _ = run_processes(build, data, cache, model, 1, asked.workers)
        if blocks == 1:
            speed = f"{lines / first['read']:,.0f}"
        seconds = f"{first['first']:.1f}, first"
        print(f"| {name} | {lines:,} | {speed} | - | 1 | {seconds} | | |", flush=True)
        for processes in asked.processes:
            base, base_node = run_processes(build, few, cache, model, processes, asked.workers)
            said, node = run_processes(build, data, cache, model, processes, asked.workers)
            own = max(one["own"] for one in said) - max(one["own"] for one in base)
            own_bytes = f"{own / (lines - FEW):,.0f}" if lines > FEW else ""
            size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
            print(
                f"| {name} | {lines:,} | | {size / lines:,.0f} | {processes} | "
                f"{max(one['first'] for one in said):.1f} | {own_bytes} | "
                f"{(node - base_node) / 1e6:,.0f} |",
                flush=True,
            )
        for what in ("begun", "resumed"):
            said_now = train(build, data, cache, model, folder / f"run-{name}-{lines}")
            print(f"| {name} | {lines:,} | | | train, {what} | {said_now} | | |", flush=True)
        shutil.rmtree(cache)
    shutil.rmtree(data.parent)


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
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        model = make_scale_model(folder / "model")
        check_renaming(model)
        for lines in asked.lines:
            measure_lines(builds, folder, model, lines, asked)
    print("\n| build | ranks | ms a step and rank | balance |\n" + "| --- " * 4 + "|")
    for ranks in asked.ranks:
        for name, build in builds.items():
            seconds, balance = plan_step(build, ranks)
            print(f"| {name} | {ranks:,} | {1e3 * seconds:.1f} | {balance:.3f} |", flush=True)


if __name__ == "__main__":
    main()
