"""What a store's library raised -> the error that a person can mend, if trying again cannot."""

from foveal.errors import StoreError
from foveal.storage import FAILED_WRITES


def lasting_error(url: str, error: Exception) -> StoreError | None:
    """Say what stands in the way of an object for good; none: it may be there another time.

    Args:
        url: of the object.
        error: of its store's library, or of writing down what was fetched.
    """
    scheme = url.partition(":")[0]
    if isinstance(error, ImportError | ValueError):
        return StoreError(f"{url}: {said_in_one_line(error)}; {_package(scheme)}")
    if isinstance(error, OSError) and error.errno in FAILED_WRITES and error.filename:
        return StoreError(
            f"cannot write to {error.filename}: {error.strerror}; free space, or give less of it "
            "or another folder: data.object_cache_gb, data.object_cache"
        )
    if _is_refusal(error):
        return StoreError(
            f"{url}: no access ({said_in_one_line(error)}); give credentials that may read it"
            f"{_where_credentials(scheme)}"
        )
    return None


def said_in_one_line(error: Exception) -> str:
    """Say what an exception says, without its line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _is_refusal(error: Exception) -> bool:
    """Tell whether a store answers, but not us; the hub calls what is closed to us missing."""
    answer = getattr(error.__cause__, "response", None)
    return (
        isinstance(error, PermissionError)
        or "Credentials" in type(error).__name__
        or getattr(answer, "status_code", None) in (401, 403)
    )


def _package(scheme: str) -> str:
    if scheme in ("s3", "gs", "gcs"):
        return "pip install foveal[stores]"
    return "check the URL" if scheme == "hf" else "install the package that fsspec wants for it"


def _where_credentials(scheme: str) -> str:
    if scheme == "s3":
        return ", as `aws configure` writes them; a public bucket: FSSPEC_S3_ANON=true"
    return ": hf auth login" if scheme == "hf" else ""
