"""A run -> a folder for others, proven and renamed into place at the end -> the hub."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.deliver.card import write_card
from foveal.deliver.export_source import RunSource, check_base_fits, check_same_base, find_source
from foveal.deliver.merge import relative_norms, through_four_bits
from foveal.deliver.model_folder import (
    MAX_SHARD_BYTES,
    new_folder,
    write_adapter,
    write_model,
    write_processor_files,
)
from foveal.deliver.proof import FILE, Proof, find_examples, prove
from foveal.deliver.tensors import PICKLED
from foveal.deliver.weight_only import WeightFormat, plan_weight_only
from foveal.errors import RunError, one_line
from foveal.machine import DTYPES, Precision
from foveal.storage import alone_in, read_object

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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
    card = partial(write_card, source, name=out.name, dtype=chosen, as_model=as_model, bits=bits)
    with alone_in(out, out.parent / f".{name}.lock"):
        unproven = out.parent / (name + UNPROVEN)
        for taken in (out, unproven):
            if taken.exists():
                raise RunError(f"{taken} is there already; choose a new folder, or remove it")
        # Read before an hour of writing, not after it.
        examples = find_examples(source.recipe, source.processor) if proof else None
        tell("Writing")
        with new_folder(unproven) as folder:
            if as_model:
                write_model(source, folder, chosen, max_shard_bytes, bits)
            else:
                write_adapter(source, folder, DTYPES[chosen])
                data = source.recipe.data
                write_processor_files(
                    source.base, source.base_name, folder, data, source.image_changes
                )
            card(folder, proof=None)
        norms = four_bit_norms(source) if as_model else {}
        if examples is None:
            return Exported(unproven, None, norms)
        # Whatever happens from here on, the folder's name tells the truth.
        proven = prove(source, unproven, chosen, examples, merged=as_model, bits=bits, tell=tell)
        proven.write(unproven)
        card(unproven, proof=proven)
        if proven.problems():
            return Exported(unproven, proven, norms)
        return Exported(unproven.rename(out), proven, norms)


def four_bit_norms(source: RunSource) -> dict[str, float]:
    """Measure, layer by layer, what 4 bits took from the weights that stood in them."""
    double = source.recipe.quantization.double
    return relative_norms(
        (layer, weight, through_four_bits(weight, double))
        for layer in source.four_bit_layers
        for weight in (source.base_tensors[f"{layer}.weight"].read(),)
    )


@dataclass(frozen=True)
class Upload:
    """A file that goes to the hub."""

    name: str
    size_bytes: int


def plan_push(folder: Path, unproven: bool = False) -> list[Upload]:
    """List what a push sends.

    Args:
        folder: written by an export.
        unproven: send it though its proof failed or was not made.

    Raises:
        RunError: it is no exported folder, not proven, or holds what may run code when opened.
    """
    if not (folder / "README.md").is_file():
        raise RunError(f"{folder}: not a folder that `foveal export` wrote; it has no README.md")
    is_proven = read_object(folder / FILE).get("problems") == []
    if not unproven and (folder.name.endswith(UNPROVEN) or not is_proven):
        raise RunError(
            f"{folder}: not proven to be the model that was trained; export it again, "
            "or give --unproven"
        )
    pickled = sorted(path.name for kind in PICKLED for path in folder.rglob(kind))
    if pickled:
        raise RunError(f"{folder}: {pickled[0]} may run code when opened; remove it")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [Upload(str(path.relative_to(folder)), path.stat().st_size) for path in files]


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = True,
    unproven: bool = False,
    api: "HfApi | None" = None,
) -> str:
    """Send a folder; what the repository already holds unchanged is not sent again.

    Args:
        folder: written by an export.
        repository: user/name; made where it does not exist.
        private: whether a new repository is seen by its owner alone.
        unproven: see `plan_push`.
        api: of the hub; none: with the token that `hf auth login` stored, or HF_TOKEN.

    Returns:
        Address of the repository.

    Raises:
        RunError: it cannot be sent.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    files = plan_push(folder, unproven)
    hub = api or HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[file.name for file in files],
            commit_message=f"Upload {folder.name}",
        )
    except (OSError, HFValidationError, HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = one_line(error, 300)
        raise RunError(
            f"cannot push to {repository}: {reason}; check the name and log in with `hf auth login`"
        ) from error
    return str(address)
