"""An exported folder -> a repository on the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.deliver.export import UNPROVEN
from foveal.deliver.proof import FILE as PROOF
from foveal.deliver.tensors import PICKLED
from foveal.errors import RunError
from foveal.storage import read_object

if TYPE_CHECKING:
    from huggingface_hub import HfApi


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
    is_proven = read_object(folder / PROOF).get("problems") == []
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
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"cannot push to {repository}: {reason}; check the name and log in with `hf auth login`"
        ) from error
    return str(address)
