"""What each accelerator and link can do, by its maker's document; no measured number stands here.

The figures were written from memory and then held against public pages that repeat the documents;
not found there: the float32 speed of the A10G (31.5 or 35), the matrix speeds of the RTX 3090 and
the RTX 8000, the CPUs, and the links between nodes.

Matrix speeds are dense ones: the doubled figures for sparse matrices are of no use in training.
float32 is without TensorFloat-32, as PyTorch multiplies unless told otherwise.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

from foveal.errors import ConfigError

GB = 1e9
TERA = 1e12
PCIE3, PCIE4, PCIE5 = 15.75 * GB, 31.5 * GB, 63.0 * GB
"""Bytes a second of sixteen lanes, one way (PCI-SIG, base specifications 3.0 to 5.0)."""

CONTEXT_BYTES = 1_000_000_000
"""CUDA's context, kernels and NCCL's buffers: an assumption, 0.5 to 1.5 GB as seen in practice."""


@dataclass(frozen=True)
class Efficiency:
    """What share of its maker's figures a machine reaches; the one thing that shapes cannot say."""

    matrix: float
    """Of the matrix speed, in linear layers; with all that goes on around them, unless `moved`."""

    attention: float
    """Of the matrix speed, in fused attention."""

    bandwidth: float
    """Of the memory's bandwidth, in passes over numbers one by one."""

    link: float
    """Of links."""

    pass_seconds: float
    """That a pass takes whatever is in it."""

    crop_seconds: float
    """To open and cut one crop of an image, on one core."""

    source: str
    """Where these come from."""

    memory_slack: float = 0.0
    """Holes that the allocator keeps, as a share of what comes and goes with a pass; without
    adapters, which make more of them (`memory.slack_factor`)."""

    moved: float = 0.0
    """Bytes that norms, activations and sums move for each byte that is kept for the backward
    pass; zero: `matrix` knows of them."""


ASSUMED = Efficiency(
    matrix=0.35,
    attention=0.25,
    bandwidth=0.7,
    link=0.7,
    pass_seconds=0.02,
    crop_seconds=0.005,
    source="assumed: what the published A100 rows fit for matrices, the rest by experience",
)
"""Of an accelerator that nobody has measured; `foveal plan --measure` on it knows better."""


@dataclass(frozen=True)
class Hardware:
    """One accelerator, in a node of its usual kind."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_second: float
    matrix_flops: MappingProxyType[str, float]
    """Number format -> operations a second; a format that is not there is not computed with."""

    link_bytes_per_second: float
    """From one accelerator to the others of its node, one way."""

    node_link_bytes_per_second: float
    """From a node to the others, one way, all of its adapters together."""

    source: str
    """The maker's document."""

    base_bytes: int = CONTEXT_BYTES
    node_latency_seconds: float = 20e-6
    is_cpu: bool = False
    """Whether it is a processor, and runs on that alone."""

    measured: bool = False
    cores: int = field(default=16, compare=False)
    """Of the host, for each accelerator: an assumption unless measured."""

    reached: Efficiency = ASSUMED
    """Of its maker's figures."""

    @property
    def moved_bytes_per_second(self) -> float:
        """What passes over numbers one by one reach of its bandwidth."""
        return self.bandwidth_bytes_per_second * self.reached.bandwidth


ETHERNET = 12.5
"""GB/s of one 100 Gb/s adapter a node: an assumption for cards that no maker's node is built of."""

LINKS = {"pcie3": PCIE3 / GB, "pcie4": PCIE4 / GB, "pcie5": PCIE5 / GB, "eth": ETHERNET}
TABLE = """
# name          GB  GB/s float32  bf16  fp16  link out document
a100-40gb       40  1555    19.5   312   312   300 200 NVIDIA A100 datasheet 2021; DGX A100
a100-80gb       80  2039    19.5   312   312   300 200 NVIDIA A100 datasheet 2021; DGX A100
a100-40gb-pcie  40  1555    19.5   312   312 pcie4 eth NVIDIA A100 datasheet, PCIe
a100-80gb-pcie  80  1935    19.5   312   312 pcie4 eth NVIDIA A100 datasheet, PCIe
h100            80  3350      67   989   989   450 400 NVIDIA H100 datasheet, SXM; DGX H100
h200           141  4800      67   989   989   450 400 NVIDIA H200 datasheet, SXM; DGX H200
b200           180  8000      80  2250  2250   900 400 NVIDIA Blackwell brief, HGX B200; DGX B200
l4              24   300    30.3   121   121 pcie4 eth NVIDIA L4 datasheet, half of sparse
l40s            48   864    91.6   362   362 pcie4 eth NVIDIA L40S datasheet
a10g            24   600    31.5    70    70 pcie4 eth NVIDIA A10G brief; AWS EC2 G5
t4              16   320     8.1     -    65 pcie3 eth NVIDIA T4 datasheet 2019
v100-32gb       32   900    15.7     -   125   150  50 NVIDIA V100 datasheet, SXM2; DGX-1
rtx3090         24   936    35.6    71    71 pcie4 eth NVIDIA GA102 whitepaper, table 9
rtx4090         24  1008    82.6 165.2 165.2 pcie4 eth NVIDIA Ada GPU whitepaper
rtx5090         32  1792   104.8 209.5 209.5 pcie5 eth NVIDIA RTX Blackwell whitepaper
rtx8000         48   672    16.3     - 130.5 pcie3 eth NVIDIA Quadro RTX 8000 datasheet
m1-max          64   400    10.4     -  10.4 pcie3 eth Apple newsroom 2021-10-18
m1-ultra       128   800      21     -    21 pcie3 eth Apple newsroom 2022-03-08
cpu-epyc-7763  512 204.8       5     -     5 pcie4 eth AMD EPYC 7763 page
cpu-xeon-8480  512 307.2     7.2   229   7.2 pcie5 eth Intel Xeon 8480+ page; \
AMX in the optimization manual
"""
"""Dense TFLOP/s by format; links in GB/s one way, inside a node and out of it.

Of processors: cores x base clock x 32 (AVX2: two fused products of eight) or 64 (AVX-512) or 2,048
(AMX).
"""


def _link(said: str) -> float:
    return (LINKS.get(said) or float(said)) * GB


def _read_row(line: str) -> Hardware:
    name, memory, bandwidth, *speeds, inside, between, document = line.split(maxsplit=8)
    formats = zip(("float32", "bf16", "fp16"), speeds, strict=True)
    is_cpu = name.startswith("cpu-")
    return Hardware(
        name,
        float(memory) * GB,
        float(bandwidth) * GB,
        MappingProxyType({one: float(speed) * TERA for one, speed in formats if speed != "-"}),
        _link(inside),
        _link(between),
        document,
        CONTEXT_BYTES // 2 if is_cpu else CONTEXT_BYTES,
        is_cpu=is_cpu,
    )


HARDWARE = {row.name: row for row in map(_read_row, TABLE.strip().splitlines()[1:])}


def find_hardware(name: str) -> Hardware:
    """Look an accelerator up.

    Raises:
        ConfigError: there is none of that name.
    """
    if (found := HARDWARE.get(name.lower())) is None:
        known = ", ".join(HARDWARE)
        raise ConfigError(f"--gpu {name}: not known; choose `this` (this machine) or from {known}")
    return found
