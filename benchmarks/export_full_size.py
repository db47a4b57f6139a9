"""Export a 4.15-billion-parameter Phi-3.5-vision, prove it, and print seconds and memory.

    python benchmarks/export_full_size.py FOLDER [--only lora] [--no-proof]

Uses the model that `qlora_full_size.py` writes to FOLDER/model (8.3 GB, random weights in bf16),
and writes it if it is not there. Makes two runs of one step beside it, as if they had been trained:
one that learnt the projector whole, one with a small LoRA on every linear layer. Exports both in
bf16, each proven on 8 questions about small pictures, and deletes what it exported. The proof
computes in float32: it needs 17 GB of memory for the weights, and some for the rest.

The peak is of each part by itself. It counts file pages that are mapped and could be dropped; the
second figure is the most that was held beside them, looked at 20 times a second.
"""

import argparse
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from qlora_full_size import write_model
from safetensors.torch import save_file
from torch import Tensor

from foveal.adapt.quantize import skeleton
from foveal.adapt.strategy import assign, rules_of
from foveal.config import DataSettings, EvaluateSettings, LoraSettings, Recipe, Rule, save_recipe
from foveal.data.example import Example, Turn, write_examples
from foveal.deliver.export import Exported, export_run
from foveal.inputs import quiet_libraries
from foveal.models.loading import find_family
from foveal.plan.this_machine import reset_most_resident, resident_bytes
from foveal.train.checkpoint import STATE, WEIGHTS, Progress

STRATEGIES = {
    "projector": (Rule(match="projector.*"), Rule(match="*", learn=False)),
    "lora": rules_of("lora"),
}
LOOKS_PER_SECOND = 20


class Watch:
    """Prints, for each part of the work, its seconds and the most memory that it held."""

    def __init__(self) -> None:
        self._name = ""
        self._began = time.perf_counter()
        self._anonymous = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the memory until the block ends."""
        self._thread.start()
        yield
        self.begin("")
        self._ended.set()
        self._thread.join()

    def begin(self, name: str) -> None:
        """End a part, and begin the next."""
        if self._name:
            seconds = time.perf_counter() - self._began
            peak, anonymous = resident_bytes("VmHWM") / 1e9, self._anonymous / 1e9
            print(
                f"{self._name[:58]:<58} {seconds:7.1f} s   peak {peak:5.2f} GB   "
                f"beside files {anonymous:5.2f} GB",
                flush=True,
            )
        reset_most_resident()
        self._name, self._began, self._anonymous = name, time.perf_counter(), 0

    def _look(self) -> None:
        while not self._ended.wait(1 / LOOKS_PER_SECOND):
            self._anonymous = max(self._anonymous, resident_bytes("RssAnon"))


def make_examples(folder: Path) -> Path:
    """Write 8 questions about 4 small pictures."""
    folder.mkdir(parents=True)
    examples = []
    for number in range(8):
        name = f"{number // 2}.png"
        if number % 2 == 0:
            Image.effect_noise((336, 336), 20 + number).convert("RGB").save(folder / name)
        turn = Turn(images=(name,), user=f"What is number {number}?", assistant=f"{number}")
        examples.append(Example(id=f"example-{number}", conversations=(turn,)))
    write_examples(folder / "data.jsonl", examples)
    return folder / "data.jsonl"


def make_run(run: Path, model: Path, data: Path, strategy: str, rank: int) -> None:
    """Write the folder of a run whose one step has moved what the strategy lets learn."""
    recipe = Recipe(
        model=str(model),
        run=run,
        strategy=STRATEGIES[strategy],
        lora=LoraSettings(rank=rank, alpha=2 * rank),
        data=DataSettings(train=data, validation=data, images=data.parent, num_crops=1),
        evaluate=EvaluateSettings(max_new_tokens=4, metrics=("accuracy",)),
    )
    checkpoint = run / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    save_recipe(recipe, run / "recipe.yaml")
    shaped = skeleton(str(model))
    rules = rules_of(recipe.strategy)
    assigned = assign(shaped, find_family(str(model)), rules, 1e-4, 0.0, recipe.lora)
    weights = dict(shaped.named_parameters())
    random = torch.Generator().manual_seed(1)
    learnt = {one.name: drawn(weights[one.name], random) for one in assigned if one.learn}
    save_file(learnt, checkpoint / WEIGHTS)
    (checkpoint / STATE).write_text(
        json.dumps(asdict(Progress(1, {}, "made up", 1))), encoding="utf-8"
    )
    print(f"{strategy}: {sum(one.numel() for one in learnt.values()):,} parameters learnt")


def drawn(like: Tensor, random: torch.Generator) -> Tensor:
    """Draw a weight of small numbers."""
    return torch.empty(like.shape).normal_(0.0, 0.01, generator=random)


def export(run: Path, out: Path, proof: bool) -> Exported:
    """Export a run and print what each part of it took."""
    watch = Watch()
    began = time.perf_counter()
    with watch.watching():
        watch.begin("Reading the run and its base")
        done = export_run(run, out, merge=True, dtype="bf16", proof=proof, tell=watch.begin)
    size = sum(one.stat().st_size for one in done.folder.rglob("*") if one.is_file())
    print(f"{size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s")
    for line in done.lines():
        print(f"    {line}")
    return done


def main() -> None:
    """Make what is missing, export each run, delete what was exported."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("folder", type=Path, help="as of qlora_full_size.py")
    words.add_argument("--layers", type=int, help="of a model made here; default: 32")
    words.add_argument("--rank", type=int, default=8)
    words.add_argument("--only", choices=list(STRATEGIES))
    words.add_argument("--no-proof", action="store_true")
    given = words.parse_args()
    quiet_libraries()
    model, scratch = given.folder / "model", given.folder / "export"
    if not (model / "config.json").exists():
        write_model(model, given.layers)
    shutil.rmtree(scratch, ignore_errors=True)
    data = make_examples(scratch / "examples")
    failed = False
    for strategy in [given.only] if given.only else STRATEGIES:
        run = scratch / strategy
        make_run(run, model, data, strategy, given.rank)
        done = export(run, scratch / "out", proof=not given.no_proof)
        failed |= done.failed
        shutil.rmtree(done.folder)
    shutil.rmtree(scratch)
    print(f"{torch.get_num_threads()} threads")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
