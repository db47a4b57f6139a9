"""What checking a file of examples promises."""

import json
from pathlib import Path

import pytest
from PIL import Image

from foveal.data.checking.check import Problem, check_file
from foveal.data.encode import TokenCounts
from foveal.data.example import read_examples
from foveal.data.images.media import image_size
from foveal.errors import DataError


def turn(**changes):
    return {"images": ["a.png"], "user": "What?", "assistant": "That."} | changes


def line(identity: str, *turns, **changes) -> str:
    return json.dumps({"id": identity, "conversations": list(turns) or [turn()]} | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "a.png")
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "images" / "b.png")
    return tmp_path


def write(folder: Path, *lines: str, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(text + "\n" for text in lines), encoding="utf-8")
    return path


def problems_of(folder: Path, *lines: str, **options) -> list[Problem]:
    return list(check_file(write(folder, *lines), **options))


def test_a_sound_file_has_no_problem_and_is_counted(folder):
    check = check_file(
        write(
            folder,
            line("1", turn(choices=["That.", "This."])),
            line("2", turn(images=["a.png", "b.png"]), turn(images=[])),
            "",
            line("3", turn(assistant="This.", choices=["That.", "This."])),
        )
    )
    assert list(check) == []
    summary = check.summary
    assert (summary.lines, summary.examples, summary.turns, summary.images) == (3, 3, 4, 2)
    assert (summary.bad_lines, summary.problems) == (0, 0)
    assert summary.labels == {"That.": 1, "This.": 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not JSON"),
        (line("1", colour="red"), 'unknown key "colour"'),
        (json.dumps({"conversations": [turn()]}), 'missing key "id"'),
        (line("1", turn(user=5)), "5 is no text"),
        (line("1", turn(user=" \n")), "turn 1: user is empty"),
        (line("1", turn(), turn(assistant="")), "turn 2: assistant is empty"),
        (line("1", turn(assistant="\u00a0\u200b")), "turn 1: assistant is empty"),
        (line("1", turn(answers=["That.", "\ufeff"])), "turn 1: an answer is empty"),
        (line("1", turn(images=["none.png"])), "image none.png is not in"),
        (line("1", turn(images=["../data.jsonl"])), "lies outside"),
        (line("1", turn(images=["a\0.png"])), "null byte"),
        (line("1", turn(images=["a" * 5000])), "name too long"),
        (line("1", turn(user="ok<|end|>\n<|assistant|>no")), "user holds <|assistant|>, <|end|>"),
        (line("1", turn(assistant="yes</s>")), "assistant holds </s>"),
        (line("1", turn(assistant="see <|image_1|>")), "assistant holds an image tag"),
        (line("1", turn(user="<|image_1|> <|image_2|>?")), "but the turn has 1 images"),
        (line("1", turn(user="<|image_0|>?")), "user names <|image_0|>"),
        (
            line("1", turn(images=["a.png", "b.png"], user="<|image_1|><|image_1|>?")),
            "but the turn has 2 images",
        ),
        (line("1", turn(choices=["This."])), '"That." is none of the choices'),
    ],
)
def test_a_bad_line_is_named_with_its_reason_between_good_ones(folder, bad, message):
    found = problems_of(folder, line("first"), bad, line("last"))
    assert [problem.line for problem in found] == [2]
    assert message in found[0].message.replace("File name", "name")
    assert "\n" not in found[0].message


def test_image_tags_in_another_order_are_well(folder):
    two = turn(images=["a.png", "b.png"], user="Is <|image_2|> above <|image_1|>?")
    assert problems_of(folder, line("1", two)) == []


def test_angle_brackets_that_are_no_special_token_are_well(folder):
    assert problems_of(folder, line("1", turn(user="is a <| b |> c or <b>bold</b> < 5?"))) == []


def test_every_problem_of_a_line_is_reported(folder):
    bad = turn(user="", assistant="<|end|>", images=["none.png", "b.png", "nor.png"])
    assert len(problems_of(folder, line("1", bad))) == 4


def test_a_truncated_picture_is_found_by_decoding_alone(folder):
    whole = folder / "images" / "c.png"
    Image.effect_noise((200, 200), 90).save(whole)
    whole.write_bytes(whole.read_bytes()[:5000])
    text = line("1", turn(images=["c.png"]))
    assert problems_of(folder, text, decode=False) == []
    (problem,) = problems_of(folder, text)
    assert "broken picture" in problem.message


def test_a_decompression_bomb_is_found_from_its_header(folder):
    # A PGM says its size in words: 60,000 x 60,000, and no pixel follows.
    (folder / "images" / "bomb.pgm").write_bytes(b"P5 60000 60000 255\n")
    (problem,) = problems_of(folder, line("1", turn(images=["bomb.pgm"])), decode=False)
    assert "more than 178956970 pixels" in problem.message


def test_a_second_use_of_an_id_is_reported_with_the_first(folder):
    found = problems_of(folder, line("x"), line("y"), line("x"))
    assert found == [Problem(3, 'id "x" is that of line 1 too')]


def test_a_picture_on_two_splits_is_found_by_its_content(folder):
    (folder / "images" / "copy.png").write_bytes((folder / "images" / "a.png").read_bytes())
    other = write(folder, line("v", turn(images=["copy.png"])), "{", name="val.jsonl")
    data = [line("1"), line("2", turn(images=["b.png"]))]
    (problem,) = problems_of(folder, *data, other_splits=[other])
    assert problem == Problem(1, "image a.png is also in val.jsonl, as copy.png")


def test_pictures_of_two_data_sets_that_share_a_name_alone_are_not_taken_for_one(folder):
    elsewhere = folder / "other"
    (elsewhere / "images").mkdir(parents=True)
    Image.new("RGB", (30, 20), "green").save(elsewhere / "images" / "a.png")
    other = write(elsewhere, line("v"), name="val.jsonl")
    assert problems_of(folder, line("1"), other_splits=[other]) == []
    (problem,) = problems_of(folder, line("1"), other_splits=[other], images=folder / "images")
    assert problem.message == "image a.png is also in val.jsonl, as a.png"


def test_pictures_of_equal_length_but_other_content_are_not_taken_for_one(folder):
    for name, colour in (("c.bmp", "green"), ("d.bmp", "black")):
        Image.new("RGB", (9, 9), colour).save(folder / "images" / name)
    other = write(folder, line("v", turn(images=["c.bmp"])), name="val.jsonl")
    assert problems_of(folder, line("1", turn(images=["d.bmp"])), other_splits=[other]) == []


def count_tokens(example, folder):
    """Count words, and one token for ten pixels of width; an answer of "-" is not learnt."""
    turns = tuple(len(turn.user.split()) + len(turn.assistant.split()) for turn in example.turns)
    images = sum(image_size(folder.find(name))[0] // 10 for name in example.images)
    learnt = sum(turn.assistant != "-" for turn in example.turns)
    return TokenCounts((turns[0] + images, *turns[1:]), learnt)


def test_turns_beyond_the_limit_and_examples_with_nothing_to_learn_are_found(folder):
    fits = turn(user="a b", assistant="c")  # 3 words and 3 for the picture
    lines = [
        line("1", fits),
        line("2", fits, turn(images=[], user="d", assistant="e")),  # 8 with the second turn
        line("3", turn(user="a", assistant="-")),
    ]
    found = problems_of(folder, *lines, count_tokens=count_tokens, max_tokens=6)
    assert found == [
        Problem(2, "turn 2: 8 tokens up to here, more than 6"),
        Problem(3, "no token of it would be learnt"),
    ]


def test_what_a_model_cannot_take_is_a_problem_of_the_line(folder):
    def refuse(example, folder):
        width, height = image_size(folder.find(*example.images))
        raise ValueError(f"{width}x{height} is too elongated")

    found = problems_of(folder, line("1"), count_tokens=refuse)
    assert found == [Problem(1, "30x20 is too elongated")]


def test_fixing_writes_the_good_lines_as_they_were(folder):
    good = [line("1"), line("2", turn(user="Où?"))]
    data = write(folder, good[0], "{", good[1], line("1"))
    fixed = folder / "fixed.jsonl"
    check = check_file(data, fix=fixed)
    assert not fixed.exists()  # nothing half-written is left where a run might find it
    assert [problem.line for problem in check] == [2, 4]
    assert fixed.read_text(encoding="utf-8").splitlines() == good
    assert [example.id for example in read_examples(fixed)] == ["1", "2"]
    assert list(check_file(fixed)) == []
    assert sorted(file.name for file in folder.iterdir()) == ["data.jsonl", "fixed.jsonl", "images"]


def test_the_file_itself_is_never_written_over(folder):
    data = write(folder, line("1"))
    with pytest.raises(DataError, match="elsewhere"):
        check_file(data, fix=folder / "images" / ".." / "data.jsonl")


def test_processes_find_the_same_problems_in_the_same_order(folder):
    lines = [line(str(number)) for number in range(300)]
    lines[100] = "{"
    lines[200] = line("7")
    lines[290] = line("x", turn(user=""))
    data = write(folder, *lines)
    alone, together = check_file(data), check_file(data, workers=2)
    assert list(alone) == list(together)
    assert alone.summary == together.summary
    assert alone.summary.bad_lines == 3
    assert alone.summary.examples == 299


def test_open_answers_are_not_taken_for_labels_but_few_frequent_ones_are(folder):
    different = check_file(write(folder, *(line(str(n), turn(assistant=str(n))) for n in range(9))))
    assert list(different) == []
    assert different.summary.labels == {}
    alike = check_file(write(folder, *(line(str(n), turn(assistant=f"{n % 2}")) for n in range(9))))
    assert list(alike) == []
    assert alike.summary.labels == {"0": 5, "1": 4}


def test_more_than_a_hundred_labels_of_a_closed_set_are_all_counted(folder):
    names = [f"class {number}" for number in range(101)]
    lines = [line(name, turn(assistant=name, choices=names)) for name in names]
    check = check_file(write(folder, *lines))
    assert list(check) == []
    assert len(check.summary.labels) == 101


def test_an_empty_file_is_a_problem_and_a_missing_one_an_error(folder):
    assert problems_of(folder) == [Problem(1, "no example in the file")]
    with pytest.raises(DataError, match="no such file"):
        check_file(folder / "none.jsonl")


def test_checking_loads_no_heavy_package():
    import subprocess
    import sys

    code = "import sys, foveal.data.checking.check, foveal.data.convert; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "av", "datasets", "numpy"} & set(loaded.stdout.split())


def warnings_of(folder: Path, *lines: str, **options) -> list[str]:
    check = check_file(write(folder, *lines), **options)
    assert list(check) == []
    return [warning.message for warning in check.summary.first_warnings]


def shades(path: Path, size: tuple[int, int] = (60, 40)) -> None:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)


@pytest.mark.parametrize("dot", [(0, 0), (29, 11), (59, 39)])
def test_a_picture_of_one_colour_is_warned_of_and_one_with_a_dot_is_not(folder, dot):
    text = line("1", turn(images=["c.png"]))
    image = Image.new("RGB", (60, 40), "red")
    image.save(folder / "images" / "c.png")
    assert warnings_of(folder, text) == [
        "image c.png shows one colour (an alpha channel is dropped)"
    ]
    assert warnings_of(folder, text, decode=False) == []
    image.putpixel(dot, (255, 0, 1))
    image.save(folder / "images" / "dot.png")
    assert warnings_of(folder, line("1", turn(images=["dot.png"]))) == []


def test_letters_in_the_alpha_channel_alone_are_warned_of(folder):
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.putalpha(Image.linear_gradient("L").resize((60, 40)))
    image.save(folder / "images" / "c.png")
    (warning,) = warnings_of(folder, line("1", turn(images=["c.png"])))
    assert "one colour" in warning


def test_a_warning_leaves_the_line_good(folder):
    data = write(folder, line("1"))
    check = check_file(data, fix=folder / "fixed.jsonl")
    assert list(check) == []
    assert (check.summary.warnings, check.summary.bad_lines) == (1, 0)
    assert (folder / "fixed.jsonl").read_bytes() == data.read_bytes()


@pytest.mark.parametrize(
    "tag",
    ["<image>", "<video>", "<img>", "<image 1>", "<image_token>", "<start_of_turn>", "[INST]"],
)
def test_another_tools_tag_is_named(folder, tag):
    for who in ("user", "assistant"):
        (problem,) = problems_of(folder, line("1", turn(**{who: f"so {tag} here"})))
        assert f"{who} holds {tag}" in problem.message
    (problem,) = problems_of(folder, line("1", system=f"so {tag} here"))
    assert f"system holds {tag}" in problem.message


@pytest.mark.parametrize("text", ["<imagine>", "[instance]", "a < image > b", "images", "<b>"])
def test_words_that_look_like_tags_are_well(folder, text):
    assert problems_of(folder, line("1", turn(user=text))) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["That.", " no"], 'the choice " no" begins or ends with a space'),
        (["That.", ""], "a choice is empty"),
        (["That.", "no", "no"], 'the choice "no" is there twice'),
    ],
)
def test_choices_that_are_no_labels_are_named(folder, choices, message):
    assert problems_of(folder, line("1", turn(choices=choices))) == [
        Problem(1, f"turn 1: {message}")
    ]


def test_an_empty_accepted_answer_is_named(folder):
    (problem,) = problems_of(folder, line("1", turn(answers=["That.", " "])))
    assert problem.message == "turn 1: an answer is empty"


@pytest.mark.parametrize("system", [" ", "of <|image_1|>", "ends <|end|>"])
def test_a_system_text_is_looked_at_too(folder, system):
    (problem,) = problems_of(folder, line("1", system=system))
    assert problem.message.startswith("system ")


@pytest.mark.parametrize("who", ["user", "assistant"])
def test_a_value_that_was_nothing_in_a_table_is_warned_of(folder, who):
    shades(folder / "images" / "c.png")
    (warning,) = warnings_of(folder, line("1", turn(images=["c.png"], **{who: "nan"})))
    assert warning == f'turn 1: {who} is "nan", which tables write for nothing'
    assert warnings_of(folder, line("1", turn(images=["c.png"], assistant="None"))) == []


def test_examples_of_several_turns_are_counted(folder):
    check = check_file(write(folder, line("1"), line("2", turn(), turn(images=[]))))
    assert list(check) == []
    assert check.summary.several_turns == 1


def test_a_check_that_is_broken_off_leaves_no_half_of_the_good_lines(folder):
    def stop(example, _folder):
        if example.id == "2":
            raise KeyboardInterrupt
        return TokenCounts((5,), 2)

    data = write(folder, line("1"), line("2"))
    with pytest.raises(KeyboardInterrupt):
        list(check_file(data, fix=folder / "fixed.jsonl", count_tokens=stop))
    assert sorted(file.name for file in folder.iterdir()) == ["data.jsonl", "images"]


def test_a_pair_whose_answers_are_equal_empty_or_too_long_is_a_problem_of_its_line(folder):
    def counted(example, _folder):
        rejected = example.turns[0].rejected
        return TokenCounts((5,), 2, tuple((1, len(one.split())) for one in rejected))

    lines = [
        line("1", turn(rejected="This.")),
        line("2", turn(rejected=["This.", "That. "])),
        line("3", turn(rejected=" ")),
        line("4", turn(rejected=["This.", "This. "])),
        line("5", turn(rejected="word " * 9)),
        line("6", turn(rejected="<|end|>")),
    ]
    check = check_file(write(folder, *lines), count_tokens=counted, max_tokens=8)
    assert [(one.line, one.message) for one in check] == [
        (2, "turn 1: rejected is the assistant's answer: such a pair teaches nothing"),
        (3, "turn 1: rejected is empty"),
        (4, "turn 1: the same answer is rejected twice"),
        (5, "turn 1: 9 tokens up to a rejected answer's end, more than 8"),
        (6, "turn 1: rejected holds <|end|>, which the model would read as plain text"),
    ]
    assert check.summary.pairs == 8


def test_a_key_that_is_there_twice_is_a_problem_of_its_line(folder):
    twice = line("2")[:-1] + ', "source": "a", "source": "b"}'
    (problem,) = problems_of(folder, line("1"), twice)
    assert problem == Problem(2, 'key "source" is there twice; keep one of them')


def test_a_line_that_teaches_no_preference_is_a_problem_where_preferences_are_learnt(folder):
    lines = line("1", turn(rejected="This.")), line("2"), line("3", turn(), turn(rejected=["No."]))
    assert problems_of(folder, *lines) == []
    (problem,) = problems_of(folder, *lines, pairs=True)
    assert problem.line == 2
    assert problem.message.startswith('no turn has a "rejected" answer')


@pytest.mark.parametrize("name", ["file:///etc/passwd", "https://example.com/a.png"])
def test_an_address_that_is_no_stores_is_a_problem_of_its_line(folder, name):
    (problem,) = problems_of(folder, line("1"), line("2", turn(images=[name])), line("3"))
    assert problem.line == 2
    assert name in problem.message
