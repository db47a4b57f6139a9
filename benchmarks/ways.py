"""The same optimizer steps, five ways: the recipe's, Trainer's, TRL's, ours without sharing, ours.

Each way gets the same weights, examples, order, optimizer and rates, opens its pictures itself
(in its own process: no workers) and tells a `Watch` of every step. What differs is what the tool
does by itself: batches, padding, attention, recomputing, where the head is applied. On a CPU all
ways have the allocator's setting of our engine, which their users have not. The recipe's way is one
of Phi-3-vision alone.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from foveal_bench.contender import RecipeWay, recipe_inputs, recipe_step
from torch import Tensor, nn

from foveal.config import LoraSettings, Rule, TrainSettings
from foveal.data.dataset import Dataset
from foveal.data.encode import IGNORED, Expanded
from foveal.data.example import Example
from foveal.data.images.media import open_image
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import RowPlanner
from foveal.inputs import quiet_libraries
from foveal.machine import pick_device
from foveal.models.family import LoadedModel
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.optim import rate_scale, set_rate
from foveal.train.step import train_step

WAYS = {
    "recipe": "the recipe's way",
    "trainer": "transformers' Trainer",
    "trl": "TRL's SFTTrainer",
    "separate": "ours, not shared",
    "shared": "ours",
}

STRATEGIES: dict[str, str | tuple[Rule, ...]] = {
    "full": "full",
    "frozen_vision": "frozen_vision",
    # TRL refuses adapters on the head, so in this comparison nobody has one there.
    "lora": (
        Rule(match="language.lm_head.*", learn=False),
        Rule(match="*", learn=False, adapter=True),
    ),
    # As the recipes of other families have them.
    "decoder_lora": (
        Rule(match="language.layers.*", learn=False, adapter=True),
        Rule(match="*", learn=False),
    ),
}

ADAPTERS = {"decoder_lora": LoraSettings(rank=8, alpha=16)}
"""Adapters of a strategy, as its recipes have them; others: as by default."""


@dataclass(frozen=True)
class Work:
    """What is to be done, whichever way."""

    loaded: LoadedModel
    """With the weights to begin from."""

    examples: Sequence[Example]
    dataset: Dataset
    """The same examples, encoded."""

    strategy: str
    """Of `STRATEGIES`."""

    settings: TrainSettings
    steps: int

    def __post_init__(self) -> None:
        if len(self.dataset.examples) % self.settings.examples_per_step:
            raise ValueError("every step must have as many examples: Trainer averages as if it had")

    def plan(self, share_images: bool = True) -> RowPlanner:
        """Plan the steps; which examples are in a step does not hang on sharing."""
        return RowPlanner(
            self.dataset.sizes,
            examples_per_step=self.settings.examples_per_step,
            tokens_per_pass=self.settings.tokens_per_pass,
            seed=self.settings.seed,
            share_images=share_images,
        )

    def order(self) -> list[int]:
        """List the examples of all steps, one behind the other."""
        plan = self.plan()
        return [example for step in range(self.steps) for example in plan.examples(step).tolist()]

    @property
    def own_processor(self) -> Any:
        """What transformers' users hand to a trainer."""
        return getattr(self.loaded.processor, "processor", self.loaded.processor)

    def collator(self) -> Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]:
        """Make what puts open pictures and words into a padded batch."""
        if self.own_processor is self.loaded.processor:
            return PaddingCollator(self.dataset, self.own_processor)
        return ProcessorCollator(self.dataset, self.examples, self.own_processor)

    def examples_per_pass(self) -> int:
        """Count the padded examples that fit the token budget of a pass and divide a step."""
        room = self.settings.tokens_per_pass // int(self.dataset.sizes.tokens.max())
        counts = range(1, max(1, room) + 1)
        return max(count for count in counts if not self.settings.examples_per_step % count)


class Watch(Protocol):
    """What wants to know of the steps."""

    def begin(self) -> None:
        """All is built; the pictures of the first step come next."""
        ...

    def step(self, taken: int, loss: float) -> None:
        """So many steps are taken; `loss` is the mean loss before the last of them."""
        ...


def train(way: str, work: Work, watch: Watch) -> None:
    """Take all steps, one of the `WAYS`."""
    quiet_libraries()
    engine = Engine("float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.settings.seed)  # adapters begin at random
        learner = make_learner(
            engine,
            work.loaded,
            STRATEGIES[work.strategy],
            work.settings,
            ADAPTERS.get(work.strategy, LoraSettings()),
            recompute="none",
            wrap=RecipeWay if way == "recipe" else None,
        )
    optimizer = learner.optimizer
    if way in ("trainer", "trl"):
        _train_with_trainer(way, work, optimizer, watch)
    elif way == "recipe":
        _train_as_the_recipe(work, engine, learner.loss.train(), optimizer, watch)
    else:
        share_images = way == "shared"
        _train_our_way(work, engine, learner.loss.train(), optimizer, watch, share_images)


def _train_our_way(
    work: Work,
    engine: Engine,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
    share_images: bool,
) -> None:
    settings = work.settings
    batches = RowBatches(work.dataset, work.loaded.processor, "token")
    watch.begin()
    for one in StepLoader(work.plan(share_images), batches).steps(0, work.steps):
        set_rate(optimizer, rate_scale(one.step, work.steps, settings))
        seen = train_step(engine, module, optimizer, one.batches, settings.gradient_clip)
        watch.step(one.step + 1, seen.loss)


def _train_as_the_recipe(
    work: Work,
    engine: Engine,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
) -> None:
    settings, processor = work.settings, work.loaded.processor
    plan = work.plan()
    watch.begin()
    for step in range(work.steps):
        set_rate(optimizer, rate_scale(step, work.steps, settings))
        examples = plan.examples(step).tolist()
        inputs = (
            recipe_inputs(work.dataset, example, processor).to(engine.device)
            for example in examples
        )
        loss = recipe_step(engine, module, optimizer, inputs, len(examples), settings.gradient_clip)
        watch.step(step + 1, loss)


class ExampleList(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style set for Trainer: each place opens the pictures of one example."""

    def __init__(self, work: Work) -> None:
        self.dataset = work.dataset
        self.order = work.order()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        example = self.order[place]
        pictures = [self.dataset.images[image] for image in self.dataset.image_numbers(example)]
        return {"example": example, "images": [open_image(fact.path) for fact in pictures]}


@dataclass(frozen=True)
class PaddingCollator:
    """Examples with open pictures -> a padded batch, as people write it for such models."""

    dataset: Dataset
    processor: Any

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Cut the pictures of each example, pad the tokens on the right."""
        expanded = [expand(self.dataset, one["example"]) for one in examples]
        shape = len(expanded), max(len(one.ids) for one in expanded)
        ids = torch.full(shape, int(self.processor.tokenizer.pad_token_id))
        labels = torch.full(shape, IGNORED)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, one in enumerate(expanded):
            length, tokens = len(one.ids), torch.from_numpy(one.ids)
            ids[row, :length], mask[row, :length] = tokens, 1
            labels[row, :length] = tokens.masked_fill(~torch.from_numpy(one.learnt), IGNORED)
        images = [image for one in examples for image in one["images"]]
        pixels = self.processor.image_processor(images)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "pixel_values": pixels["pixel_values"],
            "image_sizes": pixels["image_sizes"],
        }


@dataclass(frozen=True)
class ProcessorCollator:
    """Examples with open pictures -> a padded batch, by a model's own template and processor."""

    dataset: Dataset
    examples: Sequence[Example]
    processor: Any

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Render, cut and pad; what is to be learnt is told by our tokens, which must be its own.

        Raises:
            ValueError: they are not.
        """
        made = self.processor(
            text=[self._render(one["example"]) for one in examples],
            images=[one["images"] for one in examples],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = torch.full_like(made["input_ids"], IGNORED)
        for row, one in enumerate(examples):
            expanded = expand(self.dataset, one["example"])
            ids, learnt = torch.from_numpy(expanded.ids), torch.from_numpy(expanded.learnt)
            if not made["input_ids"][row, : len(ids)].equal(ids.long()):
                raise ValueError(f"the processor makes other tokens of example {one['example']}")
            labels[row, : len(ids)] = ids.masked_fill(~learnt, IGNORED)
        return {**made, "labels": labels}

    def _render(self, example: int) -> str:
        (turn,) = self.examples[example].turns
        asked = [*({"type": "image"} for _ in turn.images), {"type": "text", "text": turn.user}]
        said = [{"type": "text", "text": turn.assistant}]
        text: str = self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
            chat_template=self.processor.chat_template or self.processor.tokenizer.chat_template,
            tokenize=False,
        )
        return text


def expand(dataset: Dataset, example: int) -> Expanded:
    """Give an example with every token of its images."""
    pictures = [dataset.images[image] for image in dataset.image_numbers(example)]
    return dataset.examples[example].expand([fact.shape for fact in pictures])


def _train_with_trainer(
    way: str, work: Work, optimizer: torch.optim.Optimizer, watch: Watch
) -> None:
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback

    settings = work.settings
    # What transformers takes by itself.
    work.loaded.model.set_attn_implementation("sdpa")
    examples = work.examples_per_pass()
    schedule = LambdaLR(optimizer, lambda step: rate_scale(step, work.steps, settings))
    with TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "max_steps": work.steps,
            "per_device_train_batch_size": examples,
            "gradient_accumulation_steps": settings.examples_per_step // examples,
            "max_grad_norm": settings.gradient_clip,
            "train_sampling_strategy": "sequential",
            "seed": settings.seed,
            "logging_steps": 1,  # for the losses
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "use_cpu": pick_device().type == "cpu",
        }
        shared = {
            "model": work.loaded.model,
            "data_collator": work.collator(),
            "optimizers": (optimizer, schedule),
            "callbacks": [_callback(watch)],
        }
        make = _trl_trainer if way == "trl" else _plain_trainer
        trainer = make(work, options, shared)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _plain_trainer(work: Work, options: dict[str, Any], shared: dict[str, Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(**options)
    return Trainer(args=arguments, train_dataset=ExampleList(work), **shared)


def _trl_trainer(work: Work, options: dict[str, Any], shared: dict[str, Any]) -> Any:
    """Make TRL's trainer, all at its defaults but the number format and the cut at 1,024 tokens.

    The collator is ours: `own_collator` shows what TRL's own makes of the same examples.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        args=SFTConfig(**options, bf16=False, max_length=None),
        train_dataset=trl_table(work),
        processing_class=work.own_processor,
        **shared,
    )


def trl_table(work: Work) -> Any:
    """Lay examples out in TRL's prompt-completion form, pictures opened when they are asked for."""
    from datasets import Dataset as Table
    from datasets import Image, List

    rows = []
    for number in work.order():
        (turn,) = work.examples[number].turns
        pictures = [work.dataset.images[image] for image in work.dataset.image_numbers(number)]
        rows.append(
            {
                "example": number,
                "images": [str(fact.path) for fact in pictures],
                "prompt": [{"role": "user", "content": turn.user}],
                "completion": [{"role": "assistant", "content": turn.assistant}],
            }
        )
    return Table.from_list(rows).cast_column("images", List(Image()))


def _callback(watch: Watch) -> Any:
    """Let a trainer tell of its steps."""
    from transformers import TrainerCallback

    class Telling(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float], **___: Any) -> None:
            if "loss" in logs:  # not the summary behind the last step
                watch.step(state.global_step, logs["loss"])

    return Telling()


def own_collator(work: Work) -> str:
    """Say what TRL's own collator makes of the first example, beside what all ways learn from."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    processor = work.own_processor
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    row = trl_table(work)[0]
    made = collate([row]), work.collator()([row])
    learnt = [batch["labels"][batch["labels"] != IGNORED] for batch in made]
    starts = [int((batch["labels"][0] != IGNORED).nonzero()[0]) for batch in made]
    prompts = [batch["input_ids"][0, :start] for batch, start in zip(made, starts, strict=True)]
    if learnt[0].equal(learnt[1]) and prompts[0].equal(prompts[1]):
        return "TRL's own collator: the same tokens, the same of them learnt"
    said = [repr(processor.tokenizer.decode(tokens)) for tokens in learnt]
    prompt = "the same prompt" if prompts[0].equal(prompts[1]) else "another prompt"
    return (
        f"TRL's own collator: {prompt}, and it learns {said[0]} where all ways here learn "
        f"{said[1]}; so TRL is given ours, to take the same steps"
    )
