"""A tuned model -> the folders that a run leaves: `final`, and `adapter` beside it."""

from pathlib import Path

from safetensors import SafetensorError

from foveal.adapt.files import save_adapter
from foveal.deliver.export import write_final
from foveal.errors import RunError
from foveal.models.family import LoadedModel


def save_final(loaded: LoadedModel, run: Path, whole: bool = True) -> str | None:
    """Write the tuned model, adapters merged, as the run's folder `final`.

    Adapters also stand by themselves in a folder `adapter` beside it, for peft.

    Args:
        loaded: what was tuned.
        run: its folder.
        whole: whether a whole model can be written.

    Returns:
        What a reader of the folders must know, if anything.

    Raises:
        RunError: it cannot be written.
    """
    try:
        note = save_adapter(loaded.model, run / "adapter")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write {run / 'adapter'}: {reason}; free space, run again"
        ) from error
    if whole:
        write_final(run)
    return note
