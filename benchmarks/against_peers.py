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

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from draw_pages import PageStyle, draw_pages
from turns import Case, Results, Taken, TimingWatch, asking, cases_of, check_losses, in_turns
from ways import STRATEGIES, WAYS, Work, own_collator, train

from foveal.bench.random_page import NUM_CROPS, PATCH_SIZE, BenchSize, find_size
from foveal.config import TrainSettings
from foveal.data.dataset import read_dataset
from foveal.data.example import read_examples
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.phi3_vision.tiny import TinySizes, cut_vocabulary, tiny_config
from foveal.models.shared_rows import choose_attention


def make_work(size: BenchSize, strategy: str, questions: int, steps: int, folder: Path) -> Work:
    """Draw a page a step, with so many questions, and make the model that reads them."""
    style = PageStyle(*size.page)
    if not (folder / "pages.jsonl").exists():
        draw_pages(folder, steps, style=style, questions=(questions, questions))
    texts = {
        text
        for example in read_examples(folder / "pages.jsonl")
        for turn in example.turns
        for text in (f"\n{turn.user}", turn.assistant)
    }
    loaded = make_model(size, texts)
    examples, dataset = read_dataset(folder / "pages.jsonl", loaded.processor)
    settings = TrainSettings(
        examples_per_step=questions,
        tokens_per_pass=size.tokens_per_pass,
        warmup_steps=0,
        schedule="constant",
    )
    return Work(loaded, examples, dataset, strategy, settings, steps)


def make_model(size: BenchSize, texts: set[str]) -> LoadedModel:
    """Make a model of random weights, of a size of `foveal bench`, with a processor that TRL takes.

    Its vocabulary is as large as the size says; the tokenizer uses a part of it.
    """
    tokenizer = cut_vocabulary(texts)
    sizes = TinySizes(
        crop_size=size.crop_size,
        patch_size=PATCH_SIZE,
        tower_width=size.tower_width,
        tower_layers=size.tower_layers,
        tower_heads=size.tower_heads,
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        mlp=size.mlp,
        initial_spread=0.02,
    )
    config = tiny_config(sizes, tokenizer)
    config.vocab_size = max(size.vocabulary, len(tokenizer))
    torch.manual_seed(0)
    model = Phi3VisionForConditionalGeneration(config)
    model.set_attn_implementation(choose_attention("auto"))
    images = Phi3VisionImageProcessor(NUM_CROPS, size.crop_size, size.crop_tokens_side**2)
    return LoadedModel(model, Phi3VisionProcessor(images, tokenizer), FAMILY)


def take_turn(case: Case, way: str, folder: Path, started: float) -> Taken:
    """Take the steps one way; in a process of its own, started at `started`."""
    torch.set_num_threads(case.threads)
    watch = TimingWatch()
    size = find_size(case.size)
    train(way, make_work(size, case.strategy, case.questions, case.steps, folder), watch)
    return watch.taken(started)


def compare_collators(case: Case) -> str:
    """Say what TRL's own collator does with our processor, or why it cannot."""
    with TemporaryDirectory() as folder:
        work = make_work(find_size("tiny"), case.strategy, 1, 1, Path(folder))
        try:
            return own_collator(work)
        except Exception as error:  # whatever it is, it is to be seen, not to stop the table
            return f"TRL's own collator cannot take our processor: {type(error).__name__}: {error}"


def those_that_run(trial: Case, ways: Sequence[str]) -> list[str]:
    """Try each way by itself; of one that cannot run, print why."""
    found = []
    for way in ways:
        try:
            in_turns(take_turn, trial, [way], 1)
            found.append(way)
        except Exception as error:  # whatever it is, it is to be seen beside the table
            reason = " ".join(str(error).split())
            print(f"{WAYS[way]} cannot run: {type(error).__name__}: {reason}")
    return found


def main() -> None:
    """Measure and print."""
    asked = asking(__doc__, WAYS, STRATEGIES).parse_args()
    results = Results(asked, WAYS, "examples")
    for strategy in asked.strategies.split(","):
        # The same in seconds, to see that all ways run and agree before the long part.
        trial = Case("tiny", strategy, 4, 3, asked.threads)
        ways = those_that_run(trial, asked.ways.split(","))
        tried = in_turns(take_turn, trial, ways, 1)
        worst = check_losses({way: some[0] for way, some in tried.items()})
        print(f"\n{strategy}: all ways take the same three steps, losses within {worst:.0e}")
        if "trl" in ways:
            print(compare_collators(trial), flush=True)
        for case in cases_of(asked, strategy):
            results.add(case, in_turns(take_turn, case, ways, asked.rounds))


if __name__ == "__main__":
    main()
