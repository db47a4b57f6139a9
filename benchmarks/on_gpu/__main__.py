"""Show on one GPU, in minutes, what of this package is right, fast and as planned.

    python benchmarks/on_gpu                          every part, at most eight minutes
    python benchmarks/on_gpu fast plan --minutes 5    some of them
    python benchmarks/on_gpu --size tiny              a trial of the command, on any machine

Each measurement is a line of JSON in --out as soon as it is there. Parts, the most telling first:

    right      the tests marked `gpu`: gradients, formats, resumed bits, the reference's numbers
    fast       every way of every strategy on one letter page, beside the recipe's way
    plan       what `foveal plan --gpu` says of our steps, beside what they took
    choice     fifty ragged steps a kind of attention: which one `attention: auto` should take
    answers    evaluation beside `generate`, and an endpoint under 16 clients
    kernels    the ten costliest kernels of a step, and the time between kernels
    compiled   what compiling the repeated layers brings; only if asked for, it takes minutes

Exit status 0: all was measured, whatever it came to; 1: a test or a measurement failed.
"""

import argparse
import gc
import sys
from pathlib import Path

# The other benchmarks, beside this folder, are imported by their names.
sys.path[0] = str(Path(__file__).parents[1])

import torch  # noqa: E402
from foveal_bench.random_page import SIZES  # noqa: E402
from versions import versions  # noqa: E402

from foveal.inputs import quiet_libraries  # noqa: E402
from foveal.machine import (  # noqa: E402
    DTYPES,
    Precision,
    free_memory,
    machine_name,
    pick_device,
)
from foveal.plan.this_machine import matrix_speed  # noqa: E402
from on_gpu import answers, choice, kernels, right  # noqa: E402
from on_gpu.fast import Speeds  # noqa: E402
from on_gpu.record import Record, Values, give_back_memory  # noqa: E402
from on_gpu.steps import this_card  # noqa: E402

PARTS = ("right", "fast", "plan", "choice", "answers", "kernels", "compiled")
USUAL = PARTS[:-1]
JUDGED = "published"


def main() -> int:
    """Run the parts that were asked for; returns the exit status."""
    device = pick_device()
    on_cpu = device.type == "cpu"
    asked = read_words("tiny" if on_cpu else JUDGED)
    record = Record(asked.out, asked.minutes * 60, judges=asked.size == JUDGED)
    precision: Precision = "float32" if on_cpu else "bf16"
    quiet_libraries()
    gc.freeze()  # collecting between steps need not look at the libraries each time
    speed = matrix_speed(DTYPES[precision])
    card = this_card()
    give_back_memory()
    record.write("machine", machine_name(), about(device, asked.size, precision, speed))
    speeds = Speeds(record, asked.size, precision, device.type, asked.steps, card, speed)
    parts = {
        "right": lambda: right.run(record, device.type),
        "fast": speeds.run,
        "plan": speeds.plan,
        "choice": lambda: choice.run(record, asked.size, precision, device.type),
        "answers": lambda: answers.run(record, asked.size, asked.steps),
        "kernels": lambda: kernels.run(record, asked.size, precision),
        "compiled": speeds.compiled,
    }
    for name in asked.parts or USUAL:
        parts[name]()
    for line in [*(f"failed: {one}" for one in record.failures), *record.missed]:
        print(line)
    print(f"{record.path}: all of it, a line a measurement", flush=True)
    return 1 if record.failures else 0


def read_words(usual_size: str) -> argparse.Namespace:
    """Read the command line."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    words.add_argument("--size", default=usual_size, choices=sorted(SIZES))
    words.add_argument("--steps", type=int, default=5, help="that are timed, of each trial")
    words.add_argument("--minutes", type=float, default=8.0, help="after which nothing is begun")
    words.add_argument("--out", type=Path, default=Path("runs/on-gpu.jsonl"))
    asked = words.parse_args()
    for name in asked.parts:
        if name not in PARTS:
            words.error(f"no part {name!r}; choose from {', '.join(PARTS)}")
    return asked


def about(device: torch.device, size: str, precision: str, speed: float) -> Values:
    """Say what the numbers were taken on."""
    return {
        "size": size,
        "precision": precision,
        "matrix_speed": speed,
        "free_bytes": free_memory(device),
        "cuda": str(torch.version.cuda),
        **versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
