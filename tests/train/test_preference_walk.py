"""What a run of preferences leaves is planned, scored, exported and served as any other run is."""

import math
from statistics import mean
from unittest.mock import patch

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from daily import daily
from pairs import pair_pages
from peft import PeftModel
from serving import question, running
from small_runs import losses, metrics, recipe, run
from tiny import turn, write_data, write_model
from tiny_models import write_tiny as write_family
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import save_recipe
from foveal.data.dataset import read_dataset
from foveal.data.images.media import open_image
from foveal.deliver.export import export_run
from foveal.evaluate.prediction import read_predictions, read_scores
from foveal.models.loading import load
from foveal.plan.question import ask
from foveal.serve.limits import ServerLimits, ServerSettings
from foveal.serve.served import open_models
from foveal.serve.server import build_app
from foveal.train import reference_answers

STRATEGIES = ["full", "lora"]
WARNS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    write_model(place / "model")
    pair_pages(place, 3, 3, "train")
    pair_pages(place, 2, 2, "validation", rejected=2)
    return place


def preferring(place, name, **changes):
    files = {"data__validation": str(place / "validation.jsonl")}
    return recipe(place, name, objective="preferences", **(files | changes))


@pytest.fixture(scope="module")
def runs(place):
    return {
        strategy: run(preferring(place, strategy, strategy=strategy)).run for strategy in STRATEGIES
    }


def foveal(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("strategy", daily("lora", beside=["full"]))
def test_an_exported_run_prefers_what_the_run_preferred(place, runs, strategy, tmp_path):
    export_run(runs[strategy], tmp_path / "out", dtype="float32", merge=True)
    for model, out in ((runs[strategy], "run"), (tmp_path / "out", "exported")):
        where = tmp_path / out
        data = place / "validation.jsonl"
        said = foveal("evaluate", model, data, "--out", where, "--num-crops", 4)
        after = read_predictions(runs[strategy] / "evaluation" / "after" / "predictions.jsonl")
        found = read_predictions(where / "predictions.jsonl")
        for one, other in zip(found, after, strict=True):
            assert one.compared == pytest.approx(other.compared, rel=1e-4)
        margins = [one.compared[0] - worse for one in found for worse in one.compared[1:]]
        assert f"Margin: {mean(margins):.3f}  [" in said
        chosen = [one.compared[0] for one in found for _ in one.compared[1:]]
        assert f"Log-probability of chosen answers: {mean(chosen):.3f}  [" in said


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_an_exported_adapter_prefers_in_plain_peft_what_the_run_preferred(place, runs, tmp_path):
    out = tmp_path / "adapter"
    export_run(runs["lora"], out, merge=False)
    assert not (out / "model.safetensors").exists()
    loaded, file = load(str(place / "model"), 4), place / "validation.jsonl"
    _, dataset = read_dataset(file, loaded.processor, pairs=True)
    base = AutoModelForImageTextToText.from_pretrained(place / "model", dtype="float32")
    model = PeftModel.from_pretrained(base, out).eval()
    end = loaded.processor.tokenizer.convert_tokens_to_ids("<|end|>")
    found = read_predictions(runs["lora"] / "evaluation" / "after" / "predictions.jsonl")
    for prediction, first in zip(found, dataset.sizes.sets.tolist(), strict=False):
        for number, compared in enumerate(prediction.compared):
            facts = [dataset.images[one] for one in dataset.image_numbers(first + number)]
            expanded = dataset.examples[first + number].expand([fact.shape for fact in facts])
            ids = torch.from_numpy(expanded.ids)
            pixels = loaded.processor.image_processor([open_image(fact.path) for fact in facts])
            with torch.no_grad():
                likely = model(input_ids=ids[None], **pixels).logits[0].double().log_softmax(-1)
            learnt = expanded.learnt.nonzero()[0].tolist()
            answer = learnt[: ids[learnt].tolist().index(end) + 1]
            said = sum(float(likely[place - 1, ids[place]]) for place in answer)
            assert said == pytest.approx(compared, rel=1e-4)
    image = place / "images" / "train-0-0.png"
    asked = [
        foveal("ask", one, image, "What is 0 of it?", "--max-new-tokens", 4)
        for one in (runs["lora"], out)
    ]
    assert asked[0] == asked[1]
    served, _ = open_models(str(out), None, True, lambda _: 2**30)
    with running(build_app(served, ServerSettings(), lambda _: 2**28), ServerLimits()) as server:
        done = server.client().chat.completions.create(
            model=served[0].name, messages=[question()], max_tokens=2
        )
        assert done.choices[0].message.content is not None


@pytest.mark.parametrize("strategy", daily("lora", beside=["full"]))
def test_a_run_answers_in_the_terminal_and_is_served_beside_the_model_before(place, runs, strategy):
    image = place / "images" / "train-0-0.png"
    asked = foveal("ask", runs[strategy], image, "What is 0 of it?", "--max-new-tokens", 2)
    assert asked.strip()
    served, _ = open_models(str(runs[strategy]), None, True, lambda _: 2**30)
    with running(build_app(served, ServerSettings(), lambda _: 2**28), ServerLimits()) as server:
        client = server.client()
        names = [one.id for one in client.models.list()]
        assert names == [strategy, f"{strategy}-before"]
        for name in names:
            client.chat.completions.create(model=name, messages=[question()], max_tokens=2)


def test_a_finished_run_says_how_likely_both_answers_were_before_and_after(place, tmp_path):
    chosen = preferring(place, "said", train__max_steps=2)
    save_recipe(chosen, tmp_path / "recipe.yaml")
    said = foveal("train", tmp_path / "recipe.yaml")
    moments = []
    for moment in ("before", "after"):
        found = read_predictions(place / "said" / "evaluation" / moment / "predictions.jsonl")
        moments.append([one.compared[0] - worse for one in found for worse in one.compared[1:]])
    before, after = map(mean, moments)
    line = next(one for one in said.splitlines() if one.startswith("Margin: "))
    assert line.startswith(f"Margin: {after:.3f}  [")
    assert line.endswith(f"(before {before:.3f})")
    assert "Distance of an answer from before: " in said


@pytest.mark.parametrize(
    ("strategy", "steps"), [("full", None), ("frozen_vision", 2)], ids=["two epochs", "two steps"]
)
def test_a_plan_counts_the_rows_and_tokens_that_a_run_reads_before_it(place, strategy, steps):
    name = f"planned-{strategy}-{steps}"
    chosen = preferring(
        place, name, strategy=strategy, train__max_steps=steps, data__validation=None
    )
    read, original = [], reference_answers._read_row

    def watched(engine, loss, batch):
        read.append(batch.input_ids.shape[1])
        return original(engine, loss, batch)

    with patch.object(reference_answers, "_read_row", watched):
        run(chosen)
    asked = ask(chosen, None)
    planned = asked.reading(1)
    assert [row.tokens for row in planned.rows] == read
    # Three pages of three questions, each of two answers: a step counts questions.
    assert asked.epoch(1).total.examples == asked.dataset.sizes.num_sets == 9
    first = asked.epoch(1).steps[0][0]
    assert sum(row.examples for row in first) == metrics(place / name)[0]["examples"] == 4


def test_what_compares_with_nothing_reads_nothing_before_it(place):
    orpo = preferring(place, "orpo", preference={"loss": "orpo"})
    assert ask(orpo, None).reading(1) is None
    assert ask(recipe(place, "answers"), None).reading(1) is None


def test_files_weigh_and_a_run_ends_where_preferences_no_longer_become_better(place):
    shown = [f"train-{page}-0.png" for page in range(2)]
    texts = [[turn("Is it so?", "yes", rejected=["no"])], [turn("Or so?", "no", rejected=["yes"])]]
    several = [[turn("Are both alike?", "no", shown, rejected=["yes", "they are"])]]
    text, both = (
        write_data(place / f"{name}.jsonl", lines)
        for name, lines in (("text", texts), ("several", several))
    )
    files = [
        {"path": str(text), "weight": 2},
        {"path": str(both)},
        {"path": str(place / "train.jsonl")},
    ]
    chosen = preferring(
        place,
        "patient",
        data__train=files,
        data__validation=str(text),
        train__epochs=4,
        train__learning_rate=1e-5,
        train__evaluate_every_steps=1,
        train__best_metric="preferred",
        train__stop_after_worse=2,
    )
    outcome = run(chosen)
    # 2 twice, 1 and 9 a pass; at such a rate no preference of the two becomes better.
    assert metrics(outcome.run)[0]["examples"] == 4
    assert losses(outcome.run)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert outcome.steps < 16
    assert outcome.after["preferred"].count == 2
    assert (outcome.run / "evaluation" / f"step-{outcome.steps}").exists()


def test_a_reference_of_other_data_is_made_again(place, tmp_path):
    first = run(preferring(place, "first", train__max_steps=1, data__validation=None)).run
    other = pair_pages(tmp_path, 3, 3, "train", places=(3, 1, 0))
    second = place / "second"
    second.mkdir()
    stale = first / reference_answers.REFERENCE
    (second / stale.name).write_bytes(stale.read_bytes())
    chosen = {"train__max_steps": 1, "data__train": str(other), "data__validation": None}
    run(preferring(place, "second", **chosen))
    assert losses(second)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert (second / stale.name).read_bytes() != stale.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("qwen3_5", marks=WARNS)])
def test_a_model_with_recurrent_layers_learns_pairs(tmp_path, name):
    write_family(name, tmp_path / "model")
    pair_pages(tmp_path, 2, 2, "train")
    more = {"data__num_crops": 16, "data__validation": str(tmp_path / "train.jsonl")}
    few = {"train__epochs": 6, "train__learning_rate": 3e-3, "train__tokens_per_pass": 2000}
    outcome = run(preferring(tmp_path, "run", **more, **few))
    assert losses(outcome.run)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses(outcome.run)[-1] < 0.5
    scores = read_scores(outcome.run / "evaluation" / "after" / "scores.json")
    assert scores["preferred"].value >= outcome.before["preferred"].value
