"""The published recipe's table of memory and speed on DocVQA, to hold the arithmetic against.

Source: "Phi-3.5-vision finetuning recipe", Microsoft's cookbook; 2,443 tokens a sample on average,
a global batch of 64, one example a pass, every kind of training as its scripts set it up.
"""

from dataclasses import dataclass

TOKENS = 2443
"""Of a sample, on average."""

EXAMPLES_PER_STEP = 64
NUM_CROPS = 16
RANK = 64


@dataclass(frozen=True)
class PublishedRow:
    """One line of the table."""

    gpu: str
    gpus: int
    strategy: str
    flash: bool
    images_per_second: float
    """Over all GPUs."""

    memory_gb: float | None
    """Of one GPU at most; none: not printed, or known to be the card's whole memory."""

    @property
    def nodes(self) -> int:
        """Nodes of eight GPUs."""
        return self.gpus // 8

    @property
    def tower_learns(self) -> bool:
        """Whether anything before the decoder does."""
        return self.strategy != "frozen_vision"

    @property
    def name(self) -> str:
        """In words."""
        attention = "flash" if self.flash else "eager"
        return f"{self.gpus} x {self.gpu}, {self.strategy}, {attention}"


A100, V100 = "a100-80gb", "v100-32gb"
ROWS = (
    PublishedRow(A100, 8, "full", False, 5.041, 42),
    PublishedRow(A100, 8, "full", True, 8.657, 36),
    PublishedRow(A100, 16, "full", True, 16.903, 29),
    PublishedRow(A100, 32, "full", True, 33.433, 26),
    PublishedRow(A100, 8, "frozen_vision", False, 17.578, 29),
    PublishedRow(A100, 8, "frozen_vision", True, 31.736, 27),
    PublishedRow(A100, 8, "lora", False, 5.591, 50),
    PublishedRow(A100, 8, "lora", True, 12.127, 16),
    PublishedRow(A100, 8, "qlora", False, 4.831, 32),
    PublishedRow(A100, 8, "qlora", True, 10.545, 10),
    PublishedRow(V100, 8, "full", False, 2.462, 32),
    PublishedRow(V100, 16, "full", False, 4.182, None),
    PublishedRow(V100, 32, "full", False, 5.465, None),
    PublishedRow(V100, 8, "frozen_vision", False, 8.942, 27),
    PublishedRow(V100, 8, "lora", False, 2.807, 30),
)
"""In the order of the source."""

FITTED, TESTED = ROWS[0::2], ROWS[1::2]
"""Every other row, from the first: chosen by place, before any was predicted."""
