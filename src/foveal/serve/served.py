"""Models under the names that clients ask for: how they are opened, and read what clients send."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import anyio.to_thread
import torch
from huggingface_hub import snapshot_download
from prometheus_client import Gauge
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from foveal.config import load_recipe
from foveal.data.images.boxes import BoxMap
from foveal.data.turn_processor import pixels_of, shape_of
from foveal.deliver.open import ADAPTER_CONFIG, open_to_answer, read_base_name
from foveal.deliver.tensors import find_tensors
from foveal.errors import DataError, ModelError
from foveal.models.family import LoadedModel, most_tokens
from foveal.models.generation.generator import Limits as DecodingLimits
from foveal.models.generation.generator import Request, check_fits
from foveal.models.generation.prompt import (
    Pixels,
    Prompt,
    PromptImage,
    find_boxes,
    prompt_of_turns,
)
from foveal.models.generation.sampling import Sampling
from foveal.serve.fetch import fetch
from foveal.serve.limits import Admission, RequestError, ServerLimits, ServerSettings, Telemetry
from foveal.serve.messages import ChatRequest, Conversation, parse_request, read_conversation
from foveal.serve.scheduler import Scheduler
from foveal.serve.sent_files import (
    Body,
    SentFile,
    discard,
    measure_images,
    read_address,
    read_body,
    showing,
)

FreeMemory = Callable[[torch.device], int]
"""Device -> bytes that it still has."""

BEFORE = "-before"
"""Ends the name of the model that a run started from."""

FREE_SHARE = 0.6
"""Of the free memory, taken for keys and values."""

MOST_CACHE_TOKENS = 2**18

READERS = 2
"""Threads that read requests: decode images, cut them, write out prompts."""

REMEMBERED_IMAGES = 32
"""Latest images that stay cut, for the next question about them; 6 MB each at most."""


class CutImages:
    """Images as the tower takes them, the latest remembered; several threads may use it."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._known: OrderedDict[str, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def cut(self, image: SentFile) -> Pixels:
        """Decode and cut an image, unless that was done lately.

        Raises:
            RequestError: it is broken.
        """
        with self._lock:
            crops = self._known.get(image.identity)
        if crops is None:
            crops = pixels_of(self._processor, image.path, image.decode())
        with self._lock:
            self._known[image.identity] = crops
            self._known.move_to_end(image.identity)
            if len(self._known) > REMEMBERED_IMAGES:
                self._known.popitem(last=False)
        return crops


class Served:
    """A model that clients may ask."""

    def __init__(self, name: str, loaded: LoadedModel) -> None:
        self.name = name
        self.loaded = loaded
        self.created = int(time.time())
        self._images = CutImages(loaded.processor)

    @property
    def tokenizer(self) -> Any:
        """Of the `tokenizers` library."""
        return self.loaded.processor.tokenizer.backend_tokenizer

    def requests(
        self, asked: ChatRequest, conversation: Conversation, limits: ServerLimits
    ) -> tuple[list[Request], BoxMap | None]:
        """Turn what a client asks into what the decoding loop takes, one for each answer.

        With them comes what moves the boxes of the answers back; none: they can hold none.
        Sizes and lengths are checked before the first image is decoded.

        Raises:
            RequestError: the images are broken or too large, the prompt is too long, or image
                tags in the text do not match the images.
        """
        processor = self.loaded.processor
        with showing(processor.frame_choice, limits) as show:
            shown = [
                list(chain.from_iterable(map(show, turn.files))) for turn in conversation.turns
            ]
            files = list(chain.from_iterable(shown))
            sizes = measure_images(files, limits)
            images = list(map(self._describe, files, sizes))
            boxes = find_boxes(images, sizes, processor)
            prompt = self._prompt(conversation, list(map(len, shown)), images, boxes)
            most_tokens = self._answer_tokens(asked, prompt, limits)
            # One after the other, so that one at a time is large.
            cut = [
                replace(image, pixels=self._cut(file))
                for image, file in zip(prompt.images, files, strict=True)
            ]
        prompt = replace(prompt, images=tuple(cut))
        sampling = Sampling(asked.temperature, asked.top_p)
        seeds = [None if asked.seed is None else asked.seed + one for one in range(asked.n)]
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        return [
            Request(prompt, most_tokens, replace(sampling, seed=seed), logprobs=logprobs)
            for seed in seeds
        ], boxes

    def _prompt(
        self,
        conversation: Conversation,
        counts: Sequence[int],
        images: Sequence[PromptImage],
        boxes: BoxMap | None,
    ) -> Prompt:
        """Encode a conversation; its images, some a turn, are known by their sizes so far."""
        following = iter(images)
        try:
            turns = [
                (
                    boxes.to_model(turn.user) if boxes else turn.user,
                    list(islice(following, count)),
                    _as_the_model_said(turn.assistant, boxes),
                )
                for turn, count in zip(conversation.turns, counts, strict=True)
            ]
        except ValueError as error:
            raise RequestError(400, str(error), "bad_box", "messages") from error
        try:
            return prompt_of_turns(turns, self.loaded.processor, conversation.system)
        except ValueError as error:
            raise RequestError(400, str(error), "bad_image_tags", "messages") from error

    def _answer_tokens(self, asked: ChatRequest, prompt: Prompt, limits: ServerLimits) -> int:
        """Find the longest answer: what was asked for, or what is usual and still fits."""
        wanted = asked.most_tokens
        if wanted is None:
            most = most_tokens(self.loaded.model.config) or limits.answer_tokens + prompt.tokens
            wanted = max(1, min(limits.answer_tokens, most - prompt.tokens))
        try:
            check_fits(self.loaded, prompt, wanted)
        except ValueError as error:
            raise RequestError(400, str(error), "context_length_exceeded", "messages") from error
        return wanted

    def _describe(self, image: SentFile, size: tuple[int, int]) -> PromptImage:
        """Describe an image whose pixels are still to be cut."""
        try:
            shape = shape_of(self.loaded.processor, image.path, size)
        except (DataError, ValueError) as error:
            raise RequestError(400, f"{image.name}: {error}", "bad_picture_shape") from error
        return PromptImage(image.identity, shape, _not_cut_yet)

    def _cut(self, image: SentFile) -> Callable[[], Pixels]:
        pixels = self._images.cut(image)
        return lambda: pixels


def _as_the_model_said(answer: str | None, boxes: BoxMap | None) -> str | None:
    """Move an earlier answer's boxes; one that the model drew where none can be stays as it is."""
    if answer is None or boxes is None:
        return answer
    try:
        return boxes.to_model(answer)
    except ValueError:
        return answer


def _not_cut_yet() -> Pixels:
    raise AssertionError("the picture was to be cut before its prompt is read")


@dataclass(frozen=True)
class Admitted:
    """A request that has a place, and was read."""

    served: Served
    asked: ChatRequest
    requests: Sequence[Request]
    """For the decoding loop, one for each answer."""

    boxes: BoxMap | None
    """What moves the boxes of the answers back; none: they can hold none."""

    arrived: float
    """Monotonic seconds."""


class Endpoint:
    """What all requests share.

    Args:
        served: models; the first is asked where a request names none.
        scheduler: of the same models.
        settings: of the endpoint.
    """

    def __init__(
        self, served: Sequence[Served], scheduler: Scheduler, settings: ServerSettings
    ) -> None:
        self.served = {one.name: one for one in served}
        self.scheduler = scheduler
        self.limits = settings.limits
        self.admission = Admission(settings.limits.places)
        self.measures = Telemetry()
        self._readers = anyio.CapacityLimiter(READERS)
        self._fetch = partial(fetch, limits=self.limits) if settings.allow_urls else None
        for name, about, read in (
            ("foveal_answers_running", "Answers being written.", lambda: scheduler.num_active),
            ("foveal_answers_waiting", "Answers not begun.", lambda: scheduler.num_waiting),
            (
                "foveal_places_taken",
                "Requests read, waiting or running.",
                lambda: self.admission.taken,
            ),
        ):
            Gauge(name, about, registry=self.measures.registry).set_function(read)

    async def admit(self, request: HttpRequest) -> Admitted:
        """Find a request a place, before its body is read, and read it.

        Raises:
            RequestError: it cannot be answered.
            ClientDisconnect: nobody waits for it any more.
        """
        try:
            return await self._admit(request, time.monotonic())
        except RequestError as refusal:
            self.measures.refused.labels(refusal.status).inc()
            raise

    async def _admit(self, request: HttpRequest, arrived: float) -> Admitted:
        try:
            self.admission.admit()
        except RequestError:
            await discard(request, self.limits)
            raise
        try:
            body = await read_body(request, self.limits)
            # No thread can be stopped: who has left until then is not read, all others to the end.
            async with self._readers:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await anyio.to_thread.run_sync(self._read, body, arrived)
        except BaseException:
            self.admission.release(time.monotonic() - arrived)
            raise

    def _read(self, body: Body, arrived: float) -> Admitted:
        """Turn a body into what the model takes; on a thread of its own, since it may be slow."""
        asked = parse_request(body.request)
        served = self.find(asked.model)
        limits, number = self.limits, len(body.files) + asked.num_files
        # Before the first image is fetched.
        if number > limits.images:
            reason = f"{number} pictures are more than {limits.images}; send fewer"
            raise RequestError(413, reason, "too_many_pictures")
        if asked.n > limits.choices:
            raise RequestError(400, f"n: at most {limits.choices} answers", "invalid_value", "n")
        read = partial(read_address, limits=limits, fetch=self._fetch)
        conversation = read_conversation(asked.messages, read, body.files)
        requests, boxes = served.requests(asked, conversation, limits)
        return Admitted(served, asked, requests, boxes, arrived)

    def find(self, name: str) -> Served:
        """Find a model; the first one where none is named.

        Raises:
            RequestError: there is none of that name.
        """
        if name and name not in self.served:
            known = ", ".join(self.served)
            raise RequestError(
                404, f"no model {name[:80]!r} here; there is {known}", "model_not_found", "model"
            )
        return self.served[name or next(iter(self.served))]


def find_before(place: str) -> str | None:
    """Find the model that a run or an adapter started from, here; nothing is fetched."""
    recipe = Path(place) / "recipe.yaml"
    if recipe.is_file():
        name = load_recipe(recipe).model
    elif (Path(place) / ADAPTER_CONFIG).is_file():
        name = read_base_name(Path(place))
    else:
        return None
    folders = [Path(name), Path(place) / "model"]  # a tiny model is made in the run's folder
    with suppress(OSError, ValueError):
        folders.append(Path(snapshot_download(name, local_files_only=True)))
    return next((str(folder) for folder in folders if _has_weights(folder)), None)


def _has_weights(folder: Path) -> bool:
    """Tell a whole model from what a plan, or a download broken off, left of one."""
    try:
        return bool(find_tensors(folder))
    except ModelError:
        return False


def served_name(place: str) -> str:
    """Name a model for clients: a hub name as it is, a folder by its last part."""
    folder = Path(place)
    return folder.resolve().name if folder.exists() else place


def open_models(
    place: str, name: str | None, with_before: bool, free_memory: FreeMemory
) -> tuple[list[Served], str]:
    """Load a run's or folder's model, and the one before it.

    Args:
        place: run folder, model folder, adapter folder or hub name.
        name: that clients ask for; none: from the place.
        with_before: also the model that it started from, if that is on this machine.
        free_memory: measures a device.

    Returns:
        The models, and a sentence on the one before.

    Raises:
        ModelError: one cannot be read.
    """
    name = name or served_name(place)
    tuned = Served(name, open_to_answer(place))
    before = find_before(place)
    if before is None:
        return [tuned], ""
    if not with_before:
        return [tuned], "the model before tuning is left out"
    model = tuned.loaded.model
    needed = sum(weight.nbytes for weight in model.parameters())
    free = free_memory(model.device)
    if needed > FREE_SHARE * free:
        gib = 2**30
        return [tuned], (
            f"no room for the model before tuning: it needs {needed / gib:.1f} GiB and "
            f"{free / gib:.1f} GiB are free"
        )
    untuned = Served(name + BEFORE, open_to_answer(before, as_of=place))
    return [tuned, untuned], "before and after tuning"


def decoding_limits(served: Served, limits: ServerLimits, free_bytes: float) -> DecodingLimits:
    """Say how much one model may hold, given the memory that is left for it."""
    config = served.loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = served.loaded.model.dtype.itemsize
    token_bytes = 2 * config.num_hidden_layers * heads * width * number_bytes
    headroom = FREE_SHARE * free_bytes / token_bytes
    return DecodingLimits(
        sequences=limits.running,
        tokens=max(1, min(int(headroom), MOST_CACHE_TOKENS)),
        kept_prefixes=limits.kept_images,
    )
