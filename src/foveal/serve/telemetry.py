"""What Prometheus reads: requests, tokens, times, and how many wait or run."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Telemetry:
    """The measures of one endpoint, apart from those of any other in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        times = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self.requests = counter(
            "foveal_requests",
            "Requests for an answer, by how they ended; 499: the client left.",
            ["model", "status"],
        )
        self.refused = counter(
            "foveal_refused_requests", "Requests that no model was asked, by status.", ["status"]
        )
        self.prompt_tokens = counter(
            "foveal_prompt_tokens", "Tokens of prompts, pictures included.", ["model"]
        )
        self.answer_tokens = counter("foveal_answer_tokens", "Tokens written.", ["model"])
        self.first_token_seconds = times(
            "foveal_first_token_seconds", "From a request's arrival to its first token.", ["model"]
        )
        self.request_seconds = times(
            "foveal_request_seconds", "From a request's arrival to its end.", ["model"]
        )

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a number that is read when asked for."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Write all of them in Prometheus' own form."""
        return generate_latest(self.registry)
