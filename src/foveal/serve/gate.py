"""Places for requests: who comes when all are taken is told when to come back."""

import math
import time
from collections import deque

from foveal.serve.problems import RequestError

REMEMBERED = 32
"""Latest requests that tell how long one takes."""


class Slot:
    """One request's place; given back once, however often that is asked for."""

    def __init__(self, gate: "Gate") -> None:
        self._gate: Gate | None = gate
        self._since = time.monotonic()

    def give_back(self) -> None:
        """Make room for the next request."""
        if self._gate is not None:
            self._gate.leave(time.monotonic() - self._since)
            self._gate = None


class Gate:
    """Counts the requests that are read, wait or run."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self.taken = 0

    def enter(self) -> Slot:
        """Take a place.

        Raises:
            RequestError: there is none.
        """
        if self.taken >= self._places:
            raise RequestError(
                429,
                f"{self._places} requests wait or run already; come back in a moment",
                "queue_full",
                retry_after_seconds=self._wait(),
            )
        self.taken += 1
        return Slot(self)

    def leave(self, seconds: float) -> None:
        """Count a place as free again, after so many seconds."""
        self.taken -= 1
        self._seconds.append(seconds)

    def _wait(self) -> int:
        """Guess when a place is free: all of them turn over once in the time of one request."""
        usual = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        return max(1, math.ceil(usual / self._places))
