"""Tiny models of words and pictures, and one DPO step of TRL on pairs of answers."""

import contextlib
import io
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer

WORDS = ["<pad>", "<end>", *"abcdefghijklmnop", "<image>"]
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def tokenizer():
    """One token a letter."""
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"image_token": "<image>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", extra_special_tokens=special
    )


def processor():
    """Four tokens a picture."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    return LlavaProcessor(
        pictures,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def language_model(seed):
    """Random weights of a seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **TEXT))


def vision_language_model(seed):
    """Random weights of a seed."""
    torch.manual_seed(seed)
    tower = CLIPVisionConfig(**TEXT | {"num_hidden_layers": 2}, image_size=28, patch_size=14)
    text = LlamaConfig(vocab_size=len(WORDS), **TEXT)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower, text_config=text, image_token_index=len(WORDS) - 1)
    )


def trainer(rows, pictures=False, **options):
    """Make TRL's trainer; the policy is of seed 0, the reference of seed 1."""
    make = vision_language_model if pictures else language_model
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": len(rows),
        "learning_rate": 1.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    return DPOTrainer(
        model=make(0),
        ref_model=make(1),
        args=DPOConfig(**settings | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor() if pictures else tokenizer(),
    )


def one_step(rows, pictures=False, **options):
    """Take one step; returns its loss and gradient, as a step of plain SGD at rate 1 shows it."""
    run = trainer(rows, pictures, **options)
    before = [one.detach().clone() for one in run.model.parameters()]
    with contextlib.redirect_stdout(io.StringIO()):
        run.train()
    gradient = torch.cat(
        [(a - b.detach()).flatten() for a, b in zip(before, run.model.parameters(), strict=True)]
    )
    return run.state.log_history[0]["loss"], gradient
