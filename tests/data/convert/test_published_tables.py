"""Tables as well-known data sets publish them become examples, with the command that docs name."""

import pytest
from layouts import assert_sound, left_out, put_image, put_json, turns_of

from foveal.config import Columns
from foveal.data.convert import Options, convert
from foveal.errors import DataError

VOTES = ["net"] * 9 + ["netting"]
PUBLISHED = {
    "A-OKVQA": (
        "train2017/000000299207.jpg",
        {
            "aokvqa_v1p0_train.json": [
                {
                    "split": "train",
                    "image_id": 299207,
                    "question_id": "22M",
                    "question": "What is awaited?",
                    "choices": ["train", "cab"],
                    "correct_choice_idx": 1,
                    "direct_answers": ["bus", "cab"],
                }
            ]
        },
        Columns(images="image_id", answer="correct_choice_idx"),
        ("What is awaited?", "cab"),
    ),
    "ChartQA": (
        "train/png/1.png",
        {"train/train_human.json": [{"imgname": "1.png", "query": "How many?", "label": "14"}]},
        Columns(),
        ("How many?", "14"),
    ),
    "COCO's captions": (
        "train2017/000000000009.jpg",
        {
            "annotations/captions_train2017.json": {
                "info": {},
                "licenses": [],
                "images": [{"id": 9, "file_name": "000000000009.jpg", "width": 12, "height": 8}],
                "annotations": [{"id": 1, "image_id": 9, "caption": "A plate."}],
            }
        },
        Columns(ask="What is shown?"),
        ("What is shown?", "A plate."),
    ),
    "GQA": (
        "images/2375429.jpg",
        {
            "train_balanced_questions.json": {
                "07333408": {"imageId": "2375429", "question": "Overcast?", "answer": "no"}
            }
        },
        Columns(images="imageId"),
        ("Overcast?", "no"),
    ),
    "TextVQA": (
        "train_images/0054c9.jpg",
        {
            "TextVQA_0.5.1_train.json": {
                "dataset_type": "train",
                "data": [
                    {
                        "question": "What brand?",
                        "image_id": "0054c9",
                        "answers": ["nokia"] * 10,
                        "question_id": 0,
                    }
                ],
            }
        },
        Columns(images="image_id"),
        ("What brand?", "nokia"),
    ),
    "VQAv2": (
        "train2014/COCO_train2014_000000458752.jpg",
        {
            "v2_OpenEnded_mscoco_train2014_questions.json": {
                "info": {},
                "questions": [{"image_id": 458752, "question": "Through?", "question_id": 4587520}],
            },
            "v2_mscoco_train2014_annotations.json": {
                "info": {},
                "annotations": [
                    {
                        "question_id": number,
                        "image_id": 458752,
                        "multiple_choice_answer": "net",
                        "answers": [
                            {"answer": one, "answer_confidence": "yes", "answer_id": place}
                            for place, one in enumerate(VOTES)
                        ],
                    }
                    for number in (4587520, 7)
                ],
            },
        },
        Columns(images="image_id", answer="multiple_choice_answer"),
        ("Through?", "net"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_of_a_known_data_set_are_read_as_a_table(tmp_path, name):
    image, files, columns, asked_and_answered = PUBLISHED[name]
    put_image(tmp_path / "source" / image)
    for file, tree in files.items():
        put_json(tmp_path / "source" / file, tree)
    done = convert("table", tmp_path / "source", tmp_path / "out", options=Options(columns=columns))
    assert_sound(done)
    (turn,) = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert turn["images"] == [f"train/{image}"]
    assert (turn["user"], turn["assistant"]) == asked_and_answered
    if name == "VQAv2":
        assert turn["answers"] == VOTES
        assert left_out(tmp_path / "out") == {
            "answer to 7": "an answer whose question is not there"
        }
    else:
        assert not done.left_out


def test_an_id_that_two_pictures_have_is_no_pictures(tmp_path):
    for name in ("train2014/COCO_train2014_000000000007.jpg", "train2017/000000000007.jpg"):
        put_image(tmp_path / "source" / name)
    rows = [{"image": number, "question": "?", "answer": "x"} for number in (7, 70)]
    put_json(tmp_path / "source" / "train.json", rows)
    with pytest.raises(DataError, match="2 x no picture of that name"):
        convert("table", tmp_path / "source", tmp_path / "out")


def test_rows_of_several_questions_give_the_same_in_json_as_in_parquet(tmp_path):
    put_image(tmp_path / "source" / "a.png")
    texts = [{"user": "Red?", "assistant": "Yes."}, {"user": "What is it?", "assistant": "A dog."}]
    put_json(tmp_path / "source" / "train.json", [{"images": ["a.png"], "texts": texts}])
    convert("table", tmp_path / "source", tmp_path / "out")
    turns = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert [turn.get("choices") for turn in turns] == [["Yes.", "No."], None]
