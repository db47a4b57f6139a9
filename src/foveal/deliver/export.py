"""A run -> a folder in the published layout: streamed, proven, renamed into place at the end."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from foveal.config import Recipe
from foveal.deliver.adapter_folder import write_adapter
from foveal.deliver.card import write_card
from foveal.deliver.export_source import RunSource, find_base, find_source
from foveal.deliver.four_bit import through_four_bits
from foveal.deliver.merge import Adapter, AdapterScale, relative_norms
from foveal.deliver.model_files import write_model_settings, write_processor_files
from foveal.deliver.proving.evidence import find_examples
from foveal.deliver.proving.proof import Proof
from foveal.deliver.proving.prove import prove
from foveal.deliver.proving.same_base import check_same_base
from foveal.deliver.tensors import StoredTensor, find_tensors, in_format, indexed, write_shards
from foveal.deliver.weight_only import (
    WeightFormat,
    WeightOnly,
    plan_weight_only,
    reads_compressed,
)
from foveal.errors import ModelError, RunError
from foveal.machine import DTYPES, Precision
from foveal.models.family import Family
from foveal.models.hub.image_settings import changed_settings
from foveal.storage import alone_in, folder_written_whole

MAX_SHARD_BYTES = 2_000_000_000
TOWER = (
    "the adapter has weights before the language model, which engines that apply adapters to the "
    "language model alone leave out without an error; --merge suits them"
)
UNPROVEN = ".unverified"
"""Ends the name of a folder whose proof failed, or was not asked for."""


@dataclass(frozen=True)
class Exported:
    """Where a run was written to, and what was seen of it."""

    folder: Path
    proof: Proof | None
    four_bit_norms: dict[str, float]
    """Kind of layer -> relative norm of what 4 bits took from the base; empty: it was whole."""

    @property
    def failed(self) -> bool:
        """Whether a proof was made, and something did not hold."""
        return self.proof is not None and bool(self.proof.problems())

    def lines(self) -> list[str]:
        """Tell what was seen."""
        lines = [
            f"the 4-bit base that it learnt on, {kind}: {norm:.2%} from this one"
            for kind, norm in self.four_bit_norms.items()
        ]
        if self.proof is None:
            return [*lines, "not proven, as asked: the folder is marked"]
        failed = [f"FAILED: {problem}" for problem in self.proof.problems()]
        return [*lines, *self.proof.lines(), *failed]


def export_run(
    run: Path,
    out: Path,
    *,
    merge: bool = False,
    dtype: Precision | None = None,
    checkpoint: str = "last",
    proof: bool = True,
    quantize: WeightFormat | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write what a run learnt as a folder for others.

    A run with adapters gives a folder that peft loads onto the base; with `merge`, or where whole
    weights were learnt, a whole model in the published layout.

    Args:
        run: its folder.
        out: new folder.
        merge: fold adapters into the full-precision base.
        dtype: number format; none: bf16 for a model, float32 for adapters.
        checkpoint: `last`, `best`, or a step.
        quantize: hold the decoder's linear layers in fewer bits; the model is whole then.
        proof: load the folder again and compare it; without, it is marked as unverified.
        max_shard_bytes: most bytes of a file, and of what memory holds of the model while writing.
        tell: called with what is being done.

    Raises:
        RunError, ModelError, DataError: something is missing or does not fit.
        AtWorkError: another process writes there.
    """
    source = find_source(run, checkpoint)
    as_model = merge or quantize is not None or not source.adapters
    for note in (*source.notes, *(() if as_model or not source.adapts_the_tower else (TOWER,))):
        tell(note)
    check_base_fits(source, as_model)
    check_same_base(source)
    chosen: Precision = dtype or ("bf16" if as_model else "float32")
    bits = None
    if quantize:
        bits = plan_weight_only(str(source.base), source.family, quantize)
        for line in filter(None, [bits.line(), bits.slow_line()]):
            tell(line)
    name = Path(os.path.abspath(out)).name  # a dot has none
    with alone_in(out, out.parent / f".{name}.lock"):
        unproven = out.parent / (name + UNPROVEN)
        for taken in (out, unproven):
            if taken.exists():
                raise RunError(f"{taken} is there already; choose a new folder, or remove it")
        processor: Any = source.family.load_processor(
            str(source.base), source.recipe.data.image_budget
        )
        # Read before an hour of writing, not after it.
        examples = find_examples(source.recipe, processor) if proof else None
        tell("Writing")
        with new_folder(unproven) as folder:
            if as_model:
                write_model(source, folder, chosen, processor, max_shard_bytes, bits)
            else:
                write_adapter(source, folder, DTYPES[chosen])
                write_processor_files(
                    source.base,
                    source.base_name,
                    folder,
                    num_crops=source.recipe.data.num_crops,
                    turns=source.recipe.data.turns,
                    images=images_of(source, processor),
                )
            write_card(source, folder, out.name, chosen, as_model=as_model, proof=None, bits=bits)
        norms = four_bit_norms(source) if as_model else {}
        if examples is None:
            return Exported(unproven, None, norms)
        # Whatever happens from here on, the folder's name tells the truth.
        proven = prove(source, unproven, chosen, examples, merged=as_model, bits=bits, tell=tell)
        proven.write(unproven)
        write_card(source, unproven, out.name, chosen, as_model=as_model, proof=proven, bits=bits)
        if proven.problems():
            return Exported(unproven, proven, norms)
        return Exported(unproven.rename(out), proven, norms)


def why_no_final(recipe: Recipe, family: Family, fetch: bool = True) -> str:
    """Say, before anything is paid for, why a run's whole model could not be written; or nothing.

    transformers puts some weights of some bases together, such as those of experts, and what has
    been put together is in no file under a name of its own.

    Args:
        recipe: of the run.
        family: of its base.
        fetch: whether a base on the hub may be brought here; otherwise its index alone is asked.
    """
    if not family.keeps_stored_names:
        return ""
    try:
        for name in find_tensors(find_base(recipe.run, recipe)) if fetch else indexed(recipe.model):
            family.own_name(name)
    except ModelError as error:
        return str(error)
    return ""


def write_final(run: Path) -> None:
    """Write what a run ended with as its folder `final`, adapters folded in.

    Unrounded, but after a run on 4-bit weights in the number format of its base: whoever has no
    room for whole weights has none for float32.

    Raises:
        RunError, ModelError: something is missing or cannot be written.
    """
    source, final = find_source(run), run / "final"
    check_base_fits(source, as_model=True)
    processor: Any = source.family.load_processor(str(source.base), source.recipe.data.image_budget)
    with new_folder(final) as folder:
        dtype = format_of_base(source) if source.four_bit_layers else "float32"
        write_model(source, folder, dtype, processor, MAX_SHARD_BYTES)


def format_of_base(source: RunSource) -> Precision:
    """Read the number format of the base's weights."""
    names: dict[torch.dtype, Precision] = {
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
    }
    largest = max(source.base_tensors.values(), key=lambda one: math.prod(one.shape))
    return names.get(largest.read().dtype, "float32")


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Give a folder to fill; it takes its place when all went well, and is gone if not.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with folder_written_whole(place, alone=True) as part:
            yield part
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {place}: {reason}; free space, run again") from error


def check_base_fits(source: RunSource, as_model: bool) -> None:
    """Check, from names and shapes alone, that a run's weights belong to its base.

    Raises:
        ModelError: they do not.
    """
    base = source.base_tensors
    for layer, pieces in source.adapters.items():
        stored = base.get(f"{layer}.weight")
        shape = (pieces["up"].shape[0], pieces["down"].shape[1])
        if stored is None or stored.shape != shape:
            raise ModelError(_does_not_fit(source, layer, stored, shape))
    for name in source.whole_weights:
        stored = base.get(name)
        if stored is None or stored.shape != source.learnt[name].shape:
            raise ModelError(_does_not_fit(source, name, stored, source.learnt[name].shape))
    if not as_model and source.whole_weights:
        raise ModelError(
            f"{source.run}: besides adapters it learnt {len(source.whole_weights)} whole weights, "
            f"such as {source.whole_weights[0]}, which an adapter folder cannot hold; give --merge"
        )


def _does_not_fit(
    source: RunSource, name: str, stored: StoredTensor | None, shape: tuple[int, ...]
) -> str:
    found = "nothing" if stored is None else f"shape {stored.shape}"
    return (
        f"{source.base} is not the model that this run started from: the run has {name} of shape "
        f"{shape}, the base has {found}; bring the right folder back"
    )


def write_model(
    source: RunSource,
    folder: Path,
    dtype: Precision,
    processor: Any,
    max_shard_bytes: int,
    bits: WeightOnly | None = None,
) -> None:
    """Write a whole model: the base's weights with what the run learnt, tensor by tensor."""
    planned, make = planned_tensors(source, DTYPES[dtype], bits)
    write_shards(folder, planned, make, max_shard_bytes)
    write_model_settings(
        source.base,
        source.base_name,
        folder,
        dtype=str(DTYPES[dtype]).removeprefix("torch."),
        end_ids=processor.end_ids,
        num_crops=source.recipe.data.num_crops,
        turns=source.recipe.data.turns,
        images=images_of(source, processor),
        quantization=bits.settings() if bits else {},
    )


def planned_tensors(
    source: RunSource, dtype: torch.dtype, bits: WeightOnly | None
) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """List the tensors of a whole model, without content, and make the function that makes one."""
    names, read = source.written_names, tuned_tensor(source)
    held, compressed = reads_compressed(bits, names, read, dtype) if bits else ({}, read)
    planned: dict[str, Tensor] = {}
    for written, own in names.items():
        layer = written.removesuffix("weight")
        if bits and bits.holds(own):
            planned |= {name: one for name, one in held.items() if name.startswith(layer)}
        else:
            planned[written] = torch.empty(
                source.base_tensors[own].shape, dtype=dtype, device="meta"
            )

    def make(name: str) -> Tensor:
        if name in held:
            return compressed(name)
        return in_format(read(names[name]), dtype, name)

    return planned, make


def images_of(source: RunSource, processor: Any) -> dict[str, Any]:
    """Say which settings of images the run had of its own."""
    if not source.recipe.data.image_settings:
        return {}
    return changed_settings(processor.processor, str(source.base))


def tuned_tensor(source: RunSource) -> Callable[[str], Tensor]:
    """Make the function that gives a weight of the tuned model by its name."""
    sizes, rank_stabilized = source.adapter_sizes, source.recipe.lora.rslora

    def read(name: str) -> Tensor:
        if name in source.learnt:
            return source.learnt[name].read()
        weight = source.base_tensors[name].read()
        layer = name.removesuffix(".weight")
        pieces = source.adapters.get(layer)
        if pieces is None or layer == name:
            return weight
        adapter = Adapter(**{piece: stored.read() for piece, stored in pieces.items()})
        return adapter.merged_with(weight, AdapterScale(sizes[layer].alpha, rank_stabilized))

    return read


def four_bit_norms(source: RunSource) -> dict[str, float]:
    """Measure, layer by layer, what 4 bits took from the weights that stood in them."""
    double = source.recipe.quantization.double
    return relative_norms(
        (layer, weight, through_four_bits(weight, double))
        for layer in source.four_bit_layers
        for weight in (source.base_tensors[f"{layer}.weight"].read(),)
    )
