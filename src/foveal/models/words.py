"""Turns -> entries, through the chat template that a model's folder brings.

What a template does with an answer is found once, with a sentinel in its place: what stands before
it (`lead`), what ends it (`tail`), in which form it must come, whether spaces around it are kept. A
template that cannot be cut so is refused by name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from foveal.data.message import IMAGE_TAG, tag_order
from foveal.data.turn_processor import AskedTurn, EncodedTurns, fingerprint_words
from foveal.errors import ModelError

SENTINEL = "ZQXJKV"
"""Stands for an answer while a template is looked at; no template speaks of it."""

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around control tokens that a user typed; Unicode gives these two to nobody's text."""

ContentForm = Literal["parts", "text"]
Message = dict[str, Any]


@dataclass(frozen=True)
class ImageText:
    """How an image stands in a text before it is written out."""

    placeholder: str
    """What the template writes for it; one token."""

    lead: str = ""
    """Plain text that is put before the image's own run, and merges with what comes before."""

    tail: str = ""


@dataclass(frozen=True)
class AnswerFrame:
    """What a template makes of an answer."""

    form: ContentForm
    lead: str
    tail: str
    """Up to the token that ends the answer; empty: the template ends it with none."""

    trims: bool
    """Whether spaces around the answer are dropped."""


class ChatWords:
    """Encodes conversations as a model's own template and tokenizer would."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        template: str,
        image: ImageText,
        end_id: int | None,
        clip: str | None = None,
    ) -> None:
        """Look at a template.

        Args:
            name: of the model, for errors.
            tokenizer: of transformers.
            template: Jinja source.
            image: how images stand in the text.
            end_id: that ends an answer where the template ends it with nothing.
            clip: what the template writes for a clip, one token; none: the model takes none.

        Raises:
            ModelError: the template cannot be cut into a prompt and what is learnt.
        """
        self.name = name
        self.tokenizer = tokenizer
        self.template = template
        self.image = image
        self.image_id = int(tokenizer.convert_tokens_to_ids(image.placeholder))
        self.takes_clips = clip is not None and self._has_place(clip)
        self.clip_id = int(tokenizer.convert_tokens_to_ids(clip)) if self.takes_clips else None
        self.frame = self._look_at_answers()
        self.tail_ids = self._encode(self.frame.tail) if self.frame.tail else []
        if not self.tail_ids:
            if end_id is None:
                raise self._refusal("ends an answer with no token, and the model names none")
            self.tail_ids = [end_id]
        self.end_ids = frozenset({self.tail_ids[-1]})

    # -- the template ----------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], asks: bool, **variables: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        if "enable_thinking" in self.template:
            variables = {"enable_thinking": False, **variables}
        texts, _ = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.template,
            add_generation_prompt=asks,
            **self.tokenizer.special_tokens_map,
            **variables,
        )
        return str(texts[0])

    def _has_place(self, clip: str) -> bool:
        try:
            return self._render([self._user("Q", 1, 1)], True).count(clip) == 1
        except Exception:  # templates raise whatever they like at a form they do not know
            return False

    def _look_at_answers(self) -> AnswerFrame:
        question = self._user("Q", 1)
        today, tomorrow = (
            self._render([question], True, strftime_now=lambda _, day=day: day) for day in "12"
        )
        if today != tomorrow:
            raise self._refusal("writes the date into the prompt; set a system text of your own")
        prompt = self._render([question], True)
        if prompt.count(self.image.placeholder) != 1:
            raise self._refusal(
                f"writes {prompt.count(self.image.placeholder)} of {self.image.placeholder!r} "
                "for one image"
            )
        for form in ("parts", "text"):
            frame = self._frame(question, prompt, form)
            if frame:
                return frame
        raise self._refusal("leaves answers out, or rewrites the prompt before them")

    def _frame(self, question: Message, prompt: str, form: ContentForm) -> AnswerFrame | None:
        try:
            whole = self._render([question, _message("assistant", SENTINEL, form)], False)
            spaced = self._render([question, _message("assistant", f" {SENTINEL} ", form)], False)
        except Exception:  # templates raise whatever they like at a form they do not know
            return None
        if whole.count(SENTINEL) != 1 or not whole.startswith(prompt):
            return None
        lead, behind = whole.removeprefix(prompt).split(SENTINEL)
        if set(lead) & set("[{'\""):  # a list of parts, printed as it is
            return None
        end = self._controls.search(behind)
        return AnswerFrame(
            form=form,
            lead=lead,
            tail=behind[: end.end()] if end else "",
            trims=f"{lead} {SENTINEL} {behind}" not in spaced,
        )

    def _refusal(self, reason: str) -> ModelError:
        return ModelError(f"model {self.name}: its chat template {reason}")

    # -- text to ids -----------------------------------------------------------------------------

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        """Tokens that the template writes, or that are special: in a user's text they are text."""
        added = self.tokenizer.added_tokens_decoder.values()
        known = {one.content for one in added if one.special or one.content in self.template}
        ordered = sorted((one for one in known if not one.isspace()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)))

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer puts before a text that does not begin with it already.

        Raises:
            ModelError: it puts something behind a text, too.
        """
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        if whole[len(whole) - len(plain) :] != plain:
            raise ModelError(f"model {self.name}: its tokenizer puts a token behind every text")
        return list(whole[: len(whole) - len(plain)])

    def _marked(self, text: str) -> str:
        if OPEN in text or CLOSE in text:
            raise ValueError("a text holds U+FDD0 or U+FDD1, which are no characters; remove them")
        return self._controls.sub(lambda found: f"{OPEN}{found[0]}{CLOSE}", text)

    def _encode(self, text: str) -> list[int]:
        """Encode a text in which marked control tokens are text, and others are control."""
        ids: list[int] = []
        for number, chunk in enumerate(re.split(f"{OPEN}(.*?){CLOSE}", text)):
            if chunk:
                ids += self.tokenizer(
                    chunk, add_special_tokens=False, split_special_tokens=number % 2 == 1
                )["input_ids"]
        return ids

    def _entries(self, text: str, is_first: bool) -> list[int]:
        """Encode a stretch of a prompt; each of its images stands as `image_id`."""
        image = self.image
        text = text.replace(image.placeholder, f"{image.lead}{image.placeholder}{image.tail}")
        begun = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        return (self._beginning if is_first and not begun else []) + self._encode(text)

    # -- conversations ---------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Name all that an encoded conversation hangs on."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend else sorted(self.tokenizer.get_vocab().items())
        special = sorted(map(str, self.tokenizer.special_tokens_map.items()))
        return fingerprint_words(
            words, special, self.template, self.image, self.frame, self.tail_ids
        )

    def encode_answer(self, text: str) -> list[int]:
        """Encode an answer with what stands before it and what ends it."""
        return self._encode(self._written(text)) + self.tail_ids

    def _written(self, text: str) -> str:
        answer = text.strip() if self.frame.trims else text
        return self.frame.lead + self._marked(answer)

    def encode_turns(self, turns: Sequence[AskedTurn], system: str = "") -> EncodedTurns:
        """Encode a conversation; image k of it stands as the one entry -(k + 1).

        Raises:
            ValueError: the template writes earlier turns in another way once others follow.
        """
        messages = [_message("system", self._marked(system), self.frame.form)] if system else []
        entries: list[int] = []
        learnt: list[bool] = []
        done, images, first = "", 0, 0
        for turn in turns:
            order = list(range(turn.num_images))
            if IMAGE_TAG.search(turn.user):
                order = tag_order(turn.user, turn.num_images)
            messages.append(self._user(turn.user, turn.num_images, turn.num_clips))
            prompt = self._render(messages, True)
            if system and self._marked(system).strip() not in prompt:
                raise ValueError("this model's chat template has no place for a system text")
            if not prompt.startswith(done):
                raise ValueError(
                    "this model's chat template rewrites earlier turns; give each turn a line of "
                    "its own"
                )
            shown = iter(order)
            prompted = self._entries(prompt.removeprefix(done), is_first=not entries)
            stands = self.image_id, self.clip_id
            entries += [-1 - images - next(shown) if e in stands else e for e in prompted]
            learnt += [False] * len(prompted)
            images += turn.num_images
            first = first or len(entries)
            if turn.assistant is None:
                break
            answer = self.encode_answer(turn.assistant)
            entries += answer
            learnt += [True] * len(answer)
            done = prompt + self._written(turn.assistant) + self.frame.tail
            messages.append(_message("assistant", self._marked(turn.assistant), self.frame.form))
        return EncodedTurns(entries, learnt, first)

    def _user(self, text: str, num_images: int, num_clips: int = 0) -> Message:
        """Write what a user says; images stand before the text, or where its tags say.

        The last `num_clips` of its images are clips.
        """
        image: Message = {"type": "image"}
        if num_clips and IMAGE_TAG.search(text):
            raise ValueError("image tags beside clips; leave the tags out")
        first, *others = IMAGE_TAG.split(text)[::2]
        parts = [image] * (0 if others else num_images - num_clips)
        parts += [{"type": "video"}] * num_clips + self._text_part(first)
        for behind in others:
            parts += [image, *self._text_part(behind)]
        return {"role": "user", "content": parts}

    def _text_part(self, text: str) -> list[Message]:
        return [{"type": "text", "text": self._marked(text)}] if text else []


def _message(role: str, text: str, form: ContentForm) -> Message:
    return {"role": role, "content": text if form == "text" else [{"type": "text", "text": text}]}
