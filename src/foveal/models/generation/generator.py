"""Requests -> tokens: sequences join at the next token and leave when they end.

The one decoding loop of the house, for evaluation and for serving. Each step is one forward pass
over the new tokens of every sequence: whole prompts of those that join, one token of the others.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from foveal.models.family import LoadedModel, most_tokens
from foveal.models.generation.passes import (
    Growing,
    NotFiniteError,
    broken_nodes,
    logits_behind,
    not_finite,
    plant,
    run_pass,
)
from foveal.models.generation.prompt import Prompt, go_on
from foveal.models.generation.sampling import Drawer, Sampling, choose_tokens
from foveal.models.generation.tree import Node, Tree

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)

    stop_ids: frozenset[int] | None = None
    """Tokens that end it; none: those of the model."""

    logprobs: int | None = None
    """Likeliest tokens to name at each place, 0 to name the chosen alone; none: no numbers."""


@dataclass(frozen=True)
class Token:
    """The next token of one request."""

    handle: int
    id: int
    finish: Finish | None
    """Why it was the last one; none: more will come."""

    logprob: float | None = None
    """Of the model's own distribution, before temperature and the like; nats."""

    likeliest: tuple[tuple[int, float], ...] = ()
    """(id, logprob), the likeliest first."""


@dataclass(frozen=True)
class NoAnswer:
    """One request has ended without an answer; the others go on."""

    handle: int
    problem: NotFiniteError


@dataclass(frozen=True)
class Limits:
    """What is held and read at once."""

    sequences: int = 256
    tokens: int = 65536
    """Of all sequences, to come and shared ones once; a larger request runs alone."""

    tokens_per_pass: int = 16384
    """New tokens of one pass; a larger prompt is read alone."""

    kept_prefixes: int = 0
    """Prefixes that stay when their last answer has ended, for whoever asks about them next."""


@dataclass(eq=False)
class _Sequence:
    handle: int
    request: Request
    drawer: Drawer
    stop_ids: frozenset[int]
    made: list[int] = field(default_factory=list)
    place: Growing | None = None
    """Its own node, and what stands there of its prompt; none: it has none yet."""

    @property
    def tokens(self) -> int:
        return self.request.prompt.tokens + len(self.made)

    @property
    def node(self) -> Node:
        assert self.place is not None
        return self.place.node

    @property
    def to_come(self) -> int:
        return self.request.max_new_tokens - len(self.made)


class Generator:
    """Decodes many requests together; each gets the tokens that it would get alone.

    The model must be in evaluation mode, and nobody else may run it during a step.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits | None = None) -> None:
        self.loaded = loaded
        self.limits = limits or Limits()
        self.border = loaded.processor.long_context_tokens
        self.stop_ids = stop_ids_of(loaded)
        self._waiting: deque[_Sequence] = deque()
        self._active: dict[int, _Sequence] = {}
        self._trees: dict[Hashable, Tree] = {}
        self._next_handle = 0

    @property
    def num_active(self) -> int:
        """Requests that are being answered."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing left to do."""
        return not self._active and not self._waiting

    def add(self, request: Request) -> int:
        """Take a request; it joins as soon as there is room.

        Returns:
            Its handle, which its tokens bear.

        Raises:
            ValueError: an empty prompt, no token to make, or more than the model can see.
        """
        check_fits(self.loaded, request.prompt, request.max_new_tokens)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        drawer = Drawer(request.sampling, self.loaded.model.device)
        stop_ids = self.stop_ids if request.stop_ids is None else request.stop_ids
        self._waiting.append(_Sequence(handle, request, drawer, stop_ids))
        return handle

    def cancel(self, handle: int) -> None:
        """Give a request up and free its place; one that has ended is passed over."""
        sequence = self._active.pop(handle, None)
        if sequence:
            self._leave(sequence)
        self._waiting = deque(one for one in self._waiting if one.handle != handle)

    def step(self) -> list[Token | NoAnswer]:
        """Make the next token of every request that has its place.

        Returns:
            Those that end without an answer first.
        """
        asked = list(self._active.values())
        parts = [part for one in asked for part in self._next_parts(one)]
        for sequence, joining in self._admit(sum(len(part.stretch.ids) for part in parts)):
            self._active[sequence.handle] = sequence
            asked.append(sequence)
            parts += joining
        if not asked:
            return []
        hidden = run_pass(self.loaded, parts)
        last = {part.node: rows[-1] for part, rows in zip(parts, hidden, strict=True)}
        logits = logits_behind(self.loaded, torch.stack([last[one.node] for one in asked]))
        broken = broken_nodes(parts, hidden)
        for part in parts:
            if part.node in broken and not part.node.parent:
                self._trees.pop(part.tree.key, None)  # who asks about it next reads it anew
        finite = [
            sound and broken.isdisjoint(one.node.line())
            for one, sound in zip(asked, logits.isfinite().all(-1).tolist(), strict=True)
        ]
        failed = [self._give_up(one) for one, sound in zip(asked, finite, strict=True) if not sound]
        asked = [one for one, sound in zip(asked, finite, strict=True) if sound]
        if not asked:
            return [*failed]
        logits = logits[finite]
        words = logits.clone()
        stands_for_image = self.loaded.processor.image_token_id
        words[:, stands_for_image : stands_for_image + 1] = -math.inf  # is no answer
        chosen = choose_tokens(words, [one.drawer for one in asked])
        taken = [
            self._take(sequence, token, row)
            for sequence, token, row in zip(asked, chosen, logits, strict=True)
        ]
        return [*failed, *taken]

    def _give_up(self, sequence: _Sequence) -> NoAnswer:
        """End a request whose numbers are not finite."""
        prompt = sequence.request.prompt.whole(self.loaded.processor)
        whole = prompt.joined(go_on(prompt, sequence.made))
        is_long = self._is_long(sequence)
        del self._active[sequence.handle]
        self._leave(sequence)
        return NoAnswer(sequence.handle, not_finite(self.loaded, whole, is_long))

    def _admit(self, tokens: int) -> Iterator[tuple[_Sequence, list[Growing]]]:
        """Let those who wait join in their order, while there is room."""
        while self._waiting and len(self._active) < self.limits.sequences:
            sequence = self._waiting[0]
            new = self._unread_tokens(sequence)
            self._make_room(new + sequence.to_come, self._tree_key(sequence))
            held = self._held() + new + sequence.to_come
            if self._active and (
                held > self.limits.tokens or tokens + new > self.limits.tokens_per_pass
            ):
                return
            tokens += new
            yield self._waiting.popleft(), self._place(sequence)

    def _held(self) -> int:
        """Tokens that are held or promised."""
        trees = {one.place.tree for one in self._active.values() if one.place}
        held = sum(tree.slots for tree in trees | set(self._trees.values()))
        return held + sum(one.to_come for one in self._active.values())

    def _make_room(self, wanted: int = 0, needed: Hashable = None) -> None:
        """Drop prefixes that nobody uses, the oldest first, while more is held than may be."""
        idle = [one for one in self._trees.values() if not one.has_branches and one.key != needed]
        for number, tree in enumerate(idle, start=1):
            spare = len(idle) - number >= self.limits.kept_prefixes
            if spare or self._held() + wanted > self.limits.tokens:
                self._trees.pop(tree.key)

    def _tree_key(self, sequence: _Sequence) -> Hashable:
        key = sequence.request.prompt.prefix_key
        return None if key is None else (key, self._is_long(sequence))

    def _is_long(self, sequence: _Sequence) -> bool:
        return self.border is not None and sequence.tokens > self.border

    def _unread_tokens(self, sequence: _Sequence) -> int:
        """Tokens that joining would read: without the prefix, where that is already kept."""
        if self._tree_key(sequence) not in self._trees:
            return sequence.tokens
        return sequence.tokens - sequence.request.prompt.prefix_tokens

    def _place(self, sequence: _Sequence) -> list[Growing]:
        """Find a sequence its tree and a branch of its own; returns all that is to be read."""
        prompt, key = sequence.request.prompt, self._tree_key(sequence)
        start = prompt.prefix_entries if key is not None else 0
        prefix, behind = prompt.stretches(self.loaded.processor, start)
        read = behind.joined(go_on(behind, sequence.made))
        parts = plant(self._trees.pop(key, None), key, self._is_long(sequence), prefix, read)
        sequence.place = replace(parts[-1], stretch=behind)
        if key is not None:
            self._trees[key] = parts[-1].tree  # the last used stands last
        return parts

    def _next_parts(self, sequence: _Sequence) -> list[Growing]:
        """Read the token made last; or all anew, once, when the example has become a long one.

        What was read was rotated with the factors of short examples; alone, it would be rotated
        with those of long ones from here on.
        """
        place = sequence.place
        assert place is not None
        if place.tree.is_long != self._is_long(sequence):
            self._leave(sequence)
            return self._place(sequence)
        next_one = go_on(place.stretch, sequence.made[-1:], len(sequence.made) - 1)
        return [replace(place, stretch=next_one)]

    def _leave(self, sequence: _Sequence) -> None:
        """Give back what a sequence holds by itself."""
        place = sequence.place
        assert place is not None
        if place.tree.key is not None:
            place.tree.remove(place.node)
            self._make_room()
        sequence.place = None

    def _take(self, sequence: _Sequence, token: int, logits: Tensor) -> Token:
        """Write a token down; its sequence may end with it."""
        sequence.made.append(token)
        finish: Finish | None = "length" if sequence.to_come == 0 else None
        if token in sequence.stop_ids:
            finish = "stop"
        if finish:
            del self._active[sequence.handle]
            self._leave(sequence)
        wanted = sequence.request.logprobs
        if wanted is None:
            return Token(sequence.handle, token, finish)
        numbers = logits.log_softmax(-1)
        values, ids = numbers.topk(wanted)
        likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Token(sequence.handle, token, finish, float(numbers[token]), likeliest)


def generate(generator: Generator, requests: Iterable[Request]) -> list[list[int]]:
    """Answer some requests to their ends; returns the tokens of each, the ending one included.

    Raises:
        NotFiniteError: the model's numbers are not finite for one of them.
    """
    made: dict[int, list[int]] = {generator.add(request): [] for request in requests}
    while not generator.is_idle:
        for token in generator.step():
            if isinstance(token, NoAnswer):
                raise token.problem
            made[token.handle].append(token.id)
    return list(made.values())


def stop_ids_of(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end an answer: those of the processor and of the generation settings."""
    stated = loaded.model.generation_config.eos_token_id
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    return frozenset({*listed, *loaded.processor.end_ids})


def check_fits(loaded: LoadedModel, prompt: Prompt, new_tokens: int) -> None:
    """Refuse what cannot be answered.

    Raises:
        ValueError: an empty prompt, no token to make, or more than the model can see.
    """
    most = most_tokens(loaded.model.config)
    if not prompt.entries or new_tokens < 1:
        raise ValueError("give a prompt of one token or more, and one or more to make")
    if most is not None and prompt.tokens + new_tokens > most:
        raise ValueError(
            f"{prompt.tokens} tokens of the prompt and {new_tokens} new ones are more than the "
            f"{most} that the model sees; shorten the prompt or ask for fewer"
        )
