#!/usr/bin/env bash
# With a schedule-free optimizer Trainer saves the average if it has just evaluated, and the point it trains at if not.
#
# Guessed:  optim="schedule_free_adamw" saves what is meant to be used, the average: Trainer switches the optimizer for its
#           evaluations, and a checkpoint is an evaluation's equal.
# Happens:  20 steps of the same batches, saved each 5: evaluated as often, all four checkpoints and the saved model are the
#           average; without an evaluation all five hold other weights, with another loss, and nothing in the files says so;
#           evaluated each 10, every second checkpoint is of the other kind.
# Why:      transformers/trainer.py, training_step calls optimizer.train() and evaluation_loop calls optimizer.eval(); neither
#           _save_checkpoint nor save_model calls either, so they write what the weights happen to stand at. schedulefree's
#           own page asks for eval() before weights are saved.
# Matters:  fine-tuning without an evaluation set, and checkpoints that are compared with each other. optimizer.eval() before
#           save_model mends the last one.
# Versions: transformers 5.24.0, schedulefree 1.4.1, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 schedulefree==1.4.1 datasets==5.2.0 \
    numpy==2.4.6

python - <<'PYTHON'
import contextlib
import io
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

IDS = [[(7 * row + place) % 64 for place in range(12)] for row in range(64)]
ROWS = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in IDS])
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def loss_of(model):
    ids = torch.tensor(IDS)
    with torch.no_grad():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


def run(name, **evaluation):
    """Train; give the losses of what was saved by step, and of the average at the end."""
    torch.manual_seed(0)
    settings = {
        "output_dir": name,
        "use_cpu": True,
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "optim": "schedule_free_adamw",
        "lr_scheduler_type": "constant",
        "save_steps": 5,
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = TrainingArguments(**settings | evaluation)
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES)), args, train_dataset=ROWS, eval_dataset=ROWS)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    trainer.save_model(f"{name}/checkpoint-last")
    folders = sorted(Path(name).glob("checkpoint-*"), key=lambda folder: (len(folder.name), folder.name))
    saved = {folder.name.split("-")[1]: loss_of(LlamaForCausalLM.from_pretrained(folder)) for folder in folders}
    trainer.optimizer.eval()
    saved["average at the end"] = loss_of(trainer.model)
    print(f"{name}:", ", ".join(f"{step} {loss:.4f}" for step, loss in saved.items()))
    return saved


averaged = run("evaluated each 5 steps", eval_strategy="steps", eval_steps=5)
alone = run("not evaluated")
mixed = run("evaluated each 10 steps", eval_strategy="steps", eval_steps=10)
average = averaged["average at the end"]


def same(saved, other, steps):
    """Tell of each step whether it was saved with the loss that the other run has there."""
    return [abs(saved[step] - other[step]) < 1e-3 for step in steps.split()]


as_told = abs(averaged["last"] - average) < 1e-3 and abs(alone["average at the end"] - average) < 1e-3
as_told &= same(alone, averaged, "5 10 15 20 last") == [False] * 5
as_told &= same(mixed, averaged, "5 10 15 20 last") == [False, True, False, True, True]
as_told &= same(mixed, alone, "5 15") == [True, True]
sys.exit(not as_told)
PYTHON
