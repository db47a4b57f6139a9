"""Fine-tune a 4.15-billion-parameter Phi-3.5-vision in 4 bits, and print seconds and memory.

    python benchmarks/qlora_full_size.py FOLDER [--rank 64] [--optimizer adamw_8bit]

Writes the model once to FOLDER (8.3 GB, random weights in bf16), loads it in nf4, takes two steps
of QLoRA on one drawn page of 1700 x 2200 pixels in 16 crops, float32, and saves the adapter.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import get_peft_model_state_dict
from PIL import Image, ImageDraw
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import foveal
from foveal.adapt.adapters import ADAPTER
from foveal.adapt.quantize import plan_quantization, skeleton
from foveal.adapt.strategy import rules_of, strategy_table
from foveal.config import LoraSettings, QuantizationSettings, TrainSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import Dataset, build_dataset
from foveal.data.encode import encode
from foveal.data.example import Example, Turn
from foveal.data.images.image_folder import ImageFolder
from foveal.data.row_planning.groups import Group, Row
from foveal.data.turn_processor import TurnProcessor
from foveal.inputs import quiet_libraries
from foveal.models.loading import load
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.plan.this_machine import reset_most_resident, resident_bytes
from foveal.train.engines import make_engine
from foveal.train.learner import make_learner
from foveal.train.step import train_step

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "golden" / "phi3v-facts" / "config.phi35.json"
TOKENIZER = Path(foveal.__file__).parent / "models" / "phi3_vision" / "tokenizer"
SHARD = "1GB"
QUESTION, ANSWER = "What is printed on line 7 of this page?", "Line 7: 0343 of the ledger."


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Print how long something took, what this process holds, and what it held at most.

    Reading counts the pages of files that are mapped, too, which the kernel drops when others need
    the room: a limit on the process (a cgroup) shows what it takes to load.
    """
    reset_most_resident()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    held, most = (resident_bytes(kind) / 1e9 for kind in ("VmRSS", "VmHWM"))
    print(f"{name:<28} {seconds:8.1f} s   holds {held:5.2f} GB   peak {most:5.2f} GB", flush=True)


def write_model(folder: Path, layers: int | None) -> None:
    """Write random weights, a shard at a time."""
    folder.mkdir(parents=True)
    config = Phi3VisionConfig.from_pretrained(CONFIG)
    if layers:
        config.num_hidden_layers = layers
    config.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    Phi3VisionProcessor(Phi3VisionImageProcessor(16, 336, 144), tokenizer).save_pretrained(folder)
    weights = dict(skeleton(str(folder)).to(torch.bfloat16).named_parameters())
    print(f"{sum(one.numel() for one in weights.values()):,} parameters")
    plan = split_torch_state_dict_into_shards(weights, max_shard_size=SHARD)
    random = torch.Generator().manual_seed(0)
    for file, names in plan.filename_to_tensors.items():
        drawn = {name: draw(name, weights[name], random) for name in names}
        save_file(drawn, folder / file, metadata={"format": "pt"})
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def draw(name: str, like: Tensor, random: torch.Generator) -> Tensor:
    """Make one weight as an untrained model has it: norms one, biases zero."""
    if like.dim() == 1 and name.endswith(".weight"):
        return torch.ones(like.shape, dtype=like.dtype)
    if like.dim() == 1:
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).normal_(0.0, 0.02, generator=random)


def make_page(folder: Path, processor: TurnProcessor) -> Dataset:
    """Draw a letter page of printed lines at 200 dots an inch, and ask one question about it."""
    page = Image.new("RGB", (1700, 2200), "white")
    pen = ImageDraw.Draw(page)
    for line in range(60):
        text = f"Line {line}: {line * 49:04d} of the ledger, carried forward to page {line + 2}."
        pen.text((120, 100 + 34 * line), text, fill="black", font_size=26)
    page.save(folder / "page.png")
    turn = Turn(images=("page.png",), user=QUESTION, assistant=ANSWER)
    example = Example(id="page", conversations=(turn,))
    images = ImageFolder(folder / "page.jsonl", folder)
    return build_dataset([encode(example, processor, images)], processor)


def main() -> None:
    """Run all phases."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument(
        "folder", type=Path, help="for the model; made and filled if it is not there"
    )
    words.add_argument("--layers", type=int, help="of the decoder, to try it out; default: 32")
    words.add_argument("--rank", type=int, default=64)
    words.add_argument("--optimizer", default="adamw", choices=["adamw", "adamw_8bit", "adafactor"])
    words.add_argument("--steps", type=int, default=2)
    given = words.parse_args()
    quiet_libraries()
    model_folder = given.folder / "model"
    with phase("start"):
        engine = make_engine("single", "float32")
    if not (model_folder / "config.json").exists():
        with phase("write the model in bf16"):
            write_model(model_folder, given.layers)
    with phase("load it in 4 bits"):
        settings = QuantizationSettings()
        rules = rules_of("qlora")
        quantization = plan_quantization(str(model_folder), rules, settings, "float32")
        loaded = load(str(model_folder), 16, quantization=quantization)
    train = TrainSettings(learning_rate=2e-4, warmup_steps=0, optimizer=given.optimizer)
    with phase("add adapters"):
        torch.manual_seed(train.seed)
        lora = LoraSettings(rank=given.rank, alpha=2 * given.rank)
        learner = make_learner(engine, loaded, "qlora", train, lora, recompute="blocks")
        optimizer = learner.optimizer
        loss = learner.loss.train()
    Console().print(strategy_table(learner.assignments))
    dataset = make_page(given.folder, loaded.processor)
    row = Row((Group((0,), 0),))
    with phase("read the page"):
        batch = build_batch(row, dataset, loaded.processor)
    assert batch.pixels
    print(f"{batch.tokens:,} tokens, {dataset.sizes.image_crops[0]} crops with the global view")
    for step in range(1, given.steps + 1):
        with phase(f"step {step}"):
            seen = train_step(engine, loss, optimizer, [batch], train.gradient_clip)
        print(f"loss {seen.loss:.4f}, gradient norm {seen.gradient_norm:.4f}", flush=True)
    with phase("save the adapter"):
        (given.folder / "adapter").mkdir(exist_ok=True)
        save_file(
            get_peft_model_state_dict(loaded.model, adapter_name=ADAPTER),
            given.folder / "adapter" / "adapter_model.safetensors",
        )
    size = sum(one.stat().st_size for one in (given.folder / "adapter").iterdir())
    print(f"adapter {size / 1e6:.0f} MB; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
