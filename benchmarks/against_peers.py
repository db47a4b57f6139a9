"""One model and one set of pages through five ways of training: speed, memory, the first step.

    python benchmarks/against_peers.py --size standard --rounds 3

The ways take turns (see `turns.py`). All take the same optimizer steps on the same examples (see
`ways.py`): before anything is timed, and again in each turn, their losses must agree, else the
script stops.

Trainer's and TRL's batches are as large as the same token budget allows; all else is at their
defaults, so TRL recomputes its blocks in the backward pass and Trainer does not. The recipe
recomputes, as published. Ours keeps freed memory, which is a part of it; so does the recipe's way,
which runs on our engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from draw_pages import PageStyle, draw_pages
from foveal_bench.random_page import NUM_CROPS, BenchSize, find_size
from turns import (
    Call,
    Case,
    Results,
    Taken,
    TakeTurn,
    TimingWatch,
    asking,
    cases_of,
    check_losses,
    in_turns,
)
from ways import WAYS, Work, own_collator, train

from foveal.config import TrainSettings
from foveal.data.dataset import read_dataset
from foveal.data.example import read_examples
from foveal.data.parallel import in_new_process
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.phi3_vision.tiny import cut_vocabulary, tiny_config
from foveal.models.shared_rows import choose_attention

PHI_STRATEGIES = ("full", "frozen_vision", "lora")

UNTIMED = 2
"""Of a turn, its first step and its last: Trainer opens its pictures a step before."""

Make = Callable[[Case, Path], Work]
"""Draws the pages of a case into a folder, and makes the model that reads them."""


def settings_of(case: Case, tokens_per_pass: int) -> TrainSettings:
    """Say how all ways train."""
    return TrainSettings(
        examples_per_step=case.examples,
        tokens_per_pass=tokens_per_pass,
        warmup_steps=0,
        schedule="constant",
    )


def make_work(case: Case, folder: Path) -> Work:
    """Draw the pages of all steps, and make the model that reads them."""
    size = find_size(case.size)
    if not (folder / "pages.jsonl").exists():
        style, asked = PageStyle(*size.page), (case.questions, case.questions)
        draw_pages(folder, case.steps * case.pages, style=style, questions=asked)
    texts = {
        text
        for example in read_examples(folder / "pages.jsonl")
        for turn in example.turns
        for text in (f"\n{turn.user}", turn.assistant)
    }
    loaded = make_model(size, texts)
    examples, dataset = read_dataset(folder / "pages.jsonl", loaded.processor)
    settings = settings_of(case, size.tokens_per_pass)
    return Work(loaded, examples, dataset, case.strategy, settings, case.steps)


def make_model(size: BenchSize, texts: set[str]) -> LoadedModel:
    """Make a model of random weights, of a size of `foveal bench`, with a processor that TRL takes.

    Its vocabulary is as large as the size says; the tokenizer uses a part of it.
    """
    tokenizer = cut_vocabulary(texts)
    config = tiny_config(size, tokenizer)
    config.vocab_size = max(size.vocabulary, len(tokenizer))
    torch.manual_seed(0)
    model = Phi3VisionForConditionalGeneration(config)
    model.set_attn_implementation(choose_attention("auto"))
    images = Phi3VisionImageProcessor(NUM_CROPS, size.crop_size, size.crop_tokens_side**2)
    return LoadedModel(model, Phi3VisionProcessor(images, tokenizer), FAMILY)


def take_turn(make: Make, case: Case, way: str, folder: Path, started: float) -> Taken:
    """Take the steps one way; in a process of its own, started at `started`."""
    torch.set_num_threads(case.threads)
    watch = TimingWatch()
    train(way, make(case, folder), watch)
    return watch.taken(started, UNTIMED)


def agreeing_ways(
    make: Make, trial: Case, ways: Sequence[str], call: Call = in_new_process
) -> list[str]:
    """See in seconds that all ways run and take the same steps, before the long part."""
    take = partial(take_turn, make)
    found = those_that_run(take, trial, ways, call)
    tried = in_turns(take, trial, found, 1, call=call)
    worst = check_losses({way: some[0] for way, some in tried.items()})
    print(f"\n{trial.strategy}: all ways take the same three steps, losses within {worst:.0e}")
    if "trl" in found:
        print(compare_collators(make, trial), flush=True)
    return found


def those_that_run(take: TakeTurn, trial: Case, ways: Sequence[str], call: Call) -> list[str]:
    """Try each way by itself; of one that cannot run, print why."""
    found = []
    for way in ways:
        try:
            in_turns(take, trial, [way], 1, call=call)
            found.append(way)
        except Exception as error:  # whatever it is, it is to be seen beside the table
            reason = " ".join(str(error).split())
            print(f"{WAYS[way]} cannot run: {type(error).__name__}: {reason}")
    return found


def compare_collators(make: Make, trial: Case) -> str:
    """Say what TRL's own collator does with our processor, or why it cannot."""
    with TemporaryDirectory() as folder:
        try:
            return own_collator(make(replace(trial, questions=1, steps=1), Path(folder)))
        except Exception as error:  # whatever it is, it is to be seen, not to stop the table
            return f"TRL's own collator cannot take our processor: {type(error).__name__}: {error}"


def main() -> None:
    """Measure and print."""
    asked = asking(__doc__, WAYS, PHI_STRATEGIES).parse_args()
    results = Results(asked, WAYS, "examples", f"size {asked.size}")
    for strategy in asked.strategies.split(","):
        trial = Case("tiny", strategy, 4, 3, asked.threads)
        ways = agreeing_ways(make_work, trial, asked.ways.split(","))
        for case in cases_of(asked, strategy, UNTIMED):
            results.add(case, in_turns(partial(take_turn, make_work), case, ways, asked.rounds))


if __name__ == "__main__":
    main()
