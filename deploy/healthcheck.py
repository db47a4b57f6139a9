"""This container's first process -> exit status 0 while it answers, or while it does not serve."""

import sys
import urllib.request
from pathlib import Path

COMMAND = Path("/proc/1/cmdline")
DEFAULT_PORT = "8000"


def port_served(words: list[str]) -> str | None:
    """Read the port from a command line; none: it is not `foveal serve`."""
    if "serve" not in words:
        return None
    port = DEFAULT_PORT
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--port":
            port = following
        elif word.startswith("--port="):
            port = word.partition("=")[2]
    return port


def main() -> int:
    """Ask /health, where there is somebody to ask."""
    port = port_served(COMMAND.read_bytes().decode().split("\0"))
    if port is None:
        return 0
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=4) as answer:
            return 0 if answer.status == 200 else 1
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
