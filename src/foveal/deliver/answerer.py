"""Pictures and questions -> answers as text: a tuned model for people who write plain Python."""

import tempfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from foveal.data.dataset import build_dataset
from foveal.data.encode import Encoded
from foveal.data.media import decode_image, to_rgb
from foveal.deliver.place import find_model, find_num_crops
from foveal.errors import DataError
from foveal.evaluate.predict import answer_batch, batches, questions_of
from foveal.models.family import LoadedModel, load
from foveal.train.engine import pick_device

Picture: TypeAlias = str | Path | bytes | Image.Image
"""A file, what a file holds, or a Pillow image."""

Pictures: TypeAlias = Picture | Sequence[Picture]


def load_answerer(
    model: str | Path, *, max_new_tokens: int = 64, tokens_per_batch: int = 16384
) -> "Answerer":
    """Load a run's model, a model folder or a hub name, on the fastest device at hand.

    Args:
        model: run folder, model folder or hub name.
        max_new_tokens: longest answer, in tokens.
        tokens_per_batch: prompt tokens that are worked on together; lower it when memory runs out.

    Raises:
        ModelError: it cannot be read.
    """
    place = str(model)
    loaded = load(find_model(place), find_num_crops(place))
    loaded.model.to(pick_device()).eval()
    return Answerer(loaded, max_new_tokens, tokens_per_batch)


class Answerer:
    """A loaded model; `answer` asks it one question, `answer_many` a whole list."""

    def __init__(self, loaded: LoadedModel, max_new_tokens: int, tokens_per_batch: int) -> None:
        self._loaded = loaded
        self._max_new_tokens = max_new_tokens
        self._tokens_per_batch = tokens_per_batch

    def answer(self, images: Pictures, question: str) -> str:
        """Answer one question.

        Args:
            images: one picture or several: a path, a Pillow image, or the bytes of a file; an
                empty list for a question about none.
            question: as in the training data; `<|image_1|>` ... may say where pictures stand.

        Returns:
            The most likely answer.

        Raises:
            DataError: a picture cannot be opened.
        """
        return self.answer_many([(images, question)])[0]

    def answer_many(self, questions: Iterable[tuple[Pictures, str]]) -> list[str]:
        """Answer many questions, several at a time: much faster than one by one.

        Args:
            questions: pairs as `answer` takes them; a picture that comes again is opened once.

        Returns:
            One answer a question, in their order.

        Raises:
            DataError: a picture cannot be opened; nothing was answered.
        """
        with tempfile.TemporaryDirectory(prefix="foveal-") as folder:
            shelf = PictureShelf(Path(folder))
            encoded = [
                self._encode(number, images, question, shelf)
                for number, (images, question) in enumerate(questions, start=1)
            ]
            if not encoded:
                return []
            dataset = build_dataset(encoded, self._loaded.processor)
            asked = [one for place in range(len(encoded)) for one in questions_of(place, dataset)]
            answers = [""] * len(encoded)
            for batch in batches(asked, self._tokens_per_batch):
                texts = answer_batch(self._loaded, batch, dataset, self._max_new_tokens)
                for one, text in zip(batch, texts, strict=True):
                    answers[one.example] = text
        return answers

    def _encode(
        self, number: int, images: Pictures, question: str, shelf: "PictureShelf"
    ) -> Encoded:
        pictures = [images] if isinstance(images, Picture) else list(images)
        files = [
            shelf.file(picture, f"picture {place} of question {number}")
            for place, picture in enumerate(pictures, start=1)
        ]
        processor = self._loaded.processor
        try:
            prompt = processor.encode_prompt(question, len(files))
        except ValueError as error:  # tags in the text that do not match the pictures
            raise DataError(f"question {number}: {error}") from None
        answer = processor.encode_answer("")  # what is to be written stands behind the prompt
        learnt = [False] * len(prompt) + [True] * len(answer)
        return Encoded(
            id=str(number),
            entries=np.asarray(prompt + answer, np.int32),
            learnt=np.asarray(learnt, np.bool_),
            prompt_entries=len(prompt),
            images=tuple(files),
        )


class PictureShelf:
    """Gives every picture a file, since the walk from pictures to crops begins at files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[bytes | int, tuple[Picture, Path]] = {}

    def file(self, picture: Picture, name: str) -> Path:
        """Find or write the file of a picture; the same picture has the same file.

        Raises:
            DataError: it cannot be opened; it is called `name`.
        """
        if isinstance(picture, str | Path):
            path = Path(picture).resolve()
            if not path.is_file():
                raise DataError(f"{name}: there is no file {picture}")
            return path
        if not isinstance(picture, bytes | Image.Image):
            kind = type(picture).__name__
            raise DataError(f"{name}: give a path, a Pillow image or bytes, not {kind}")
        key = picture if isinstance(picture, bytes) else id(picture)
        if key not in self._known:
            path = self._folder / f"{len(self._known)}.bmp"  # holds RGB as it is, and is fast
            self._open(picture, name).save(path)
            self._known[key] = picture, path  # kept: an id may be given again to another
        return self._known[key][1]

    def _open(self, picture: bytes | Image.Image, name: str) -> Image.Image:
        if isinstance(picture, bytes):
            return decode_image(BytesIO(picture), name)
        try:
            return to_rgb(picture)
        except OSError as error:  # Pillow decodes at the first use
            raise DataError(f"{name}: broken picture ({error}); replace it") from error
