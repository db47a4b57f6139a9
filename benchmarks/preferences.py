"""The same pairs of answers through TRL's DPOTrainer, ours without sharing, and ours.

    python benchmarks/preferences.py --size standard --rounds 3

Pages of one pair and of four are learnt from with DPO, in full and under LoRA; every turn is a
process of its own, and the ways take turns. All see the same weights, pairs, order and steps: the
losses of full tuning must agree, under LoRA those of the first step, since adapters begin at
random.

TRL is run as its users run it: all at its defaults, so that blocks are run again in the backward
pass, a copy of the model (or the adapters off) that reads every pair again in each step, pairs
padded to the longest, as many a pass as the token budget takes. Only the collator is ours, since
TRL's own knows nothing of our processor. Ours keeps what blocks made, as a run does where it fits;
runs blocks again; or makes again what is cheap, with glibc as it is and with its scraps merged. It
reads all pairs once before the first step, and those seconds are spread over the steps. Peak memory
is what is held above the model that learns: TRL's second model too.
"""

import os
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from against_peers import UNTIMED, make_model
from draw_pages import PageStyle, draw_pages
from foveal_bench.random_page import find_size
from rich.console import Console
from torch import Tensor
from turns import Case, Results, Taken, TakeTurn, TimingWatch, asking, cases_of, in_turns
from ways import STRATEGIES

from foveal.adapt.adapters import adapted_layers
from foveal.adapt.strategy import rules_of
from foveal.config import LoraSettings, PreferenceSettings, TrainSettings
from foveal.data.dataset import Dataset, read_dataset
from foveal.data.example import read_examples, write_examples
from foveal.data.images.media import open_image
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.parallel import in_new_process
from foveal.data.rows import RowPlanner
from foveal.inputs import quiet_libraries
from foveal.models.family import LoadedModel
from foveal.plan.model_costs.weights import assign_without_weights
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.objective import Preferences
from foveal.train.recompute import Recompute
from foveal.train.reference_answers import ReferenceKey, find_reference
from foveal.train.step import train_step
from foveal.train.stop import stop_requests

WAYS = {
    "trl": "TRL's DPOTrainer",
    "separate": "ours, not shared",
    "again": "ours, blocks run again",
    "light": "ours, light",
    "merged": "ours, light, glibc's scraps merged",
    "shared": "ours",
}
RECOMPUTE: dict[str, Recompute] = {"again": "blocks", "light": "light", "merged": "light"}
"""Way -> what it makes again in the backward pass; the others make nothing again."""

MERGED = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""GLIBC_TUNABLES under which freed scraps join their neighbours at once, see docs/strategies.md; a
process reads them when it starts."""

RATE = 1e-5

SETTINGS = PreferenceSettings(loss="dpo", beta=0.1)


def make_pairs(case: Case, folder: Path) -> Path:
    """Draw a page a step; the answer to a question is rejected in favour of another's."""
    file = folder / "pairs.jsonl"
    if file.exists():
        return file
    questions = max(case.questions, 2)
    style = PageStyle(*find_size(case.size).page)
    draw_pages(folder, case.steps, style=style, questions=(questions, questions))
    pages: dict[tuple[str, ...], list[Any]] = {}
    for example in read_examples(folder / "pages.jsonl"):
        pages.setdefault(example.images, []).append(example)
    paired = []
    for some in pages.values():
        texts = [one.turns[0].assistant for one in some]
        for place, one in enumerate(some[: case.questions]):
            worse = next(text for text in texts[place:] + texts if text != texts[place])
            turn = one.turns[0].model_copy(update={"rejected": (worse,)})
            paired.append(one.model_copy(update={"turns": (turn,)}))
    write_examples(file, paired)
    return file


def take_turn(case: Case, way: str, folder: Path, started: float) -> Taken:
    """Take the steps one way; in a process of its own, started at `started`."""
    torch.set_num_threads(case.threads)
    quiet_libraries()
    size = find_size(case.size)
    file = make_pairs(case, folder)
    texts = {
        text
        for example in read_examples(file)
        for turn in example.turns
        for text in (f"\n{turn.user}", turn.assistant, *turn.rejected)
    }
    loaded = make_model(size, texts)
    _, dataset = read_dataset(file, loaded.processor, pairs=True)
    watch = TimingWatch()
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=case.questions,
        tokens_per_pass=size.tokens_per_pass,
        share_images=way not in ("trl", "separate"),
    )
    if way == "trl":
        _train_with_trl(case, loaded, dataset, plan, watch)
    else:
        _train_our_way(case, way, loaded, dataset, plan, watch, folder)
    return watch.taken(started, UNTIMED)


def in_surroundings(take: TakeTurn, case: Case, way: str, folder: Path, started: float) -> Taken:
    """Take a turn in a new process that has the environment of its way."""
    with patch.dict(os.environ, {"GLIBC_TUNABLES": MERGED} if way == "merged" else {}):
        return in_new_process(take, case, way, folder, started)


def _train_our_way(
    case: Case,
    way: str,
    loaded: LoadedModel,
    dataset: Dataset,
    plan: RowPlanner,
    watch: TimingWatch,
    folder: Path,
) -> None:
    engine = Engine("float32")
    train = TrainSettings(learning_rate=RATE, weight_decay=0.0, beta2=0.999, epsilon=1e-8)
    strategy, lora = STRATEGIES[case.strategy], LoraSettings(rank=16, alpha=32)
    learner = make_learner(engine, loaded, strategy, train, lora, RECOMPUTE.get(way, "none"))
    watch.begin()
    clocks = time.time, time.process_time
    started = [now() for now in clocks]
    batches = RowBatches(dataset, loaded.processor, "token")
    key = ReferenceKey(str(os.getpid()), dataset.fingerprint, "float32")
    with stop_requests() as request:
        reference = find_reference(
            folder,
            key,
            learner,
            StepLoader(plan, batches),
            range(case.steps),
            Console(quiet=True),
            request,
        )
    before = [now() - begun for now, begun in zip(clocks, started, strict=True)]
    watch.share = before[0] / case.steps, before[1] / case.steps
    optimizer = learner.optimizer
    module = learner.loss.train()
    for group in optimizer.param_groups:
        group["lr"] = RATE
    loader = StepLoader(plan, replace(batches, reference=reference))
    for one in loader.steps(0, case.steps):
        seen = train_step(
            engine,
            module,
            optimizer,
            one.batches,
            train.gradient_clip,
            objective=Preferences(SETTINGS),
        )
        watch.step(one.step + 1, seen.loss)


@dataclass(frozen=True)
class PairCollator:
    """Pairs with open pictures -> a padded batch, the chosen answers first."""

    dataset: Dataset
    processor: Any

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Cut the pictures of each pair twice, once for each answer, as TRL's own collator does."""
        sets = self.dataset.sizes.sets
        assert sets is not None  # examples are pairs
        firsts = sets[[one["pair"] for one in pairs]].tolist()
        answers = [first + side for side in (0, 1) for first in firsts]
        expanded = [
            self.dataset.examples[one].expand(
                [self.dataset.images[image].shape for image in self.dataset.image_numbers(one)]
            )
            for one in answers
        ]
        shape = len(expanded), max(len(one.ids) for one in expanded)
        ids = torch.full(shape, int(self.processor.tokenizer.pad_token_id))
        attention, completion = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
        for row, one in enumerate(expanded):
            length = len(one.ids)
            ids[row, :length], attention[row, :length] = torch.from_numpy(one.ids), 1
            completion[row, :length] = torch.from_numpy(one.learnt).long()
        images = [image for one in pairs for image in one["images"]] * 2
        pixels = self.processor.image_processor(images)
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": completion,
            "pixel_values": pixels["pixel_values"],
            "image_sizes": pixels["image_sizes"],
        }


class PairList(torch.utils.data.Dataset[dict[str, Any]]):
    """Pairs in the order of the plan; each place opens the pictures of one."""

    def __init__(self, dataset: Dataset, order: Sequence[int]) -> None:
        self.dataset = dataset
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        sets = self.dataset.sizes.sets
        assert sets is not None
        first = int(sets[self.order[place]])
        images = [self.dataset.images[image] for image in self.dataset.image_numbers(first)]
        opened = [open_image(fact.path) for fact in images]
        return {"pair": self.order[place], "images": opened}


def _train_with_trl(
    case: Case, loaded: LoadedModel, dataset: Dataset, plan: RowPlanner, watch: TimingWatch
) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset as Table
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    model = loaded.model
    peft_config = _adapters(case, loaded) if case.strategy == "lora" else None
    model.set_attn_implementation("sdpa")  # what transformers takes by itself
    watch.begin()
    reference = None if peft_config else deepcopy(model)
    longest = int(dataset.sizes.tokens.max())
    fitting = max(1, plan.tokens_per_pass // (2 * longest))
    at_once = max(one for one in range(1, fitting + 1) if not case.questions % one)
    order = [
        dataset.sizes.set_of([one])[0]
        for step in range(case.steps)
        for one in plan.examples(step).tolist()[::2]
    ]
    with TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            beta=SETTINGS.beta,
            max_steps=case.steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=case.questions // at_once,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=TrainSettings().gradient_clip,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            max_length=None,
        )
        row = {"images": ["x"], "prompt": "x", "chosen": "x", "rejected": "x"}
        trainer = DPOTrainer(
            model=model,
            ref_model=reference,
            args=settings,
            train_dataset=Table.from_list([row]),  # looked at, and then replaced by the next line
            processing_class=loaded.processor,
            data_collator=PairCollator(dataset, loaded.processor),
            peft_config=peft_config,
            callbacks=[_callback(watch)],
        )
        trainer.train_dataset = PairList(dataset, order)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _adapters(case: Case, loaded: LoadedModel) -> Any:
    """Name for peft the layers that our strategy gives an adapter."""
    from peft import LoraConfig

    lora, rules = LoraSettings(rank=16, alpha=32), rules_of(STRATEGIES[case.strategy])
    made = assign_without_weights(loaded.model.config, loaded.family, rules, lora)
    names = sorted(name for name, _ in adapted_layers(made.model))
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)


def _callback(watch: TimingWatch) -> Any:
    from transformers import TrainerCallback

    class Telling(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float], **___: Any) -> None:
            if "loss" in logs:  # not the summary behind the last step
                watch.step(state.global_step, logs["loss"])

    return Telling()


def main() -> None:
    """Measure and print."""
    asked = asking(__doc__, WAYS, ("full", "lora")).parse_args()
    results = Results(asked, WAYS, "pairs", f"size {asked.size}")
    for strategy in asked.strategies.split(","):
        compared = 1 if strategy == "lora" else None  # adapters begin at random
        for case in cases_of(asked, strategy, UNTIMED):
            ways = asked.ways.split(",")
            turns = in_turns(take_turn, case, ways, asked.rounds, compared, in_surroundings)
            results.add(case, turns)


if __name__ == "__main__":
    main()
