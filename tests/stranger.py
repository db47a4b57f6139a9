"""A process that has transformers and peft but never us: it opens what we write, as others will."""

import json
import subprocess
import sys

ALONE = """
import json, sys, torch, warnings
warnings.simplefilter("ignore")
from peft import PeftModel
from transformers import AutoModelForImageTextToText
for line in sys.stdin:
    base, adapter, out, ids = json.loads(line)
    opened, info = AutoModelForImageTextToText.from_pretrained(
        base, dtype="float32", output_loading_info=True)
    if adapter:
        opened = PeftModel.from_pretrained(opened, adapter)
    with torch.no_grad():
        logits = opened.eval()(input_ids=torch.tensor([ids])).logits
    torch.save(logits, out)
    ours = [name for name in sys.modules if name.split(".")[0] == "foveal"]
    said = [*info["missing_keys"], *info["unexpected_keys"], *ours]
    print(json.dumps([str(one) for one in said]), flush=True)
"""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


class Stranger:
    """Opens folders one after the other: to start such a process costs more than all it does."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ALONE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def logits(self, base, adapter, out, ids=(5, 40, 60, 71, 9)):
        """Open a whole model, or one and an adapter; returns its logits for some words."""
        import torch

        asked = [str(base), adapter and str(adapter), str(out), list(ids)]
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said, f"it ended with {self.process.wait()}"
        assert json.loads(said) == []
        return torch.load(out)

    def close(self):
        """End it."""
        self.process.stdin.close()
        self.process.wait()
