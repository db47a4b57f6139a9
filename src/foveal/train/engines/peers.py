"""The processes of a run watch each other: when one dies, the others say which, and leave."""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import torch.distributed as dist

SILENCE_SECONDS, PROBE_SECONDS, PROBES = 10, 5, 4
"""When the kernel asks a silent peer whether it is there: half a minute finds a dead machine."""

CONNECT_SECONDS = 300.0
"""For all to be there. They have just been told where to: a slow machine takes seconds for it."""

SETTLE_SECONDS = 5.0
BYE = {"bye": True}


class Companions:
    """A line from every process to the first one, on which nothing is said until the end.

    The kernel closes the lines of a process however it dies, and probes those of a machine that
    fell silent; so no process can be taken for dead because it is busy.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        """Connect; every process of the group calls this at the same time."""
        self._parted = False
        self.me = f"process {rank} (pid {os.getpid()} on {socket.gethostname()})"
        server = _listen() if rank == 0 else None
        told = [(server.getsockname()[1], secrets.token_hex(16), self.me) if server else None]
        dist.broadcast_object_list(told, src=0)
        assert told[0] is not None
        port, secret, first = told[0]
        self._lines: dict[socket.socket, str] = {}
        if server:
            with server:
                self._accept(server, secret, set(range(1, world_size)))
        else:
            self._connect(port, {"secret": secret, "rank": rank, "name": self.me}, first)
        threading.Thread(target=self._watch, daemon=True).start()

    def _accept(self, server: socket.socket, secret: str, missing: set[int]) -> None:
        until = time.monotonic() + CONNECT_SECONDS
        while missing:
            try:
                server.settimeout(max(0.0, until - time.monotonic()))
                line, _ = server.accept()
            except (TimeoutError, BlockingIOError):
                silent = ", ".join(map(str, sorted(missing)))
                self._leave(f"process {silent} did not connect in {CONNECT_SECONDS:g} seconds")
            line.settimeout(PROBE_SECONDS)
            hello = _receive(line)
            if hello and secrets.compare_digest(str(hello.get("secret")), secret):
                self._add(line, str(hello["name"]))
                missing.remove(hello["rank"])
            else:
                line.close()  # somebody else's

    def _connect(self, port: int, hello: dict[str, Any], first: str) -> None:
        address = os.environ["MASTER_ADDR"]
        try:
            line = socket.create_connection((address, port), CONNECT_SECONDS)
        except OSError as error:
            self._leave(f"{first} cannot be reached at {address}, port {port} ({error})")
        _send(line, hello)
        self._add(line, first)

    def _add(self, line: socket.socket, name: str) -> None:
        line.settimeout(None)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        self._lines[line] = name

    def _watch(self) -> None:
        try:
            self._wait_for_ends()
        except ValueError:  # parted before this thread had begun: the lines are closed
            if not self._parted:
                raise

    def _wait_for_ends(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in self._lines:
                selector.register(each, selectors.EVENT_READ, each)
            while selector.get_map():
                for key, _ in selector.select():
                    line: socket.socket = key.data
                    said = _receive(line)
                    if self._parted:
                        return
                    if said == BYE:
                        selector.unregister(line)
                    else:
                        self._leave((said or {}).get("why", f"{self._lines[line]} died"))

    def _leave(self, why: str) -> NoReturn:
        for line in self._lines:
            _send(line, {"why": why})
        sys.stderr.write(
            f"foveal: {why}, so {self.me} stops too; "
            "the same command goes on from the last checkpoint\n"
        )
        sys.stderr.flush()
        os._exit(2)

    def settle(self) -> None:
        """Give the watch time to end this process, if what went wrong here is another's death."""
        time.sleep(SETTLE_SECONDS)

    def close(self) -> None:
        """Part in peace."""
        self._parted = True
        for line in self._lines:
            _send(line, BYE)
            line.detach()  # the kernel closes it; the watch may still wait on it


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    try:
        line.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return  # the other end is gone, which its own watch sees


def _receive(line: socket.socket) -> dict[str, Any] | None:
    """Read one message; none where the line is dead."""
    read = b""
    try:
        while not read.endswith(b"\n") and len(read) < 4096:
            byte = line.recv(1)
            if not byte:
                return None
            read += byte
        message = json.loads(read)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
