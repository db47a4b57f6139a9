"""Turns and images -> token ids and crops, exactly as the published processor makes them.

The classes carry the published names, since transformers finds a processor by the name that a
model folder states; `Phi3VisionProcessor` and `Phi3VisionImageProcessor` are the same classes.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from foveal.data.images.media import ImageInput, naming
from foveal.data.message import IMAGE_TAG, tag_order, write_tags
from foveal.data.turn_processor import fingerprint_words
from foveal.models.generation.characters import read_answer
from foveal.models.phi3_vision.chat import (
    Message,
    answer_spans,
    images_by_prompt,
    plain_messages,
)
from foveal.models.phi3_vision.image import (
    Phi3VImageProcessor,
    as_rgb,
    as_tensors,
    name_of,
    refuse_others,
)
from foveal.models.phi3_vision.read_images import CropReader

MOST_REMEMBERED_TEXTS = 20_000
"""Texts that are encoded once: labels, openings, and the questions asked of every image."""

WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Options that say where a processor's files are."""

OF_AUTO_CLASSES = ("_from_auto", "code_revision", "trust_remote_code", "use_fast")
"""What transformers' automatic classes hand on: there is one processor, without remote code."""


CALL_OPTIONS = ("padding", "padding_side", "num_crops", "add_special_tokens", "return_tensors")
"""Options of `Phi3VProcessor.__call__`, without effect on a prompt that is not encoded."""


class Phi3VProcessor(CropReader, ProcessorMixin):  # type: ignore[misc]
    """Prompts and images to the model's inputs, and turns to what is learnt from them."""

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
        **neutral: Any,
    ) -> None:
        refuse_others(neutral)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, num_crops: int | None = None, **options: Any
    ) -> Self:
        """Load from a model folder or hub name.

        The tokenizer is read as tokenizer.json says. `AutoTokenizer` does the same where a
        config.json of `phi3_v` stands beside it; without one, it rebuilds a Llama tokenizer from
        what tokenizer_config.json names, and that gives other ids.

        Args:
            name: folder or hub name.
            num_crops: most crops an image; none: as the files say.
            options: where to look, as `cached_file` of transformers takes it.

        Raises:
            TypeError: an option that we do not honour.
        """
        where = {key: options.pop(key) for key in WHERE if key in options}
        refuse_others(options, OF_AUTO_CLASSES)
        images = Phi3VImageProcessor.from_pretrained(name, **where)
        images.num_crops = num_crops or images.num_crops
        processor = cls(images, PreTrainedTokenizerFast.from_pretrained(name, **where))
        processor.turns = getattr(images, "turns", "recipe")  # as an export writes it beside crops
        return processor

    @cached_property
    def image_token_id(self) -> int:
        """Id that stands where an image is."""
        return int(self.tokenizer.convert_tokens_to_ids("<|image|>"))

    # -- prompts, as transformers' users write them ----------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | None = None,
        padding_side: str = "left",
        num_crops: int | None = None,
        padding: bool | str = True,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        answer_spans: Sequence[Sequence[tuple[int, int]]] | None = None,
        **neutral: Any,
    ) -> BatchFeature:
        """Encode one or many prompts with their images.

        Args:
            text: prompts; `<|image_1|>` ... `<|image_n|>` stand where the images go.
            images: of one prompt; of many, a list for each, or one list dealt out in order.
            padding_side: "left" suits generation.
            num_crops: most crops an image; none: as configured.
            padding: to the longest prompt; without it, prompts must be equally long.
            add_special_tokens: begin each stretch between images with `<s>`, as published.
            return_tensors: "pt", or "np".
            answer_spans: from which character to which answers stand in each prompt.
            neutral: options of other processors, as long as they ask for nothing.

        Returns:
            input_ids and attention_mask, (batch, length); with answer_spans assistant_masks,
            (batch, length); with images pixel_values and image_sizes, in the order in which the
            prompts show them.

        Raises:
            ValueError: tags and images do not match, or prompts of several lengths are not to be
                padded.
            TypeError: an option that we do not honour.
            DataError: an image cannot be read.
        """
        refuse_others(neutral)
        if padding not in (True, False, "longest", "do_not_pad"):
            raise ValueError(f"padding={padding!r}: prompts are padded to the longest, or not")
        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts:
            raise ValueError("give at least one prompt")
        rows, places, shown = [], [], []
        for prompt, own in zip(prompts, images_by_prompt(prompts, images), strict=True):
            counts = []
            for at in tag_order(prompt, len(own)):
                shown.append(as_rgb(own[at], at + 1))
                with naming(name_of(own[at], at + 1)):
                    counts.append(self.image_processor.num_tokens(*shown[-1].size, num_crops))
            row, begins = self._prompt_ids(prompt, counts, add_special_tokens)
            rows.append(row)
            places.append(begins)
        if padding in (False, "do_not_pad") and len({len(row) for row in rows}) > 1:
            raise ValueError("prompts of several lengths: let padding be True")
        inputs = {
            "input_ids": pad(rows, padding_side, int(self.tokenizer.pad_token_id)),
            "attention_mask": pad([[1] * len(row) for row in rows], padding_side, 0),
        }
        if answer_spans is not None:
            learnt = [
                [int(any(first <= place < end for first, end in spans)) for place in begins]
                for begins, spans in zip(places, answer_spans, strict=True)
            ]
            inputs["assistant_masks"] = pad(learnt, padding_side, 0)
        if shown:
            processed = self.image_processor(shown, num_crops=num_crops)
            inputs["pixel_values"] = processed["pixel_values"]
            inputs["image_sizes"] = processed["image_sizes"]
        return as_tensors(inputs, return_tensors)

    def _prompt_ids(
        self, prompt: str, counts: Sequence[int], special: bool
    ) -> tuple[list[int], list[int]]:
        """Encode a prompt, and say which character each id begins at; -1: it is no text."""
        ids: list[int] = []
        begins: list[int] = []
        start = 0
        for tag, count in zip([*IMAGE_TAG.finditer(prompt), None], [*counts, 0], strict=True):
            end = tag.start() if tag else len(prompt)
            chunk = self.tokenizer(
                prompt[start:end], add_special_tokens=special, return_offsets_mapping=True
            )
            ids += chunk["input_ids"] + [self.image_token_id] * count
            begins += [
                -1 if last == 0 else start + first for first, last in chunk["offset_mapping"]
            ]
            begins += [-1] * count
            start = tag.end() if tag else end
        return ids, begins

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Write messages with image and text parts as a prompt; `tokenize` encodes it too.

        Args:
            conversation: messages of one conversation, or of many.
            chat_template: instead of the tokenizer's own.
            add_generation_prompt: end with the tag that the answer follows.
            continue_final_message: end within the last message, for the model to go on with it.
            tokenize: return the model's inputs instead of text.
            return_dict: with `tokenize`, all inputs instead of the ids alone.
            return_assistant_tokens_mask: with `tokenize`, also `assistant_masks`, (batch, length),
                1 on the answers' tokens and on those that end them.
            processor_kwargs: handed on to `__call__`, like other options.
            options: of `__call__`.

        Raises:
            ValueError: messages that no turn of ours can say.
            TypeError: an option that we do not honour.
        """
        options = {**options, **(processor_kwargs or {})}
        if not tokenize:
            refuse_others(options, CALL_OPTIONS)
        if return_assistant_tokens_mask and (continue_final_message or not tokenize):
            raise ValueError("return_assistant_tokens_mask needs tokenize and whole messages")
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if several else [conversation]
        read = [plain_messages(messages) for messages in conversations]
        render = partial(
            self.tokenizer.apply_chat_template,
            chat_template=chat_template or self.chat_template,
            tokenize=False,
        )
        texts = [
            render(
                plain,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for plain, _ in read
        ]
        if not tokenize:
            return texts if several else texts[0]
        spans = None
        if return_assistant_tokens_mask:
            spans = [answer_spans(plain, render) for plain, _ in read]
        inputs = self(texts, [shown for _, shown in read], answer_spans=spans, **options)
        return inputs if return_dict else inputs["input_ids"]

    # -- turns, as training and evaluation take them ---------------------------------------------

    @cached_property
    def _known_texts(self) -> dict[str, tuple[int, ...]]:
        return {}

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        # A control token written by a user is encoded as text, never as control.
        plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        plain.encode_special_tokens = True
        plain.no_padding()
        plain.no_truncation()
        return plain

    def encode_plain(self, text: str) -> list[int]:
        """Encode text as text, whatever control tokens it spells out."""
        known = self._known_texts.get(text)
        if known is None:
            # The same ids as `encode`, without what it keeps of every token beside them.
            (made,) = self._plain_tokenizer.encode_batch_fast([text], add_special_tokens=False)
            known = tuple(made.ids)
            if len(self._known_texts) < MOST_REMEMBERED_TEXTS:
                self._known_texts[text] = known
        return list(known)

    def words_fingerprint(self) -> str:
        """Name all that the entries of a conversation hang on."""
        words = self.tokenizer.backend_tokenizer.to_str()
        return fingerprint_words(super().words_fingerprint(), words)

    @cached_property
    def _control(self) -> dict[str, int]:
        names = ("<s>", "<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>")
        return {name: int(self.tokenizer.convert_tokens_to_ids(name)) for name in names}

    def encode_prompt(self, user: str, num_images: int) -> list[int]:
        r"""Encode one turn's prompt; image k of the turn stands as the single number -(k + 1).

        `<|user|>\n<|image_1|>...<|image_n|>\n{user}<|end|>\n<|assistant|>\n`, each stretch
        between images encoded by itself behind a `<s>`. A user who writes the tags decides where
        the images stand.

        Raises:
            ValueError: the user's tags do not match the images.
        """
        user = write_tags(user, num_images)
        order = tag_order(user, num_images)
        start, turn_end = self._control["<s>"], self._control["<|end|>"]
        first, *others = IMAGE_TAG.split(user)[::2]
        ids = [start, self._control["<|user|>"], *self.encode_plain("\n" + first)]
        for number, chunk in zip(order, others, strict=True):
            ids += [-(number + 1), start]
            ids += self.encode_plain(chunk) if chunk else []
        return [*ids, turn_end, *self.encode_plain("\n"), self._control["<|assistant|>"]]

    def encode_system(self, text: str) -> list[int]:
        r"""Encode what stands before the first turn, in place of its `<s>`.

        `<|system|>\n{text}<|end|>\n`, as the published chat template writes it.
        """
        start, turn_end = self._control["<s>"], self._control["<|end|>"]
        system = int(self.tokenizer.convert_tokens_to_ids("<|system|>"))
        return [start, system, *self.encode_plain("\n" + text), turn_end, *self.encode_plain("\n")]

    def encode_answer(self, assistant: str) -> list[int]:
        r"""Encode one turn's answer: `{assistant}<|end|>\n<|endoftext|>`."""
        text = self.encode_plain(assistant) if assistant else []
        end_of_turn, end_of_text = self.end_ids
        return [*text, end_of_turn, *self.encode_plain("\n"), end_of_text]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of which the first one ends an answer."""
        return self._control["<|end|>"], self._control["<|endoftext|>"]

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Read the text of an answer up to its end, in whole characters."""
        return read_answer(self.tokenizer, ids, self.end_ids)


Phi3VisionImageProcessor = Phi3VImageProcessor
Phi3VisionProcessor = Phi3VProcessor


def pad(rows: Sequence[Sequence[int]], side: str, filler: int) -> Tensor:
    """Put rows of several lengths beside each other: (batch, length)."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side=side)
