"""A JSONL file of examples -> every problem that a run would meet in it, and a summary."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import accumulate, tee
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.data.checking.recognise import other_kind, refuse_other_files
from foveal.data.checking.texts import example_problems, example_warnings
from foveal.data.example import Example, numbered_lines, parse_example
from foveal.data.images.archives import size_bytes
from foveal.data.images.clips import choose_frames
from foveal.data.images.frames import FrameChoice, file_of
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_identity, image_size, open_image, shows_one_colour
from foveal.data.parallel import parallel
from foveal.errors import DataError
from foveal.storage import written_whole

if TYPE_CHECKING:
    from foveal.data.encode import CountTokens, TokenCounts

MOST_LABELS = 100
"""Most different answers that still count as labels where a file names no choices."""

EIGHT_FRAMES = FrameChoice()
"""As a recipe has it that says nothing of clips."""

MOST_WARNINGS = 1000
"""Most warnings that are kept; the others are counted."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one line."""

    line: int
    """From 1."""

    message: str


@dataclass
class Summary:
    """Counts over a file; complete once its problems have all been read."""

    lines: int = 0
    examples: int = 0
    turns: int = 0
    pairs: int = 0
    """Rejected answers: each makes a pair with the answer of its turn."""

    images: int = 0
    """Different images."""

    several_turns: int = 0
    """Examples of more than one turn."""

    bad_lines: int = 0
    problems: int = 0
    warnings: int = 0
    first_warnings: list[Problem] = field(default_factory=list)
    """What may be meant as it is; lines with no more than that count as good."""

    tokens: int = 0
    """Of all examples, where they are counted."""

    labels: Counter[str] = field(default_factory=Counter)
    """Last answer -> examples, where answers are of a closed set, or few and often the same."""

    open_answers: Counter[str] = field(default_factory=Counter)
    """Last answer -> examples, where it is of no closed set, as long as those are few."""

    def count(self, example: Example, tokens: int) -> None:
        """Count an example in."""
        last = example.turns[-1]
        self.examples += 1
        self.turns += len(example.turns)
        self.pairs += sum(len(turn.rejected) for turn in example.turns)
        self.several_turns += len(example.turns) > 1
        self.tokens += tokens
        if last.choices:
            self.labels[last.assistant] += 1
        # One more than are shown is enough to know that there are too many.
        elif last.assistant in self.open_answers or len(self.open_answers) <= MOST_LABELS:
            self.open_answers[last.assistant] += 1


@dataclass(frozen=True)
class FileCheck(Iterator[Problem]):
    """Problems of a file, in the order of its lines, and their summary."""

    summary: Summary
    problems: Iterator[Problem]

    def __next__(self) -> Problem:
        """Find the next problem."""
        return next(self.problems)


def check_file(
    data: Path,
    images: Path | None = None,
    *,
    decode: bool = True,
    workers: int = 1,
    other_splits: Sequence[Path] = (),
    count_tokens: "CountTokens | None" = None,
    max_tokens: int | None = None,
    frame_choice: FrameChoice = EIGHT_FRAMES,
    pairs: bool = False,
    fix: Path | None = None,
) -> FileCheck:
    """Check every line of a file.

    Args:
        data: the JSONL file.
        images: folder that image paths start from; default as in a run.
        decode: open images whole; else their headers alone, which does not see cut files.
        workers: processes; 1: none beside this one.
        other_splits: files whose images must not occur in this one, compared by content.
        count_tokens: what a model makes of an example; none: lengths are not checked.
        max_tokens: longest example, in tokens.
        frame_choice: which frames of clips are looked at.
        pairs: whether each example has to teach a preference.
        fix: file for the lines without a problem, written when all problems have been read.

    Returns:
        An iterator over the problems, in the order of the lines, with the `summary`.

    Raises:
        DataError: a file cannot be read.
    """
    for file in (data, *other_splits):
        if file.is_dir():
            raise DataError(f"{file}: a folder; give a JSONL file of examples")
        if not file.is_file():
            raise DataError(f"{file}: no such file; give a JSONL file of examples")
    for file in other_splits:
        refuse_other_files(file)
    if fix is not None and fix.resolve() == data.resolve():
        raise DataError(f"{fix}: is the file being checked; write the good lines elsewhere")
    rules = _Rules(data, images, decode, count_tokens, max_tokens, frame_choice, pairs)
    summary = Summary()
    return FileCheck(summary, _find_problems(rules, workers, other_splits, fix, summary))


@dataclass(frozen=True)
class _Rules:
    """What a file, and each of its lines, is checked by."""

    data: Path
    images: Path | None
    decode: bool
    count_tokens: "CountTokens | None"
    max_tokens: int | None
    frame_choice: FrameChoice
    pairs: bool

    @cached_property
    def folder(self) -> ImageFolder:
        return ImageFolder(self.data, self.images)


@dataclass(frozen=True)
class _Finding:
    """What came out of one line."""

    messages: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    example: Example | None = None
    images: tuple[tuple[str, Path], ...] = ()
    """As the line calls them, and as they are found."""

    tokens: int = 0


def _find_problems(
    rules: _Rules, workers: int, other_splits: Sequence[Path], fix: Path | None, summary: Summary
) -> Iterator[Problem]:
    if (kind := other_kind(rules.data)) is not None:
        summary.problems += 1
        yield Problem(1, kind)
        return
    elsewhere = _Elsewhere(other_splits, rules.images)
    numbered, handed_out = tee(numbered_lines(rules.data))
    lines = (line for _, line in handed_out)
    findings = parallel(partial(_check_line, rules), lines, workers, chunk=256)
    lines_of_ids, seen = dict[str, int](), set[Path]()
    with _good_lines(fix) as keep:
        for finding, (number, line) in zip(findings, numbered, strict=True):
            messages = list(finding.messages)
            if finding.example:
                summary.count(finding.example, finding.tokens)
                first = lines_of_ids.setdefault(finding.example.id, number)
                if first != number:
                    messages.append(f'id "{finding.example.id}" is that of line {first} too')
            for name, path in finding.images:
                seen.add(path)
                twin = elsewhere.find(path)
                if twin and f"image {name} is also in {twin}" not in messages:
                    messages.append(f"image {name} is also in {twin}")
            summary.lines += 1
            summary.images = len(seen)
            summary.warnings += len(finding.warnings)
            room = MOST_WARNINGS - len(summary.first_warnings)
            summary.first_warnings += [Problem(number, one) for one in finding.warnings[:room]]
            summary.problems += len(messages)
            summary.bad_lines += bool(messages)
            yield from (Problem(number, message) for message in messages)
            if not messages:
                keep(line)
    if not summary.lines:
        summary.problems += 1
        yield Problem(1, "no example in the file")
    if not summary.labels and len(summary.open_answers) <= min(MOST_LABELS, summary.examples / 2):
        summary.labels.update(summary.open_answers)


def _check_line(rules: _Rules, line: bytes) -> _Finding:
    try:
        example = parse_example(line)
    except ValueError as error:
        return _Finding((str(error),))
    messages = list(example_problems(example, rules.pairs))
    warnings = list(example_warnings(example))
    found: list[tuple[str, Path]] = []
    missing: list[str] = []
    for turn in example.turns:
        for name in (*turn.images, *turn.videos):
            try:
                path = rules.folder.find(name)
                paths = [path]
                if name in turn.videos:
                    paths = choose_frames(path, rules.frame_choice)
                plain = [_shows_one_colour(path, rules.decode) for path in paths]
            except DataError as error:
                missing.append(str(error))
            except (OSError, ValueError) as error:  # too long a name, or a NUL in it
                missing.append(f"image {name!r}: {error}")
            else:
                found += [(name, path) for path in paths]
                if all(plain):
                    warnings.append(f"image {name} shows one colour (an alpha channel is dropped)")
    messages += missing
    tokens = 0
    if rules.count_tokens and not missing:
        try:
            counts = rules.count_tokens(example, rules.folder)
        except (DataError, ValueError) as error:
            messages.append(str(error))
        else:
            tokens = sum(counts.turns)
            messages += _length_problems(counts, rules.max_tokens)
    told = tuple(dict.fromkeys(warnings))
    return _Finding(tuple(messages), told, example, tuple(found), tokens)


@lru_cache(maxsize=4096)  # questions of one image stand near each other
def _shows_one_colour(path: Path, decode: bool) -> bool:
    """Open an image, or its header alone, which tells no colours."""
    if decode:
        return shows_one_colour(open_image(path))
    image_size(path)
    return False


def _length_problems(counts: "TokenCounts", most: int | None) -> Iterator[str]:
    """Find what is wrong with how long an example is for a model that takes `most` tokens."""
    if most is not None:
        totals = enumerate(accumulate(counts.turns), start=1)
        if over := next(((turn, total) for turn, total in totals if total > most), None):
            yield f"turn {over[0]}: {over[1]} tokens up to here, more than {most}"
        for turn, tokens in counts.rejected:
            if tokens > most:
                where = f"{tokens} tokens up to a rejected answer's end"
                yield f"turn {turn}: {where}, more than {most}"
    if not counts.learnt:
        yield "no token of it would be learnt"


class _Elsewhere:
    """Images of other splits, told by content; only those of equal length are read."""

    def __init__(self, files: Sequence[Path], images: Path | None) -> None:
        self._by_length: dict[int, list[tuple[Path, Path]]] = {}
        seen: set[Path] = set()
        for file in files:
            # A folder that is given for one file is that of the others too.
            folders = ImageFolder(file, images), ImageFolder(file)
            for _, line in numbered_lines(file):
                for path in _images_of(line, *folders):
                    if path not in seen:
                        seen.add(path)
                        self._by_length.setdefault(size_bytes(path), []).append((path, file))
        self._identity = lru_cache(maxsize=None)(image_identity)

    def find(self, path: Path) -> str | None:
        """Say where else an image occurs, or the clip that it is a frame of."""
        if not self._by_length:
            return None
        path = file_of(path)
        for other, file in self._by_length.get(size_bytes(path), ()):
            if other == path or self._identity(other) == self._identity(path):
                return f"{file.name}, as {other.name}"
        return None


def _images_of(line: bytes, *folders: ImageFolder) -> Iterator[Path]:
    try:
        example = parse_example(line)
    except ValueError:
        return  # the other file is checked in its own turn
    for name in (*example.images, *(clip for turn in example.turns for clip in turn.videos)):
        for folder in folders:
            try:
                yield folder.find(name)
                break
            except (DataError, OSError, ValueError):
                continue


@contextmanager
def _good_lines(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Write the lines without a problem, whole or not at all; nowhere: they are let go."""
    if path is None:
        yield lambda line: None
        return
    with written_whole(path) as beside, beside.open("wb") as file:
        yield lambda line: file.write(line if line.endswith(b"\n") else line + b"\n")
