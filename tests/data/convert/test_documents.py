"""What converting questions about documents promises."""

from typing import Any

from layouts import assert_sound, put_image, put_json, turns_of

from foveal.data.convert import Options, convert


def test_docvqa_keeps_all_answers_and_learns_one_drawn_by_the_seed(tmp_path):
    source = tmp_path / "source"
    put_image(source / "spdocvqa_images" / "x_1.png")
    answers = [f"answer {number}" for number in range(50)]
    data = [
        {
            "questionId": 7,
            "question": "What?",
            "image": "documents/x_1.png",
            "answers": answers,
            "data_split": "train",
        },
        {"questionId": 8, "question": "Where?", "image": "documents/none.png", "answers": ["a"]},
    ]
    hidden = [{"questionId": 9, "question": "Who?", "image": "documents/x_1.png"}]
    put_json(source / "train_v1.0.json", {"dataset_split": "train", "data": data})
    put_json(source / "test_v1.0.json", {"dataset_split": "test", "data": hidden})
    put_json(source / "ocr.json", {"status": "ok"})
    learnt = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"out{number}"
        converted = convert("docvqa", source, out, options=Options(seed=seed))
        (turn,) = turns_of(out / "docvqa_train.jsonl")
        assert turn["user"] == "What?\nAnswer briefly."
        assert turn["answers"] == answers
        assert turn["images"] == ["train/x_1.png"]
        learnt.append(turn["assistant"])
        assert converted.left_out == {
            "no page of that name": 1,
            "no answers (a hidden test set)": 1,
        }
    assert learnt[0] == learnt[1] != learnt[2]
    assert set(learnt) <= set(answers)


def box(number: int, label: str, text: str, *linked: int) -> dict[str, Any]:
    """Write one box of a FUNSD form; question 1 linked to answer 2 is [1, 2] in both."""
    linking = [[number, other] if label == "question" else [other, number] for other in linked]
    return {"id": number, "label": label, "text": text, "linking": linking}


def test_funsd_asks_for_fields_with_one_short_answer(tmp_path):
    form = [
        box(0, "question", "Date:", 1),
        box(1, "answer", "May 5", 0),
        box(2, "question", "Names", 3, 4),  # two answers
        box(3, "answer", "A", 2),
        box(4, "answer", "B", 2),
        box(5, "question", "Phone", 6),  # the key stands twice
        box(6, "answer", "1", 5),
        box(7, "question", "Phone :", 8),
        box(8, "answer", "2", 7),
        box(9, "question", "Story", 10),  # too long
        box(10, "answer", "w" * 81, 9),
        box(11, "question", "Empty", 12),
        box(12, "answer", " ", 11),
        box(13, "header", "FORM"),
    ]
    data = tmp_path / "source" / "dataset"
    for split, name in (("training", "1"), ("training", "2"), ("testing", "3"), ("testing", "4")):
        put_json(data / f"{split}_data" / "annotations" / f"{name}.json", {"form": form})
        if name != "4":
            put_image(data / f"{split}_data" / "images" / f"{name}.png", int(name))
    out = tmp_path / "out"
    converted = convert("funsd", tmp_path / "source", out)
    assert converted.counts == {f"funsd_{split}": {"": 1} for split in ("train", "val", "test")}
    (turn,) = turns_of(out / "funsd_test.jsonl")
    assert turn == {
        "images": ["test/3.png"],
        "user": 'What is the value of the field "Date"?\nAnswer briefly.',
        "assistant": "May 5",
        "answers": ["May 5"],
    }
    assert converted.left_out == {"no page of that name": 1}
    assert_sound(converted)


def test_a_form_that_breaks_off_is_left_out_whole_and_named(tmp_path):
    data = tmp_path / "source" / "testing_data"
    sound = [box(0, "question", "Date:", 1), box(1, "answer", "May 5", 0)]
    broken = [*sound, {"id": 2, "label": "question", "text": "Name"}]  # no `linking`
    for number, form in enumerate((sound, broken)):
        put_json(data / "annotations" / f"{number}.json", {"form": form})
        put_image(data / "images" / f"{number}.png", number)
    converted = convert("funsd", tmp_path / "source", tmp_path / "out")
    assert converted.counts == {"funsd_test": {"": 1}}
    assert converted.left_out == {"not a form of FUNSD": 1}


def test_sroie_asks_four_questions_a_receipt(tmp_path):
    data = tmp_path / "source" / "data"
    values = {"company": "INDAH", "date": "19/10/2018", "address": "27, JALAN", "total": "60.30"}
    put_json(data / "key" / "001.json", values)
    put_json(data / "key" / "002.json", {"company": "ONE", "total": " "})
    for name in ("001", "002"):
        put_image(data / "img" / f"{name}.jpg")
    out = tmp_path / "out"
    options = Options(validation_fraction=0)
    converted = convert("sroie", tmp_path / "source", out, options=options)
    answers = [turn["assistant"] for turn in turns_of(out / "sroie_train.jsonl")]
    assert answers == ["INDAH", "19/10/2018", "27, JALAN", "60.30", "ONE"]
    assert converted.left_out == {"no such field on the receipt": 3}
    assert_sound(converted)
