"""Pictures of a data set -> what the tower takes, made in the background before it is needed."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

from foveal.data.batch import open_pixels
from foveal.data.dataset import Dataset
from foveal.data.turn_processor import TurnProcessor
from foveal.models.generation.prompt import Pixels

AHEAD = 4
"""Pictures that are opened before they are asked for, for each thread."""


class Opener:
    """Opens pictures; those that come next in a given order wait ready."""

    def __init__(self, dataset: Dataset, processor: TurnProcessor, threads: int = 2) -> None:
        self.dataset = dataset
        self.processor = processor
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = AHEAD * threads
        self._coming: list[int] = []
        self._ready: dict[int, Future[Pixels]] = {}

    def __enter__(self) -> "Opener":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of what nobody asked for."""
        self._pool.shutdown(cancel_futures=True)

    def expect(self, images: Sequence[int]) -> None:
        """Say which pictures will be asked for, in which order."""
        self._coming = list(dict.fromkeys(images))[::-1]
        self._fetch()

    def later(self, image: int) -> Callable[[], Pixels]:
        """Name what gives a picture when it is needed."""
        return partial(self.pixels, image)

    def pixels(self, image: int) -> Pixels:
        """Give a picture as the tower takes it.

        Raises:
            DataError: it cannot be opened.
        """
        waiting = self._ready.pop(image, None)
        self._fetch()
        return waiting.result() if waiting else self._open(image)

    def _fetch(self) -> None:
        while self._coming and len(self._ready) < self._ahead:
            image = self._coming.pop()
            self._ready[image] = self._pool.submit(self._open, image)

    def _open(self, image: int) -> Pixels:
        return open_pixels(image, self.dataset, self.processor)
