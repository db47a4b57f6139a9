"""What converting anybody's rows of pictures, questions and answers promises."""

import base64
from pathlib import Path
from typing import Any

import pytest
from layouts import (
    assert_sound,
    image_bytes,
    left_out,
    lines_of,
    put_image,
    put_json,
    put_lines,
    turns_of,
)

from foveal.config import Columns
from foveal.data.convert import Options, convert
from foveal.errors import DataError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")


def image(shade: int) -> dict[str, Any]:
    return {"bytes": image_bytes(shade), "path": None}


def put_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def convert_rows(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    put_rows(folder / "source" / "train.parquet", rows)
    done = convert(
        "table",
        folder / "source",
        folder / "out",
        options=Options(validation_fraction=0, **options),
    )
    assert_sound(done)
    return turns_of(folder / "out" / "table_train.jsonl")


@pytest.mark.parametrize("images", ["image", "images"])
@pytest.mark.parametrize("question", ["question", "query", "prompt", "text", "instruction"])
@pytest.mark.parametrize("answer", ["answer", "answers", "caption", "response", "label"])
def test_columns_of_usual_names_are_found(tmp_path, images, question, answer):
    shown = image(1) if images == "image" else [image(1)]
    (turn,) = convert_rows(tmp_path, [{images: shown, question: "Colour?", answer: "red"}])
    assert (turn["user"], turn["assistant"]) == ("Colour?", "red")
    assert (tmp_path / "out" / "images" / turn["images"][0]).read_bytes() == image_bytes(1)
    assert turn.get("answers", ["red"]) == ["red"]


def test_messages_beside_pictures_are_conversations(tmp_path):
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Colour?"},
        {"role": "assistant", "content": "red"},
    ]
    (turn,) = convert_rows(tmp_path, [{"images": [image(1)], "messages": said}])
    assert (turn["user"], turn["assistant"], len(turn["images"])) == ("Colour?", "red", 1)
    (line,) = lines_of(tmp_path / "out" / "table_train.jsonl")
    assert line["system"] == "Be brief."


def test_columns_of_other_names_are_read_when_they_are_named(tmp_path):
    columns = Columns(images="page", question="ask", answer="reply")
    row = {"page": image(1), "ask": "Colour?", "reply": "red", "hint": "not grey", "text": "x"}
    (turn,) = convert_rows(tmp_path, [row], columns=columns)
    assert (turn["user"], turn["assistant"]) == ("Colour?", "red")


def test_one_named_column_leaves_the_others_to_be_found(tmp_path):
    row = {"page": image(1), "question": "Colour?", "answer": "red"}
    (turn,) = convert_rows(tmp_path, [row], columns=Columns(images="page"))
    assert (turn["user"], turn["assistant"]) == ("Colour?", "red")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": 0, "ask": "?", "answer": "!"},
            r"no column of the question .* image, ask, answer",
        ),
        (
            {"image": 0, "question": "?", "reply": "!"},
            r"no column of the answer .*--columns answer=NAME, of a run data",
        ),
        ({"page": 0, "question": "?", "answer": "!"}, r"no column of the images .* page, question"),
        ({"image": 0, "prompt": "?", "text": "?", "answer": "!"}, "prompt and text could each be"),
        ({"image": 0, "question": "?", "query": "?", "answer": "!"}, "question and query could"),
        ({"image": 0, "question": "?", "answer": "A", "A": "red", "B": "blue"}, "`A` changes"),
        ({"image": 0, "question": "?", "answer": "red", "hint": "not grey"}, "`hint` changes"),
        ({"image": 0, "question": "?", "answer": "red", "videos": ["a.mp4"]}, "`videos` changes"),
        ({"image": 0, "question": "?", "label": 3}, "a label that is a number"),
        ({"image": 0, "question": "?", "answer": True}, "an answer that is true or false"),
        ({"image": 0, "question": {"en": None, "de": "?"}, "answer": "x"}, "a mapping of de"),
        ({"image": 0, "question": "?", "answer": None}, "no question with an answer"),
        ({"image": 0, "question": "?", "answers": []}, "no question with an answer"),
        ({"image": 0, "question": "?", "answer": ["a", "b"]}, "several answers where one is meant"),
        (
            {"image": 0, "question": "?", "answer": "c", "choices": ["a", "b"]},
            "none of its choices",
        ),
        ({"image": "none.png", "question": "?", "answer": "x"}, "no picture of that name"),
        ({"image": 7.5, "question": "?", "answer": "x"}, "neither bytes nor a path"),
        ({"image": 0, "texts": [{"user": None, "assistant": "x"}]}, "without a text"),
        ({"image": 0, "texts": ["what?"]}, "texts that hold no question"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_columns_that_are_there(tmp_path, row, message):
    row = {key: image(1) if value == 0 else value for key, value in row.items()}
    put_rows(tmp_path / "source" / "train.parquet", [row])
    with pytest.raises(DataError, match=message) as error:
        convert("table", tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_column_that_is_named_and_not_there_is_told(tmp_path):
    row = {"image": image(1), "question": "?", "answer": "!"}
    put_rows(tmp_path / "source" / "train.parquet", [row])
    options = Options(columns=Columns(answer="reply"))
    with pytest.raises(DataError, match="no column reply among image, question, answer"):
        convert("table", tmp_path / "source", tmp_path / "out", options=options)


def test_nobody_elses_question_gets_the_published_recipes_words(tmp_path):
    row = {"image": image(1), "query": {"en": "Total?", "de": None}, "answers": ["12", "12.00"]}
    (turn,) = convert_rows(tmp_path, [row])
    assert turn["user"] == "Total?"
    assert turn["assistant"] in turn["answers"] == ["12", "12.00"]


def test_the_number_of_a_choice_is_the_choice(tmp_path):
    row = {"image": image(1), "question": "?", "choices": ["red", "blue"], "answer": 1}
    (turn,) = convert_rows(tmp_path, [row])
    assert (turn["assistant"], turn["choices"]) == ("blue", ["red", "blue"])


def test_a_label_that_the_table_names_is_learnt_by_its_name(tmp_path):
    table = datasets.Dataset.from_dict(
        {"image": [image(1), image(2), image(3)], "question": ["?"] * 3, "label": [1, 0, -1]}
    ).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    (tmp_path / "source").mkdir()
    table.to_parquet(str(tmp_path / "source" / "train.parquet"))
    done = convert(
        "table", tmp_path / "source", tmp_path / "out", options=Options(validation_fraction=0)
    )
    turns = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert [turn["assistant"] for turn in turns] == ["dog", "cat"]
    assert done.left_out == {"no question with an answer in the row": 1}


def test_messages_that_a_table_holds_as_json_are_read(tmp_path):
    # datasets 5.2.0 writes what its inference finds of mixed types as texts of JSON (Json).
    said = [{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}]
    columns = {
        "images": datasets.List(datasets.Image()),
        "messages": datasets.List(datasets.Json()),
    }
    table = datasets.Dataset.from_list(
        [{"images": [image(1)], "messages": said}], features=datasets.Features(columns)
    )
    (tmp_path / "source").mkdir()
    table.to_parquet(str(tmp_path / "source" / "train.parquet"))
    convert("table", tmp_path / "source", tmp_path / "out", options=Options(validation_fraction=0))
    (turn,) = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert (turn["user"], turn["assistant"]) == ("Colour?", "Red.")


def test_a_file_is_read_by_its_very_name(tmp_path):
    row = {"image": image(1), "question": "Colour?"}
    put_rows(tmp_path / "set [2]" / "train [1].parquet", [row | {"answer": "red"}])
    put_rows(tmp_path / "set [2]" / "train 1.parquet", [row | {"answer": "blue"}])
    for source in (tmp_path / "set [2]" / "train [1].parquet", tmp_path / "set [2]"):
        out = tmp_path / f"out of {source.name}"
        convert("table", source, out, options=Options(validation_fraction=0))
        answers = [turn["assistant"] for turn in turns_of(out / "table_train.jsonl")]
        assert answers == (["red"] if source.suffix else ["blue", "red"])


def test_pictures_may_be_paths_or_text_in_base64(tmp_path):
    put_image(tmp_path / "source" / "shots" / "a.png", 5)
    noise = bytes(range(256)) * 8
    long = base64.b64encode(image_bytes(9) + noise).decode()  # behind its end nothing is read
    rows = [
        {"image": "shots/a.png", "question": "first?", "answer": "x"},
        {"image": long, "question": "second?", "answer": "y"},
    ]
    first, second = convert_rows(tmp_path, rows)
    assert first["images"] == ["train/shots/a.png"]
    stored = (tmp_path / "out" / "images" / second["images"][0]).read_bytes()
    assert stored == image_bytes(9) + noise


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", 'image,question,answer\na.png,"Which, then?",red\na.png,Sure?,\n'),
        ("rows.csv", "\ufeffimage;question;answer\r\na.png;Which, then?;red\r\na.png;Sure?;\r\n"),
        ("rows.tsv", "image\tquestion\tanswer\na.png\tWhich, then?\tred\na.png\tSure?\t\n"),
    ],
)
def test_text_tables_are_read_and_an_empty_cell_is_absent(tmp_path, name, text):
    put_image(tmp_path / "source" / "a.png")
    (tmp_path / "source" / name).write_text(text, encoding="utf-8")
    done = convert("table", tmp_path / "source", tmp_path / "out")
    (turn,) = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert (turn["user"], turn["assistant"]) == ("Which, then?", "red")
    assert done.left_out == {"no question with an answer in the row": 1}


@pytest.mark.parametrize(
    "text",
    [
        "Image,Question,Answer\na.png,Which?,red\n",
        'image, question, answer\na.png, "Which?", red\n',
        "\ufeffIMAGE ; Question ; ANSWER\r\na.png;Which?;red\r\n",
        "image,question,answer,\na.png,Which?,red,\n",  # a comma behind each line
    ],
)
def test_capitals_and_spaces_around_a_columns_name_are_no_part_of_it(tmp_path, text):
    put_image(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "data.csv").write_text(text, encoding="utf-8", newline="")
    convert("table", tmp_path / "source", tmp_path / "out")
    (turn,) = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert (turn["user"], turn["assistant"]) == ("Which?", "red")


def test_two_columns_of_one_name_are_not_chosen_from(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    text = "image,question,answer,answer\na.png,Which?,red,blue\n"
    (tmp_path / "source" / "data.csv").write_text(text)
    with pytest.raises(DataError, match=r"data\.csv: several columns are named answer; rename all"):
        convert("table", tmp_path / "source", tmp_path / "out")
    rows = [{"image": image(1), "question": "Which?", "answer": "red", "Answer": "blue"}]
    with pytest.raises(DataError, match=r"answer and Answer could each be the answer; say which"):
        convert_rows(tmp_path / "other", rows)


def test_alpacas_rows_join_instruction_and_input_and_keep_the_system_text(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    row = {"instruction": "Translate.", "input": "été", "output": "summer", "images": ["a.png"]}
    rows = [row | {"system": "Be brief."}, row | {"history": [["a", "b"]]}]
    put_json(tmp_path / "source" / "data.json", rows)
    done = convert("table", tmp_path / "source", tmp_path / "out")
    (line,) = lines_of(tmp_path / "out" / "table_train.jsonl")
    (turn,) = line["conversations"]
    assert (turn["user"], turn["assistant"]) == ("Translate.\nété", "summer")
    assert line["system"] == "Be brief."
    assert done.left_out == {"`history` changes what it means, and is not obeyed": 1}


def test_places_in_a_question_are_where_its_pictures_stand(tmp_path):
    shown = [image(1), image(2)]
    asked = ["<image><image>Which?", "Is <image> like <image>?", "Which?"]
    rows = [{"images": shown, "question": one, "answer": "x"} for one in asked]
    turns = convert_rows(tmp_path, rows)
    assert [turn["user"] for turn in turns] == [
        "Which?",
        "Is <|image_1|> like <|image_2|>?",
        "Which?",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "<image><image>?"}, "more <image> than pictures"),
        ({"images": [image(1), image(2)], "question": "<image>?"}, "fewer <image> than pictures"),
        ({"answer": "<image>"}, "an answer with a picture"),
        ({"question": "<video>?"}, "another tool's tag in a text"),
    ],
)
def test_places_that_do_not_fit_the_pictures_are_told(tmp_path, change, reason):
    row = {"images": [image(1)], "question": "?", "answer": "x"} | change
    put_rows(tmp_path / "source" / "train.parquet", [row])
    with pytest.raises(DataError, match=reason):
        convert("table", tmp_path / "source", tmp_path / "out")


def test_captions_get_the_question_that_is_given(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "metadata.csv").write_text("file_name,text\na.png,A cat.\n")
    options = Options(columns=Columns(answer="text"), question="What is it?")
    convert("table", tmp_path / "source", tmp_path / "out", options=options)
    (turn,) = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert (turn["user"], turn["assistant"]) == ("What is it?", "A cat.")


def test_files_are_sorted_into_splits_by_their_names_and_folders(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    row = {"image": "a.png", "question": "?", "answer": "x"}
    for name in ("my_train.jsonl", "test/rows.jsonl", "eval-1.jsonl"):
        put_lines(tmp_path / "source" / name, row)
    done = convert("table", tmp_path / "source", tmp_path / "out")
    assert {name: labels.total() for name, labels in done.counts.items()} == {
        "table_train": 1,
        "table_val": 1,
        "table_test": 1,
    }


def test_no_picture_of_a_table_is_on_both_sides(tmp_path):
    rows = [
        {"image": image(shade), "question": f"{place}?", "answer": "x"}
        for place, shade in enumerate([1, 1, 1, 2, 2, 3, 1, 4, 4, 5])
    ]
    put_rows(tmp_path / "source" / "train.parquet", rows)
    convert(
        "table", tmp_path / "source", tmp_path / "out", options=Options(validation_fraction=0.2)
    )
    sides = {
        name: {turn["user"] for turn in turns_of(tmp_path / "out" / f"table_{name}.jsonl")}
        for name in ("train", "val")
    }
    assert sides["val"] == {"0?", "1?", "2?", "6?"}  # the first two rows', and all of their picture
    assert sides["train"] == {"3?", "4?", "5?", "7?", "8?", "9?"}


def test_what_is_no_row_is_counted(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    put_lines(
        tmp_path / "source" / "rows.jsonl", {"image": "a.png", "question": "?", "answer": "x"}
    )
    put_json(tmp_path / "source" / "notes.json", {"made": "by hand"})
    done = convert("table", tmp_path / "source", tmp_path / "out")
    assert done.left_out == {"not a row of named columns": 1}
    assert list(left_out(tmp_path / "out")) == ["notes.json, row 1"]


def test_files_of_other_columns_are_not_read_as_one(tmp_path):
    put_rows(
        tmp_path / "source" / "a.parquet", [{"image": image(1), "question": "?", "answer": "x"}]
    )
    put_rows(tmp_path / "source" / "b.parquet", [{"image": image(1), "caption": "x"}])
    with pytest.raises(DataError, match=r"b\.parquet: has the columns caption, image, and .*a\.p"):
        convert("table", tmp_path / "source", tmp_path / "out")


# -- rows as peers' sets have them, rewritten ------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}]


def flat(**columns):
    return {"image": image(1), **columns}


@pytest.mark.parametrize(
    ("row", "options"),
    [
        pytest.param(flat(prompt="Colour?", completion="Red."), {}, id="trl, plain"),
        pytest.param(flat(prompt=MESSAGES[:1], completion=MESSAGES[1:]), {}, id="trl, halves"),
        pytest.param({"images": [image(1)], "messages": MESSAGES}, {}, id="trl, messages"),
        pytest.param(
            {"query": "<image>Colour?", "response": "Red.", "images": [image(1)], "history": None},
            {},
            id="ms-swift, query and response",
        ),
        pytest.param(
            {"instruction": "<image>Colour?", "input": "", "output": "Red.", "images": [image(1)]},
            {},
            id="llama-factory, alpaca",
        ),
        pytest.param({"img": image(1), "question": "Colour?", "answer": "Red."}, {}, id="img"),
        pytest.param({"jpg": image_bytes(1), "query": "Colour?", "label": "Red."}, {}, id="jpg"),
        pytest.param(flat(caption="Red."), {"question": "Colour?"}, id="captions"),
        pytest.param(flat(text="Red."), {"question": "Colour?"}, id="captions called text"),
        pytest.param(flat(text="Red."), {"columns": Columns(ask="Colour?")}, id="asked by columns"),
        pytest.param(
            {"photo": image(1), "frage": "Colour?", "antwort": "Red."},
            {"columns": Columns(question="frage", answer="antwort")},
            id="named",
        ),
    ],
)
def test_rows_of_peers_become_the_question_and_answer_that_they_are(tmp_path, row, options):
    (turn,) = convert_rows(tmp_path, [row], **options)
    assert (turn["user"], turn["assistant"]) == ("Colour?", "Red.")
    assert (tmp_path / "out" / "images" / turn["images"][0]).read_bytes() == image_bytes(1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            flat(caption="Red."),
            r"no column of the question .* among image, caption; name it.*ask=TEXT",
        ),
        ({"scan": image(1), "question": "?", "answer": "!"}, "no column of the images .* scan"),
        (flat(question="?", reply="!"), r"no column of the answer .* among image, question, reply"),
    ],
)
def test_a_set_of_no_example_says_what_is_missing_and_what_is_there(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        convert_rows(tmp_path, [row])


def test_a_column_that_asks_goes_before_what_every_row_is_asked(tmp_path):
    row = flat(question="Colour?", answer="Red.", text="of the scan")
    (turn,) = convert_rows(tmp_path, [row], question="What is it?")
    assert (turn["user"], turn["assistant"]) == ("Colour?", "Red.")


def label_task(image, *results, **more):
    result = [
        {"from_name": name, "to_name": "image", "type": kind, "value": value}
        for name, kind, value in results
    ]
    return {"id": 1, "data": {"image": image, **more}, "annotations": [{"result": result}]}


def test_label_studios_whole_export_becomes_questions_and_what_was_said(tmp_path):
    source = tmp_path / "source"
    put_image(source / "a.png", 1)
    put_image(source / "scans" / "b 1.png", 2)
    tasks = [
        label_task("/data/upload/3/0a1b2c3d-a.png", ("kind", "choices", {"choices": ["Cat"]})),
        label_task(
            "/data/local-files/?d=scans/b%201.png",
            ("reply", "textarea", {"text": ["Twelve."]}),
            question="How many?",
        ),
        label_task("/data/upload/3/0a1b2c3d-a.png"),
        label_task("a.png", ("box", "rectanglelabels", {"x": 1, "rectanglelabels": ["Cat"]})),
    ]
    put_json(source / "project.json", tasks)
    convert("table", source, tmp_path / "out", options=Options(question="What is it?"))
    turns = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert {(turn["user"], turn["assistant"]) for turn in turns} == {
        ("What is it?", "Cat"),
        ("How many?", "Twelve."),
    }
    assert {turn["images"][0] for turn in turns} == {"train/a.png", "train/scans/b 1.png"}
    assert set(left_out(tmp_path / "out").values()) == {
        "a task that nobody has labelled",
        "marks that are neither a choice nor a text (rectanglelabels)",
    }


def test_a_command_that_gave_nothing_leaves_its_folder_to_the_mended_one(tmp_path):
    with pytest.raises(
        DataError, match=r"where text is the answer, say what is asked: --columns ask="
    ):
        convert_rows(tmp_path, [flat(text="Red.")])
    (turn,) = convert_rows(tmp_path, [flat(text="Red.")], question="Colour?")
    assert turn["assistant"] == "Red."


def test_a_shard_without_rows_takes_nothing_from_the_others(tmp_path):
    from pyarrow import parquet

    row = {"image": image(1), "question": "?", "answer": "red"}
    whole = pyarrow.parquet.read_table(put_rows(tmp_path / "source" / "train-0.parquet", [row]))
    parquet.write_table(whole.slice(0, 0), tmp_path / "source" / "train-1.parquet")
    parquet.write_table(whole.slice(0, 0), tmp_path / "source" / "test-0.parquet")
    done = convert("table", tmp_path / "source", tmp_path / "out")
    assert done.counts == {"table_train": {"": 1}}
    with pytest.raises(DataError, match="no row in it"):
        convert("table", tmp_path / "source" / "test-0.parquet", tmp_path / "none")
