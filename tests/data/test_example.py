"""What reading and writing examples promises."""

import json
import random
from pathlib import Path

import pytest

from foveal.data.example import Example, Turn, parse_example, read_examples, write_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.errors import DataError

# The published recipe's own line, shortened to two of its eight frames.
RECIPE_LINE = (
    '{"id": "val-0000000300", "source": "ucf101", "conversations": [{"images": '
    '["val/BabyCrawling/v_BabyCrawling_g21_c04.0.jpg", '
    '"val/BabyCrawling/v_BabyCrawling_g21_c04.1.jpg"], "user": "Classify the video into one of '
    'the following classes: ApplyEyeMakeup, BabyCrawling.", "assistant": "BabyCrawling"}]}'
)


def test_the_recipes_line_is_read_and_written_with_the_same_content():
    example = parse_example(RECIPE_LINE)
    assert example.id == "val-0000000300"
    assert example.turns[0].assistant == "BabyCrawling"
    assert json.loads(example.to_json()) == json.loads(RECIPE_LINE)


def test_images_of_all_turns_come_in_order():
    turns = [
        {"images": ["a.png", "b.png"], "user": "?", "assistant": "!"},
        {"user": "?", "assistant": "!"},
        {"images": ["c.png"], "user": "?", "assistant": "!"},
    ]
    example = parse_example(json.dumps({"id": "1", "conversations": turns}))
    assert example.images == ("a.png", "b.png", "c.png")


def test_the_assistants_text_is_accepted_where_no_answers_are_listed():
    assert Turn(user="?", assistant="12").accepted == ("12",)
    assert Turn(user="?", assistant="12", answers=("12", "twelve")).accepted == ("12", "twelve")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('"text"', "object"),
        ('{"id": "1"}', 'missing key "conversations"'),
        ('{"conversations": [{"user": "?", "assistant": "!"}]}', 'missing key "id"'),
        ('{"id": "1", "conversations": []}', '"conversations": nothing in it; write at least one'),
        (
            '{"id": 1, "conversations": [{"user": "?", "assistant": "!"}]}',
            '"id": 1 is no text; wri',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": "!", "imagse": []}]}',
            'unknown key "conversations.0.imagse"; did you mean "images"',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": 5}]}',
            '"conversations.0.assistant": 5 is no text; write it in quotes',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": NaN}]}',
            '"conversations.0.assistant": NaN is no text',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": true}]}',
            '"conversations.0.assistant": true is no text',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": {}}]}',
            '"conversations.0.assistant": input should be a valid string',
        ),
        (
            '{"id": "1", "conversations": [{"images": "a.png", "user": "?", "assistant": "!"}]}',
            r'"conversations.0.images": a text is no list; write \["a.png"\]',
        ),
        (
            '{"id": "1", "Conversations": [{"user": "?", "assistant": "!"}]}',
            'unknown key "Conversations"; did you mean "conversations"',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": "!"}]}, {"id": "2"}',
            r"not JSON \(trailing characters .*\); write one example a line",
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": "é"}]}'.encode("latin-1"),
            r"not UTF-8 \(byte 59 of the line\); save the file as UTF-8",
        ),
        ('{"id": "1", "id": "2", "conversations": [{"user": "?", "assistant": "!"}]}', '"id" is'),
        (
            '{"id": "1", "conversations": [{"user": "?", "assistant": "a", "assistant" :"b"}]}',
            'key "assistant" is there twice; keep one of them',
        ),
        (
            '{"id":"","conversations":[{"user":"","assistant":"","rejected":"a","rejected":"b"}]}',
            'key "rejected" is there twice',
        ),
        (
            '{"id": "1", "conversations": [{"user": "?", "user": null, "assistant": "!"}]}',
            'key "user" is there twice',
        ),
    ],
)
def test_a_line_that_is_no_example_is_refused_in_one_sentence(line, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_example(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ['"user": twice', 'a quote": and \\": more', "\\", '{"user": 1, "user": 2}', '\\":', '"'],
)
def test_a_text_that_looks_like_keys_is_a_text(text):
    turns = [{"user": text, "assistant": text}, {"user": "?", "assistant": text}]
    for indent in (None, 0):
        written = json.dumps({"id": text, "conversations": turns}, indent=indent)
        assert parse_example(written).turns[0].user == text


def test_a_bad_line_is_named_by_its_number_and_empty_lines_count(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{RECIPE_LINE}\n\n{RECIPE_LINE[:-1]}\n")
    examples = read_examples(path)
    assert next(examples).id == "val-0000000300"
    with pytest.raises(DataError, match=r"data\.jsonl:3: not JSON"):
        next(examples)


def test_a_missing_file_is_a_mendable_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        list(read_examples(tmp_path / "none.jsonl"))


def test_what_is_written_is_read_back_and_other_alphabets_stay_readable(tmp_path):
    path = tmp_path / "data.jsonl"
    turn = Turn(
        images=("été/日本.png",), user='Line\n"two" 🚀', assistant="ja", choices=("ja", "nein")
    )
    examples = [Example(id=str(number), conversations=(turn,)) for number in range(3)]
    assert write_examples(path, examples) == 3
    assert list(read_examples(path)) == examples
    assert "日本" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_file_stays_as_it_was_when_writing_breaks_off(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("old")

    def broken():
        yield parse_example(RECIPE_LINE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(path, broken())
    assert path.read_text() == "old"


def test_image_paths_start_in_the_images_folder_then_beside_the_file(tmp_path):
    data = tmp_path / "data.jsonl"
    (tmp_path / "images").mkdir()
    for place in ("images/both.png", "both.png", "beside.png"):
        (tmp_path / place).touch()
    folder = ImageFolder(data)
    assert folder.find("both.png") == tmp_path / "images" / "both.png"
    assert folder.find("beside.png") == tmp_path / "beside.png"
    with pytest.raises(DataError, match=r"image none\.png is not in"):
        folder.find("none.png")


def test_a_folder_that_is_given_is_the_only_one(tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "beside.png").touch()
    with pytest.raises(DataError, match="is not in"):
        ImageFolder(tmp_path / "data.jsonl", tmp_path / "given").find("beside.png")


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "link.png"])
def test_a_path_or_link_that_leaves_the_folder_is_refused(tmp_path, path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    secret.touch()
    (folder / "link.png").symlink_to(secret)
    with pytest.raises(DataError, match="lies outside"):
        ImageFolder(tmp_path / "data.jsonl", folder).find(path)
    with pytest.raises(DataError, match="lies outside"):
        ImageFolder(tmp_path / "data.jsonl", folder).find(str(secret))


def fuzz_lines(rounds: int) -> tuple[int, int]:
    """Read lines with a few bytes changed; count those that are examples and those refused."""
    draw, whole = random.Random(11), RECIPE_LINE.encode()
    examples = refused = 0
    for _ in range(rounds):
        line = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            position = draw.randrange(len(line))
            if draw.random() < 0.5:
                line[position] = draw.randrange(256)
            else:
                line[position : position + draw.randrange(8)] = draw.choice(
                    [b"\\ud800", b"null", b"[", b"}", b'"', b"1e999", b"\xff", b"\\u0000", b"[[[["]
                )
        try:
            assert isinstance(parse_example(bytes(line)), Example)
            examples += 1
        except ValueError:
            refused += 1
    return examples, refused


def test_lines_with_changed_bytes_are_examples_or_refused():
    examples, refused = fuzz_lines(20_000)
    assert examples > 1_000
    assert refused > 1_000


def test_reading_is_lazy_so_a_large_file_opens_at_once(tmp_path):
    path: Path = tmp_path / "data.jsonl"
    path.write_text(f"{RECIPE_LINE}\nbroken\n")
    assert next(read_examples(path)).source == "ucf101"


def test_a_null_is_a_key_that_was_left_out():
    turn = {"images": None, "user": "?", "assistant": "!", "answers": None, "path": None}
    line = json.dumps({"id": "1", "system": None, "videos": None, "conversations": [turn]})
    assert parse_example(line).to_json() == (
        '{"id":"1","conversations":[{"user":"?","assistant":"!"}]}'
    )
    for bad, message in (
        (line.replace('"?"', "null"), 'missing key "conversations.0.user"'),
        (line.replace('"path": null', '"path": "a"'), 'unknown key "conversations.0.path"'),
        (line.replace('"images": null', '"images": [null]'), r'"conversations.0.images.0": .*str'),
    ):
        with pytest.raises(ValueError, match=message):
            parse_example(bad)


def test_a_system_text_is_a_key_of_the_line():
    line = '{"id":"1","system":"Be brief.","conversations":[{"user":"?","assistant":"!"}]}'
    assert parse_example(line).system == "Be brief."
    assert parse_example(line).to_json() == line
