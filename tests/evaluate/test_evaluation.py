"""An evaluation answers each question exactly once, however many share it or how often it dies."""

import json
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import SIZES, make_image, make_model, turn, write_data

from foveal.config import EvaluateSettings
from foveal.data.dataset import read_dataset
from foveal.errors import ConfigError, DataError
from foveal.evaluate import evaluation
from foveal.evaluate.evaluation import evaluate_into, evaluate_model, score_made_elsewhere
from foveal.evaluate.kept import is_of_run
from foveal.evaluate.prediction import read_predictions
from foveal.models.phi3_vision.tiny import write_tiny

QUIET = Console(quiet=True)
GENERATE = EvaluateSettings(answer="generate", max_new_tokens=4)


class Alone:
    """One process by itself."""

    rank, world_size, is_main, precision = 0, 1, True, "float32"

    def gather(self, items):
        return items

    def wait(self):
        pass

    def autocast(self):
        return nullcontext()


class Crowd(Alone):
    """One of several, as threads of this process."""

    def __init__(self, rank, world_size, barrier, boxes):
        self.rank, self.world_size, self.is_main = rank, world_size, rank == 0
        self.barrier, self.boxes = barrier, boxes

    def gather(self, items):
        self.boxes[self.rank] = list(items)
        self.barrier.wait()
        everything = [one for box in self.boxes for one in box]
        self.barrier.wait()
        return everything

    def wait(self):
        self.barrier.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "model", 0, SIZES)
    for name, size in (("a", (60, 40)), ("b", (90, 40)), ("c", (40, 40))):
        make_image(folder / "images" / f"{name}.png", ord(name), size)
    yes_no = {"choices": ["yes", "no"]}
    conversations = [
        [turn("What is it?", "A thing.", ["a.png"])],
        [turn("Is it red?", "no", ["a.png"], **yes_no)],
        [turn("What is in it?", "Much.", ["b.png"]), turn("Is that sure?", "yes", **yes_no)],
        [turn("Are they alike?", "no", ["a.png", "b.png"], **yes_no)],
        [turn("No picture?", "None.")],
        [turn("What is it?", "A", ["c.png"]), turn("And now?", "Two", ["a.png"])],
        [turn("Where is it?", "Here.", ["a.png"])],
    ]
    write_data(folder / "data.jsonl", conversations)
    return folder


@pytest.fixture(scope="module")
def loaded(place):
    return make_model(place / "model")


@pytest.fixture(scope="module")
def data(place, loaded):
    return read_dataset(place / "data.jsonl", loaded.processor)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, loaded, data):
    """Evaluated without interruption: the truth that the other ways are held against."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate_into(folder, loaded, *data, GENERATE, Alone(), QUIET)
    return folder


def answers(folder):
    return [(one.key, one.prediction) for one in read_predictions(folder / "predictions.jsonl")]


def one_by_one(loaded, examples, dataset, new_tokens):
    """Answer every turn by transformers' own `generate`, each by itself."""
    found = []
    processor = loaded.processor
    for number, example in enumerate(examples):
        encoded, shown = dataset.examples[number], dataset.image_numbers(number)
        expanded = encoded.expand([dataset.images[one].shape for one in shown])
        starts = [
            at for at in range(len(expanded.ids)) if expanded.learnt[at] > expanded.learnt[at - 1]
        ]
        for place, start in enumerate(starts):
            inputs = {"input_ids": torch.from_numpy(expanded.ids[:start])[None]}
            images = [path for one in example.turns[: place + 1] for path in one.images]
            if images:
                paths = [dataset.images[one].path for one in shown[: len(images)]]
                made = processor.image_processor(paths)
                inputs |= {name: made[name] for name in ("pixel_values", "image_sizes")}
            made = loaded.model.eval().generate(
                **inputs,
                attention_mask=torch.ones_like(inputs["input_ids"]),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=list(processor.end_ids),
                pad_token_id=0,
            )
            text = processor.decode_answer(made[0, start:].tolist())
            found.append(((example.id, place), text))
    return found


def test_answers_are_those_of_generate_one_by_one_in_the_order_of_the_file(whole, loaded, data):
    assert answers(whole) == one_by_one(loaded, *data, 4)


def test_a_model_is_left_in_the_mode_it_was_in(tmp_path, loaded, data):
    loaded.model.train()
    evaluate_into(tmp_path, loaded, *data, GENERATE, Alone(), QUIET)
    assert loaded.model.training
    loaded.model.eval()


@pytest.mark.parametrize("tokens", [60, 400])
def test_the_size_of_a_batch_changes_no_answer(tmp_path, whole, loaded, data, tokens):
    settings = GENERATE.model_copy(update={"tokens_per_batch": tokens})
    evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET)
    assert (tmp_path / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_answer_each_question_once_and_write_what_one_writes(
    tmp_path, place, data, whole, monkeypatch, world_size
):
    barrier, boxes = threading.Barrier(world_size), [[] for _ in range(world_size)]
    crowd = [Crowd(rank, world_size, barrier, boxes) for rank in range(world_size)]
    models = [make_model(place / "model") for _ in crowd]
    written = []
    usual = evaluation.append_predictions

    def noting(path, some):
        written.extend((path.name, one.key) for one in some)
        usual(path, some)

    monkeypatch.setattr(evaluation, "append_predictions", noting)
    found = {}

    def work(one):
        found[one.rank] = evaluate_into(tmp_path, models[one.rank], *data, GENERATE, one, QUIET)

    threads = [threading.Thread(target=work, args=(one,)) for one in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for _, key in written) == sorted(key for key, _ in answers(whole))
    assert len({name for name, _ in written}) == world_size  # each had something to do
    assert (tmp_path / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()
    assert not list(tmp_path.glob("predictions.rank-*"))
    assert all(scores == found[0] for scores in found.values())


class KilledError(Exception):
    """Stands for a kill."""


def kill_after(monkeypatch, count):
    """Let an evaluation die when it has written down some answers; notes what it wrote."""
    written = []
    usual = evaluation.append_predictions

    def dying(path, some):
        usual(path, some)
        written.extend(some)
        if len(written) >= count:
            raise KilledError

    monkeypatch.setattr(evaluation, "append_predictions", dying)
    return written


def test_killed_it_goes_on_and_makes_no_answer_twice(tmp_path, whole, loaded, data, monkeypatch):
    settings = GENERATE.model_copy(update={"tokens_per_batch": 100})
    written = kill_after(monkeypatch, 3)
    with pytest.raises(KilledError):
        evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET)
    with (tmp_path / "predictions.jsonl").open("ab") as file:
        file.write(b'{"id": "example-')  # and the last line is torn
    (tmp_path / "predictions.rank-5.jsonl").write_text(  # a process that is gone had one more
        (whole / "predictions.jsonl").read_text().splitlines()[-1] + "\n"
    )
    monkeypatch.undo()
    later = kill_after(monkeypatch, 1000)
    evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET)
    assert len(written) >= 3
    assert len(written) + 1 + len(later) == len(answers(whole))
    assert (tmp_path / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()


@pytest.mark.parametrize("change", ["settings", "model"])
def test_answers_of_another_model_or_other_settings_are_not_gone_on_from(
    tmp_path, loaded, data, monkeypatch, change
):
    kill_after(monkeypatch, 1)
    with pytest.raises(KilledError):
        evaluate_into(tmp_path, loaded, *data, GENERATE, Alone(), QUIET, model="one")
    monkeypatch.undo()
    later = kill_after(monkeypatch, 1000)
    settings = GENERATE.model_copy(update={"max_new_tokens": 3} if change == "settings" else {})
    name = "other" if change == "model" else "one"
    evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET, model=name)
    assert len(later) == 9


def test_what_is_evaluated_already_is_read(tmp_path, whole, loaded, data, monkeypatch):
    monkeypatch.setattr(evaluation, "predict", None)
    again = evaluate_into(whole, loaded, *data, GENERATE, Alone(), QUIET)
    assert again["accuracy"].count == 9


def test_closed_answers_are_the_likeliest_labels_and_open_ones_are_written(
    tmp_path, whole, loaded, data
):
    settings = EvaluateSettings(max_new_tokens=4)
    scores = evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET)
    found = {one.key: one for one in read_predictions(tmp_path / "predictions.jsonl")}
    closed = {key for key, one in found.items() if one.choice_scores}
    assert closed == {("example-1", 0), ("example-2", 1), ("example-3", 0)}
    for key, text in answers(whole):
        if key not in closed:
            assert found[key].prediction == text
    examples, dataset = data
    red = found["example-1", 0]
    assert red.choice_scores == pytest.approx(
        {label: plain_score(loaded, dataset, 1, label) for label in ("yes", "no")}, abs=1e-3
    )
    assert red.prediction == max(red.choice_scores, key=red.choice_scores.get)
    assert scores["auroc"].count == 3
    assert examples[1].turns[0].accepted == red.answers


def plain_score(loaded, dataset, number, label):
    """Log-likelihood of a label and its end behind one whole prompt, in one plain pass."""
    processor, encoded = loaded.processor, dataset.examples[number]
    image = dataset.images[dataset.image_numbers(number)[0]]
    expanded = encoded.expand([image.shape])
    prompt = expanded.ids[: int(expanded.learnt.argmax())].tolist()
    ids = [*processor.encode_plain(label), processor.end_ids[0]]
    made = processor.image_processor([image.path])
    with torch.no_grad():
        logits = loaded.model(
            input_ids=torch.tensor([prompt + ids]),
            pixel_values=made["pixel_values"],
            image_sizes=made["image_sizes"],
        ).logits[0]
    numbers = logits.log_softmax(-1)
    return sum(float(numbers[len(prompt) - 1 + at, one]) for at, one in enumerate(ids))


def test_choices_of_the_settings_stand_in_where_the_data_has_none(tmp_path, loaded, data):
    settings = EvaluateSettings(answer="choices", choices=("A thing.", "Here.", "Two"))
    evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET)
    found = read_predictions(tmp_path / "predictions.jsonl")
    assert next(list(one.choice_scores) for one in found if one.id != "example-1") == [
        "A thing.",
        "Here.",
        "Two",
    ]
    assert list({one.key: one for one in found}["example-1", 0].choice_scores) == ["yes", "no"]


def test_choosing_from_nothing_is_refused_before_the_work(tmp_path, loaded, data):
    with pytest.raises(ConfigError, match=r"example 'example-0' names no choices; name them in"):
        evaluate_into(tmp_path, loaded, *data, EvaluateSettings(answer="choices"), Alone(), QUIET)
    with pytest.raises(ConfigError, match="unknown metric blue"):
        evaluate_into(tmp_path, loaded, *data, EvaluateSettings(metrics=("blue",)), Alone(), QUIET)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_a_question_whose_right_answer_is_not_offered_is_counted(tmp_path, loaded, data, capsys):
    settings = EvaluateSettings(choices=("red", "blue"), max_new_tokens=1)
    evaluate_into(tmp_path, loaded, *data, settings, Alone(), Console(width=200))
    assert "6 questions accept no answer out of their choices" in capsys.readouterr().out


def test_two_examples_of_one_id_are_refused(tmp_path, loaded):
    line = json.dumps({"id": "same", "conversations": [turn("a?", "b")]})
    (tmp_path / "data.jsonl").write_text(f"{line}\n{line}\n")
    data = read_dataset(tmp_path / "data.jsonl", loaded.processor)
    with pytest.raises(DataError, match="two examples have the id 'same'"):
        evaluate_into(tmp_path / "out", loaded, *data, GENERATE, Alone(), QUIET)


def test_only_the_first_examples_are_answered_when_asked_so(tmp_path, loaded, data):
    settings = GENERATE.model_copy(update={"max_examples": 2})
    scores = evaluate_into(tmp_path, loaded, *data, settings, Alone(), QUIET)
    assert scores["accuracy"].count == 2


def evaluate(place, loaded, out=None):
    return evaluate_model(
        loaded,
        str(place / "model"),
        place / "data.jsonl",
        out,
        images=None,
        settings=GENERATE,
        workers=Alone(),
        console=QUIET,
    )


def test_asked_again_it_answers_again(tmp_path, place, loaded, monkeypatch):
    folder, _ = evaluate(place, loaded, tmp_path)
    assert folder == tmp_path
    later = kill_after(monkeypatch, 1000)
    evaluate(place, loaded, tmp_path)
    assert len(later) == 9


def test_without_a_folder_a_runs_scores_go_into_it_and_others_beside(
    tmp_path, place, loaded, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder, _ = evaluate(place, loaded)
    assert folder == Path("evaluation") / "data"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    folder, _ = evaluate_model(
        loaded,
        "run",
        place / "data.jsonl",
        None,
        images=None,
        settings=GENERATE,
        workers=Alone(),
        console=QUIET,
    )
    assert folder == Path("run") / "evaluation" / "data"


@pytest.mark.parametrize("name", ["before", "after", "step-20"])
def test_a_moment_of_a_run_is_known_by_its_name(name):
    assert is_of_run(name)


@pytest.mark.parametrize("name", ["2024", "step-", "step-²", "step-3b", "before.other-1"])
def test_a_file_that_is_called_by_a_number_is_no_moment_of_a_run(name):
    assert not is_of_run(name)


def test_a_runs_own_evaluations_are_not_written_over(tmp_path, place, loaded):
    (tmp_path / "recipe.yaml").touch()
    data = tmp_path / "after.jsonl"
    data.write_text("")
    with pytest.raises(ConfigError, match="is what the run itself evaluated; give another folder"):
        evaluate_model(
            loaded,
            str(tmp_path),
            data,
            None,
            images=None,
            settings=GENERATE,
            workers=Alone(),
            console=QUIET,
        )


def test_an_empty_file_of_answers_is_an_error(tmp_path, place):
    (tmp_path / "elsewhere.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no answer in it"):
        score_made_elsewhere(
            tmp_path / "elsewhere.jsonl", place / "data.jsonl", None, EvaluateSettings(), QUIET
        )


def test_what_one_process_meets_all_of_them_raise(tmp_path, place, loaded, data, monkeypatch):
    barrier, boxes = threading.Barrier(2, timeout=60), [None] * 2
    crowd = [Crowd(rank, 2, barrier, boxes) for rank in range(2)]
    models = [make_model(place / "model") for _ in crowd]
    usual, met = evaluation.predict, []

    def failing(loaded, *rest):
        if loaded is models[1]:
            raise DataError("b.png: gone")
        return usual(loaded, *rest)

    def work(one):
        try:
            evaluate_into(tmp_path, models[one.rank], *data, GENERATE, one, QUIET)
        except DataError as error:
            met.append(str(error))

    monkeypatch.setattr(evaluation, "predict", failing)
    threads = [threading.Thread(target=work, args=(one,)) for one in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == ["b.png: gone"] * 2


def test_answers_made_elsewhere_are_scored_by_the_data_alone(tmp_path, place, capsys):
    lines = [
        {"id": "example-0", "prediction": "a thing"},
        {"id": "example-5", "turn": 1, "prediction": "Three"},
    ]
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = elsewhere.read_text()
    folder, scores = score_made_elsewhere(
        elsewhere, place / "data.jsonl", None, EvaluateSettings(), Console(width=200)
    )
    said = capsys.readouterr().out
    assert folder == tmp_path
    assert (scores["accuracy"].value, scores["accuracy"].count) == (0.5, 2)
    assert "7 of 9 turns have no prediction" in said
    assert "turn 0 of 'example-1'" in said
    assert elsewhere.read_text() == text
    folder, _ = score_made_elsewhere(
        elsewhere, place / "data.jsonl", tmp_path / "out", EvaluateSettings(), QUIET
    )
    assert [one.scores["accuracy"] for one in read_predictions(folder / "predictions.jsonl")] == [
        1.0,
        0.0,
    ]


def test_an_answer_to_no_turn_of_the_data_is_refused(tmp_path, place):
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text('{"id": "example-9", "prediction": "a"}\n')
    with pytest.raises(DataError, match="turn 0 of 'example-9': the data has no such turn"):
        score_made_elsewhere(elsewhere, place / "data.jsonl", None, EvaluateSettings(), QUIET)
