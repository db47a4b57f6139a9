"""Models of other families beside transformers' Trainer and TRL's SFTTrainer: speed and memory.

    python benchmarks/families.py qwen3_vl smolvlm gemma3 --rounds 3

Each family's own code, processor and template, random weights, and the proportions of its
published checkpoint: decoder, tower and head to each other, tokens and patches of a page; a word is
one token, as with its published tokenizer. A step is four examples: four pages with a question
each, or a page with four; ragged, pages and answers differ in size. Trainer and TRL pad the four
into one pass, by a collator as people write it around the processor; all else is at their defaults,
so TRL recomputes its blocks in the backward pass. Every turn is a process of its own, forked from
one that has imported the libraries and done nothing else.

The loop is that of `turns.py`; all ways take the same steps, else it stops.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from against_peers import UNTIMED, agreeing_ways, settings_of, take_turn
from draw_pages import PageStyle, draw_pages
from turns import Case, Results, Taken, asking, in_turns
from ways import WAYS, Work

from foveal.data.dataset import read_dataset
from foveal.data.example import Example, read_examples, write_examples
from foveal.inputs import quiet_libraries
from foveal.models.loading import load

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from published_images import QWEN_16
from tiny_models import FAMILIES, image_processor

COMPARED = {way: WAYS[way] for way in ("trainer", "trl", "shared")}
STRATEGIES = ("full", "decoder_lora")
EXAMPLES = 4
"""Of a step."""

TINY = " tiny"
"""Behind a family's name: the tests' model, to see in seconds that all ways agree."""

RAGGED = ((1.0, 1), (0.9, 2), (0.7, 4), (0.5, 8))
"""Sides of a page beside the first one's, and how often its answers say the same."""

WORD = r" ?\w+|\S"


@dataclass(frozen=True)
class Shape:
    """A published checkpoint, cut down."""

    of: str
    published: tuple[float, float, float]
    """Millions of weights in the layers of its decoder and of its tower, and in its head."""

    text: Mapping[str, Any]
    tower: Mapping[str, Any]
    images: tuple[str, Mapping[str, Any]]
    image_tokens: Mapping[str, int]
    """Settings of the processor that hang on the tower's."""

    more: Mapping[str, Any]
    page: tuple[int, int]
    enlarges: bool = False
    """Whether small pages are read as large: then it is narrow ones that cost less."""


SHAPES = {
    # 36 layers of 2560 -> 4 of 320; 24 of 1024 -> 2 of 128, its mergers not fewer but narrower.
    "qwen3_vl": Shape(
        of="Qwen3-VL-4B",
        published=(3634, 302, 389),
        text={
            "hidden_size": 320,
            "intermediate_size": 1216,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "vocab_size": 2112,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [24, 20, 20],
                "rope_theta": 5e6,
            },
        },
        tower={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 2,
            "out_hidden_size": 320,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        },
        images=("Qwen2VLImageProcessor", QWEN_16),
        image_tokens={},
        more={},
        page=(640, 800),
    ),
    # 32 layers of 960 -> 5 of 240; 12 of 768 -> 2 of 192.
    "smolvlm": Shape(
        of="SmolVLM2-500M",
        published=(315, 85, 47),
        text={
            "hidden_size": 240,
            "intermediate_size": 640,
            "num_hidden_layers": 5,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 16,
            "vocab_size": 1920,
        },
        tower={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        images=(
            "SmolVLMImageProcessor",
            {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}},
        ),
        image_tokens={"image_seq_len": 64},
        more={"scale_factor": 4},
        page=(640, 800),
        enlarges=True,
    ),
    # 34 layers of 2560 -> 6 of 320, one of them without a window; 27 of 1152 -> 4 of 144. Of 896
    # pixels 672 are left: a narrow tower's attention would else outweigh all the rest.
    "gemma3": Shape(
        of="Gemma 3 4B",
        published=(3209, 411, 671),
        text={
            "hidden_size": 320,
            "intermediate_size": 1280,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 1024,
            "vocab_size": 5808,
        },
        tower={
            "hidden_size": 144,
            "intermediate_size": 538,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 672,
            "patch_size": 14,
        },
        images=("Gemma3ImageProcessor", {"size": {"height": 672, "width": 672}}),
        image_tokens={"image_seq_length": 256},
        more={"mm_tokens_per_image": 256},
        page=(640, 800),
    ),
}


def write_model(name: str, folder: Path, texts: Iterable[str] = ()) -> None:
    """Write a model of a family, of the tests' size or, with the words of `texts`, of its shape."""
    family = name.removesuffix(TINY)
    config, tokenizer, images, settings = FAMILIES[family]()
    architecture = config.architectures[0]
    if name == family:
        shape, tree = SHAPES[family], config.to_dict()
        tree["text_config"].pop("layer_types", None)
        tree["text_config"] |= shape.text
        tree["vision_config"] |= shape.tower
        config = type(config).from_dict(tree | dict(shape.more))
        images = image_processor(shape.images[0], **shape.images[1])
        settings = {**settings, **shape.image_tokens}
        tokenizer.add_tokens(sorted({word for text in texts for word in re.findall(WORD, text)}))
    torch.manual_seed(0)
    getattr(transformers, architecture)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def draw_all(case: Case, folder: Path) -> Path:
    """Draw the pages of all steps, and ask about them."""
    width, height = (96, 96) if TINY in case.size else SHAPES[case.size].page
    shrinks = TINY in case.size or not SHAPES[case.size].enlarges
    sizes = RAGGED if case.ragged else RAGGED[:1]
    made: list[Example] = []
    for page in range(case.steps * case.pages):
        side, _ = sizes[page % len(sizes)]
        style = PageStyle(round(width * side), round(height * side) if shrinks else height)
        asked = (case.questions, case.questions)
        some = read_examples(draw_pages(folder, 1, page, style, asked, name=f"page{page}"))
        for number, one in enumerate(some):
            (turn,) = one.turns
            _, times = sizes[(page + number) % len(sizes)]
            longer = turn.model_copy(update={"assistant": " ".join([turn.assistant] * times)})
            made.append(one.model_copy(update={"turns": (longer,)}))
    path = folder / "pages.jsonl"
    write_examples(path, made)
    return path


def make_work(case: Case, folder: Path) -> Work:
    """Draw the pages of all steps, and open the model that reads them."""
    quiet_libraries()
    if not (folder / "model").exists():
        turns = [turn for one in read_examples(draw_all(case, folder)) for turn in one.turns]
        texts = [text for turn in turns for text in (turn.user, turn.assistant)]
        write_model(case.size, folder / "model", texts)
    loaded = load(str(folder / "model"), None)
    examples, dataset = read_dataset(folder / "pages.jsonl", loaded.processor)
    whole = EXAMPLES * int(dataset.sizes.tokens.max())
    return Work(loaded, examples, dataset, case.strategy, settings_of(case, whole), case.steps)


def in_forked_process(function: Callable[..., Taken], *arguments: object) -> Taken:
    """Call a function in a process of its own, whose libraries are imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", "peft", "trl.trainer.sft_trainer"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def proportions(family: str) -> str:
    """Tell tower and head beside the decoder, of the published checkpoint and of ours."""
    counts = dict.fromkeys(("language", "vision", "projector"), 0)
    with TemporaryDirectory() as folder:
        write_model(family, Path(folder))
        loaded = load(folder, None)
    for path, weight in loaded.model.named_parameters():
        if weight.dim() > 1 and "embed" not in path and "lm_head" not in path:
            counts[loaded.family.part_name(path).partition(".")[0]] += weight.numel()
    head_layer: Any = loaded.family.head(loaded.model)
    head = head_layer.weight.numel()
    decoder, tower, published_head = SHAPES[family].published
    return (
        f"weights of tower and head for one of the decoder: {tower / decoder:.3f} and "
        f"{published_head / decoder:.3f} as published, {counts['vision'] / counts['language']:.3f} "
        f"and {head / counts['language']:.3f} here"
    )


def main() -> None:
    """Measure and print."""
    parser = asking(__doc__, COMPARED, STRATEGIES)
    parser.add_argument("families", nargs="+", choices=SHAPES)
    parser.add_argument("--rows", default="equal,ragged", help="with commas")
    asked = parser.parse_args()
    quiet_libraries()
    results = Results(asked, COMPARED, "questions", f"{EXAMPLES} examples a step")
    take = partial(take_turn, make_work)
    for family in asked.families:
        print(f"\n## {SHAPES[family].of}: {proportions(family)}")
        for strategy in asked.strategies.split(","):
            trial = Case(family + TINY, strategy, 4, 3, asked.threads)
            ways = agreeing_ways(make_work, trial, asked.ways.split(","), in_forked_process)
            for questions in map(int, asked.questions.split(",")):
                for rows in asked.rows.split(","):
                    case = replace(
                        trial,
                        size=family,
                        questions=questions,
                        pages=EXAMPLES // questions,
                        ragged=rows == "ragged",
                        steps=UNTIMED + asked.steps,
                    )
                    turns = in_turns(take, case, ways, asked.rounds, call=in_forked_process)
                    results.add(case, turns)


if __name__ == "__main__":
    main()
