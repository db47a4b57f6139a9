"""Load on an endpoint: many clients at once beside one at a time, with memory watched.

    python benchmarks/serve_load.py                        a tiny model, made here
    python benchmarks/serve_load.py --model runs/mine      one of your own
    python benchmarks/serve_load.py --requests 200 --clients 16 --pages 8 --tokens 16

It starts a server in this process, on loopback, and asks it over HTTP: `requests` questions about
`pages` pictures, first a share of them one at a time, then all of them from `clients` threads. It
fails if one request fails, or if the memory still grows in the second half of the load.
"""

import argparse
import base64
import io
import json
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from PIL import Image

from foveal.inputs import quiet_libraries
from foveal.machine import free_memory
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.serve.limits import ServerLimits, ServerSettings
from foveal.serve.served import open_models
from foveal.serve.server import address_of, build_app, listen, make_server

GROWTH_BYTES = 32 * 2**20
"""That the second half of a load may add, over what the first half needed."""


@dataclass(frozen=True)
class Load:
    """How an endpoint bore it."""

    requests: int
    clients: int
    pages: int
    tokens: int
    errors: list[str]
    one_by_one_per_second: float
    together_per_second: float
    median_seconds: float
    slowest_seconds: float
    memory_half_bytes: int
    memory_end_bytes: int

    @property
    def times_faster(self) -> float:
        """Answers a second together, over those one by one."""
        return self.together_per_second / self.one_by_one_per_second

    @property
    def is_well(self) -> bool:
        """Whether every request was answered and memory stood still."""
        grown = self.memory_end_bytes - self.memory_half_bytes
        return not self.errors and grown < GROWTH_BYTES


@contextmanager
def serving(model: str, limits: ServerLimits) -> Iterator[str]:
    """Serve a model on a thread; yields its address."""
    served, _ = open_models(model, "load", False, free_memory)
    server = make_server(build_app(served, ServerSettings(limits=limits), free_memory), limits)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()


def questions(requests: int, pages: int, tokens: int, side: int) -> list[bytes]:
    """Write the bodies of all requests; several ask about each page, in a shuffled order."""
    bodies = []
    for number in range(requests):
        drawn = random.Random(number % pages)
        pixels = bytes(drawn.randbytes(side * side * 3))
        held = io.BytesIO()
        Image.frombytes("RGB", (side, side), pixels).save(held, "PNG")
        address = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": f"What stands in line {number // pages}?"},
        ]
        asked = {"messages": [{"role": "user", "content": parts}], "max_tokens": tokens}
        bodies.append(json.dumps(asked).encode())
    random.Random(0).shuffle(bodies)
    return bodies


def resident_bytes() -> int:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def ask(client: httpx.Client, body: bytes) -> tuple[float, str]:
    """Ask once; returns the seconds it took, and what went wrong, if anything."""
    began = time.monotonic()
    try:
        answer = client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        wrong = "" if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:200]}"
    except httpx.HTTPError as error:
        wrong = repr(error)
    return time.monotonic() - began, wrong


def measure(
    url: str, bodies: Sequence[bytes], clients: int, alone: int
) -> tuple[float, float, list[float], list[str], int, int]:
    """Put a load on an endpoint: some requests one by one, then all of them together."""
    with httpx.Client(base_url=url, timeout=600) as client:
        ask(client, bodies[0])  # what is made at the first request is not what is measured
        began = time.monotonic()
        first = [ask(client, body) for body in bodies[:alone]]
        one_by_one = alone / (time.monotonic() - began)
    half = len(bodies) // 2
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    with (
        httpx.Client(base_url=url, timeout=600, limits=limits) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        began = time.monotonic()
        done = list(pool.map(lambda body: ask(client, body), bodies[:half]))
        memory_half = resident_bytes()
        done += list(pool.map(lambda body: ask(client, body), bodies[half:]))
        together = len(bodies) / (time.monotonic() - began)
    errors = [wrong for _, wrong in [*first, *done] if wrong]
    return one_by_one, together, [one for one, _ in done], errors, memory_half, resident_bytes()


def run(
    model: str | None, requests: int, clients: int, pages: int, tokens: int, alone: int, side: int
) -> Load:
    """Serve a model, load it, and say how it went.

    Args:
        model: run folder, model folder or hub name; none: a tiny one is made.
        requests: in all.
        clients: at a time.
        pages: distinct pictures; each is asked about requests / pages times.
        tokens: of each answer.
        alone: requests that are first asked one by one.
        side: of a picture, pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            model = str(Path(folder) / "model")
            write_tiny(Path(model), seed=0)
        bodies = questions(requests, pages, tokens, side)
        with serving(model, ServerLimits(running=clients)) as url:
            one, together, seconds, errors, half, end = measure(url, bodies, clients, alone)
    return Load(
        requests=requests,
        clients=clients,
        pages=pages,
        tokens=tokens,
        errors=errors,
        one_by_one_per_second=one,
        together_per_second=together,
        median_seconds=statistics.median(seconds),
        slowest_seconds=max(seconds),
        memory_half_bytes=half,
        memory_end_bytes=end,
    )


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pages", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--alone", type=int, default=40)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    asked = vars(parser.parse_args())
    as_json = asked.pop("json")
    quiet_libraries()
    load = run(**asked)
    if as_json:
        print(json.dumps(asdict(load)))
    else:
        print(f"{load.requests} requests from {load.clients} clients, {load.pages} pages")
        print(f"errors            {len(load.errors)}  {load.errors[:1] or ''}")
        print(f"one by one        {load.one_by_one_per_second:8.2f} answers/s")
        print(f"together          {load.together_per_second:8.2f} answers/s")
        print(f"                  {load.times_faster:8.2f} times as many")
        print(f"an answer took    {load.median_seconds:8.2f} s (median)")
        print(f"                  {load.slowest_seconds:8.2f} s (slowest)")
        grown = load.memory_end_bytes - load.memory_half_bytes
        print(f"memory, 2nd half  {grown / 2**20:+8.1f} MiB")
    raise SystemExit(not load.is_well)


if __name__ == "__main__":
    main()
