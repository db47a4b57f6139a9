"""What a run ended with -> the folders that it leaves: `final`, and `adapter` beside it."""

from pathlib import Path

import torch

from foveal.deliver.adapter_folder import write_adapter
from foveal.deliver.export import new_folder, write_final
from foveal.deliver.export_source import RunSource, find_source


def save_final(run: Path, whole: bool = True) -> str | None:
    """Write the tuned model, adapters merged, as the run's folder `final`.

    Adapters also stand by themselves in a folder `adapter` beside it, for peft.

    Args:
        run: its folder.
        whole: whether a whole model can be written.

    Returns:
        What a reader of the folders must know, if anything.

    Raises:
        RunError: it cannot be written.
    """
    note = save_adapter(find_source(run))
    if whole:
        write_final(run)
    return note


def save_adapter(source: RunSource) -> str | None:
    """Write the folder `adapter` of a run, if adapters are all that it learnt; see `save_final`."""
    if not source.adapters:
        return None
    if others := source.whole_weights:
        return (
            f"{len(others)} weights such as {others[0]} learnt without an adapter: no folder "
            "adapter can hold all that was learnt, only the merged one does"
        )
    with new_folder(source.run / "adapter") as folder:
        write_adapter(source, folder, torch.float32)
    if source.four_bit_layers:
        return (
            "The adapters learnt beside 4-bit weights; the merged folder adds them to the whole "
            f"weights of {source.base_name}, so its scores may differ a little: evaluate it"
        )
    return None
