"""Images and questions -> answers as text: a tuned model for people who write plain Python."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from os.path import expanduser
from pathlib import Path
from typing import TypeAlias

from foveal.data.images.boxes import BoxMap
from foveal.data.images.clips import choose_frames
from foveal.data.images.frames import names_clip
from foveal.data.images.media import ImageInput, image_size, load_image, naming, open_image
from foveal.data.turn_processor import TurnProcessor, pixels_of, shape_of
from foveal.deliver.open import open_to_answer
from foveal.errors import DataError
from foveal.models.family import LoadedModel
from foveal.models.generation.generator import Generator, Limits, Request, check_fits, generate
from foveal.models.generation.prompt import (
    Pixels,
    Prompt,
    PromptImage,
    find_boxes,
    prompt_image,
    prompt_of_turns,
)

ImageInputs: TypeAlias = ImageInput | Sequence[ImageInput]


def load_answerer(model: str | Path, *, tokens_at_once: int = 65536) -> "Answerer":
    """Load a run's model, a folder that was exported, or a hub name, on the fastest device at hand.

    On a GPU it computes in the run's own number format, or in bf16 where no run tells of it.

    Args:
        model: run folder, model folder or hub name.
        tokens_at_once: of all questions that are worked on together, images counted in; lower
            it when memory runs out.

    Raises:
        ModelError: it cannot be read.
    """
    loaded = open_to_answer(str(model))
    at_a_pass = min(tokens_at_once, Limits().tokens_per_pass)
    return Answerer(loaded, Limits(tokens=tokens_at_once, tokens_per_pass=at_a_pass))


class Answerer:
    """A loaded model; `answer` asks it one question, `answer_many` a whole list."""

    def __init__(self, loaded: LoadedModel, limits: Limits | None = None) -> None:
        self._loaded = loaded
        self._limits = limits

    def answer(
        self, images: ImageInputs, question: str, *, system: str = "", max_new_tokens: int = 64
    ) -> str:
        """Answer one question.

        Args:
            images: one image or several: a path, a Pillow image, or the bytes of a file; an
                empty list for a question about none. Of a clip (`.mp4`, `.avi` and the like) the
                path; it is shown as in training, behind the images.
            question: as in the training data; `<|image_1|>` ... may say where images stand.
            system: what the model is told before, as in the training data.
            max_new_tokens: longest answer; a token is about three quarters of a word.

        Returns:
            The most likely answer.

        Raises:
            DataError: an image cannot be opened, or they are too much for the model.
        """
        asked = [(images, question)]
        return self.answer_many(asked, system=system, max_new_tokens=max_new_tokens)[0]

    def answer_many(
        self,
        questions: Iterable[tuple[ImageInputs, str]],
        *,
        system: str = "",
        max_new_tokens: int = 64,
    ) -> list[str]:
        """Answer many questions together, which is much faster than one by one.

        Questions about one image share the work on it, when they stand together.

        Args:
            questions: pairs, as `answer` takes them.
            system: what the model is told before each of them.
            max_new_tokens: longest answer.

        Returns:
            One answer a question, in their order.

        Raises:
            DataError: an image cannot be opened, or a question is too long for the model.
        """
        asked = [
            self._prompt(number, images, question, system, max_new_tokens)
            for number, (images, question) in enumerate(questions, start=1)
        ]
        requests = [Request(prompt, max_new_tokens) for prompt, _ in asked]
        made = generate(Generator(self._loaded, self._limits), requests)
        texts = [self._loaded.processor.decode_answer(ids) for ids in made]
        return [
            boxes.to_person(text) if boxes else text
            for text, (_, boxes) in zip(texts, asked, strict=True)
        ]

    def _prompt(
        self, number: int, images: ImageInputs, question: str, system: str, max_new_tokens: int
    ) -> tuple[Prompt, BoxMap | None]:
        """Write a question as a prompt, and find what moves the boxes of its answer back."""
        processor = self._loaded.processor
        inputs = [images] if isinstance(images, ImageInput) else list(images)
        inputs.sort(key=_is_clip)  # behind the images, as in training
        described = [
            one
            for place, given in enumerate(inputs, start=1)
            for one in describe_shown(given, processor, f"picture {place} of question {number}")
        ]
        shown = [image for image, _ in described]
        boxes = find_boxes(shown, [size for _, size in described], processor)
        try:
            question = boxes.to_model(question) if boxes else question
            prompt = prompt_of_turns([(question, shown, None)], processor, system)
            check_fits(self._loaded, prompt, max_new_tokens)
        except ValueError as error:  # tags that do not match the images, or too many tokens
            raise DataError(f"question {number}: {error}") from None
        return prompt, boxes


def _is_clip(given: ImageInput) -> bool:
    return isinstance(given, str | Path) and names_clip(given)


def describe_shown(
    given: ImageInput, processor: TurnProcessor, name: str
) -> Iterator[tuple[PromptImage, tuple[int, int]]]:
    """Describe an image, or what is shown of a clip, to the decoding loop, with width and height.

    A file is decoded when its turn comes.

    Raises:
        DataError: it cannot be opened; the error calls it `name`.
    """
    if isinstance(given, str) and "://" in given:
        raise DataError(f"{given}: a picture on the web; fetch it and give its file")
    if isinstance(given, str | Path):
        path = Path(expanduser(given)).resolve()
        shown = choose_frames(path, processor.frame_choice) if _is_clip(given) else [path]
        for one in shown:
            size = image_size(one)
            with naming(path):
                later = partial(open_file, one, processor)
                described = PromptImage(one, shape_of(processor, one, size), later)
            yield described, size
        return
    image = load_image(given, name)
    with naming(name):
        described = prompt_image(image, processor)
    yield described, image.size


def open_file(path: Path, processor: TurnProcessor) -> Pixels:
    """Open an image, or what is shown of a clip, as the tower takes it."""
    return pixels_of(processor, path, open_image(path))
