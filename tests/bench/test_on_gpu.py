"""What `benchmarks/on_gpu` promises before a GPU is there to run it on."""

import importlib
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from foveal_bench.contender import Case, Contender
from foveal_bench.timing import Timed
from packaging.requirements import Requirement
from torch.autograd import DeviceType

from foveal.plan.hardware import find_hardware

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a module of `benchmarks/on_gpu` as the command does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"on_gpu.{name}")


@pytest.fixture
def record(module, tmp_path):
    return module("record").Record(tmp_path / "out" / "lines.jsonl", 60.0, judges=True)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_part_runs_on_a_processor_and_leaves_its_lines(tmp_path):
    out = tmp_path / "lines.jsonl"
    words = ["--size", "tiny", "--steps", "1", "--minutes", "20", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "on_gpu"), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = lines(out)
    assert not [one for one in found if "error" in one or "left_out" in one]
    named = {
        part: [one["name"] for one in found if one["part"] == part]
        for part in ("machine", "right", "fast", "plan", "choice", "answers", "kernels")
    }
    assert all(named.values())
    assert sum("ratio" in name for name in named["fast"]) == 6
    assert not [name for names in named.values() for name in names if "mark" in name]
    assert any("test_the_first_steps_audits_pass" in name for name in named["right"])
    (evaluated,) = [one for one in found if one["name"].startswith("evaluation")]
    assert evaluated["generate_same_tokens"] > 0.8


@pytest.mark.slow
def test_an_unknown_part_is_answered_with_the_known_ones():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "on_gpu"), "fats"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no part 'fats'; choose from right, fast, plan" in done.stderr


def test_what_fails_is_written_down_and_the_rest_goes_on(record, capsys):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    assert record.take("fast", "full", full) is None
    assert record.take("fast", "lora", lambda: {"seconds": 0.5}) == {"seconds": 0.5}
    failed, measured = lines(record.path)
    assert failed["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert measured["seconds"] == 0.5
    assert record.failures == ["fast: full"]
    assert "Tried to allocate" in capsys.readouterr().err


def test_nothing_is_begun_when_the_time_is_up_and_that_is_no_failure(module, tmp_path):
    late = module("record").Record(tmp_path / "lines.jsonl", 0.0, judges=True)
    assert late.take("fast", "full", lambda: pytest.fail("it began")) is None
    assert lines(late.path)[0]["left_out"] == "the time was up"
    assert late.failures == []


@pytest.mark.parametrize(
    ("value", "wanted", "reached"),
    [
        (0.45, ">= 0.45", True),
        (0.44, ">= 0.45", False),
        (0.6, "<= 0.6", True),
        (0.7, "<= 0.6", False),
    ],
)
def test_a_mark_says_whether_it_was_reached(record, value, wanted, reached):
    record.judge("fast", "share", value, wanted)
    assert lines(record.path)[0]["reached"] == reached
    assert bool(record.missed) != reached


def test_a_trial_at_another_size_judges_nothing(module, tmp_path):
    trial = module("record").Record(tmp_path / "lines.jsonl", 1.0, judges=False)
    trial.judge("fast", "share", 0.1, ">= 0.45")
    assert not trial.path.exists()
    assert trial.missed == []


def speeds_of(module, record, taken):
    """Speeds that were measured: (strategy, questions, way, attention) -> seconds, peak."""
    fast, steps = module("fast"), module("steps")
    hardware = find_hardware("h100")
    speeds = fast.Speeds(record, "tiny", "bf16", "cpu", 1, hardware, speed=100.0)
    for (strategy, questions, way, attention), (seconds, peak) in taken.items():
        trial = steps.Trial(Case("tiny", strategy, questions, way, "bf16", attention))
        timed = Timed((seconds,), 10, 60.0)
        speeds.found[trial] = steps.Measured(timed, peak, 1.0, 1000, 0.9 * seconds, 1080)
        speeds._tried.add(trial)
    return speeds


TAKEN = {
    ("full", 1, "recompute", "blocks"): (1.0, 50),
    ("full", 1, "shared", "blocks"): (0.8, 90),
    ("full", 1, "recipe", "sdpa"): (3.0, 100),
    ("full", 1, "recipe", "eager"): (5.0, 200),
    ("lora", 4, "shared", "causal"): (0.1, 10),
    ("lora", 4, "shared", "blocks"): (2.0, 90),
    ("lora", 4, "recipe", "sdpa"): (18.0, 100),
}


def test_marks_are_held_against_the_faster_of_the_recipes_ways(module, record):
    speeds_of(module, record, TAKEN)._judge()
    marks = {one["name"]: one for one in lines(record.path) if one["name"].startswith("mark")}
    ratio = marks["mark: ratio, full, 1 a page"]
    assert (ratio["value"], ratio["reached"]) == (pytest.approx(3.0 / 0.8), True)
    share = marks["mark: share of matrix speed, full, 1 a page"]
    assert share["value"] == pytest.approx(60.0 / 0.8 / 100.0)
    memory = marks["mark: peak, full, 1 a page"]  # both recomputing
    assert (memory["value"], memory["reached"]) == (0.5, True)
    # What sees as if it were one example is no way of ours.
    assert marks["mark: ratio, lora, 4 a page"]["value"] == 9.0
    assert not marks["mark: ratio, lora, 4 a page"]["reached"]


def test_a_plan_stands_beside_what_was_measured(module, record):
    speeds = speeds_of(module, record, TAKEN)
    speeds.measure = lambda trial: speeds.found.get(trial)
    speeds.plan()
    said = {one["name"]: one for one in lines(record.path)}
    one = said["full, 1 a page, recompute, blocks"]
    assert one["seconds_error"] == pytest.approx(-0.1)
    assert one["memory_error"] == pytest.approx(0.08)
    assert said["mark: seconds, full, 1 a page, recompute, blocks"]["reached"]
    assert len(said) == 9  # three of ours, a line and two marks each


@pytest.mark.slow
def test_a_plan_is_made_of_the_very_row_that_is_measured(module, tmp_path):
    steps = module("steps")
    case = Case("tiny", "full", 4, "recompute", "bf16", "blocks")
    side = Contender(case, tmp_path)
    (row,) = side.rows
    (counted,) = side.counts
    assert counted.tokens == row.input_ids.shape[1]
    assert counted.targets == len(row.targets)
    card = find_hardware("h100")
    seconds, held = steps.planned(case, side, card)
    weights = sum(one.nbytes for one in side.model.parameters())
    assert held > card.base_bytes + weights
    slower, _ = steps.planned(case, side, find_hardware("l4"))
    assert slower > seconds > 0


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
    ],
)
def test_a_card_is_found_in_the_plans_table_by_its_name(module, monkeypatch, said, row):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: said)
    assert module("steps").this_card() == find_hardware(row)


def test_what_a_process_holds_is_its_tensors_most_and_what_is_beside_its_allocator(
    module, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 60)  # of the 70 that are taken
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 50)
    assert module("steps")._held() == 50 + 10


def test_plain_causal_reads_the_same_tokens_as_one_example(module, tmp_path):
    steps = module("steps")
    sides = {
        attention: steps.make_side(
            steps.Trial(Case("tiny", "full", 4, "shared", attention=attention)), tmp_path
        )
        for attention in ("blocks", "causal")
    }
    (shared,), (plain,) = (side.rows for side in sides.values())
    assert plain.input_ids.equal(shared.input_ids)
    assert len(shared.groups[0].branch_starts) == 4
    assert [(one.start, one.branch_starts, one.end) for one in plain.groups] == [
        (0, (), plain.input_ids.shape[1])
    ]


@pytest.mark.parametrize(
    ("seconds", "late_graphs", "chosen"),
    [(0.5, 0, "flex"), (0.5, 3, "blocks"), (0.99, 0, "blocks"), (2.0, 0, "blocks")],
)
def test_a_compiled_kind_is_taken_if_it_is_clearly_faster_and_settles(
    module, seconds, late_graphs, chosen
):
    choice = module("choice")
    plain = choice.Ragged("blocks", 50.0, 1.0, 0, 0)
    compiled = choice.Ragged("flex", 80.0, seconds, 5, late_graphs)
    assert choice.choose(plain, compiled) == chosen


def test_the_ragged_steps_are_ragged_and_share(module, tmp_path):
    choice = module("choice")
    size = importlib.import_module("foveal_bench.random_page").find_size("tiny")
    dataset = choice.ragged_pages(size, tmp_path)
    plan = choice.plan_of(dataset, size)
    steps = [plan.step(index).ranks[0] for index in range(choice.STEPS)]
    rows = [row for step in steps for row in step]
    assert len({row.tokens(plan.sizes) for row in rows}) > 60
    assert len({len(row.groups) for row in rows}) > 1
    assert sum(len(group.examples) > 1 for row in rows for group in row.groups) > 60


def test_the_time_between_kernels_is_that_in_which_none_runs(module):
    kernels = module("kernels")
    spans = [  # 0-10 and 5-20 overlap, nothing from 20 to 30, 30-40
        kernels.Span("mm", 0, 10),
        kernels.Span("copy", 5, 20),
        kernels.Span("mm", 30, 40),
    ]
    said = kernels.summary(spans)
    assert said["milliseconds"] == pytest.approx(0.04)
    assert said["between_milliseconds"] == pytest.approx(0.01)
    assert said["between_share"] == pytest.approx(0.25)
    assert [(one["name"], one["calls"]) for one in said["costliest"]] == [("mm", 2), ("copy", 1)]


def test_only_what_kept_the_device_busy_is_counted(module):
    def event(name, device, children=(), is_user_annotation=False):
        return SimpleNamespace(
            name=name,
            device_type=device,
            cpu_children=list(children),
            is_user_annotation=is_user_annotation,
            time_range=SimpleNamespace(start=0, end=1),
        )

    on_card = [event("gemm", DeviceType.CUDA), event("step", DeviceType.CUDA, (), True)]
    leaf = event("aten::mm", DeviceType.CPU)
    events = [*on_card, leaf, event("aten::linear", DeviceType.CPU, [leaf])]
    kernels = module("kernels")
    assert [one.name for one in kernels.spans_of(events, on_cuda=True)] == ["gemm"]
    assert [one.name for one in kernels.spans_of(events, on_cuda=False)] == ["aten::mm"]


COMES_WITH_TORCH_AND_TRANSFORMERS = {
    "annotated-doc",
    "certifi",
    "filelock",
    "fsspec",
    "hf-xet",
    "numpy",
    "packaging",
    "psutil",
    "pyyaml",
    "regex",
    "safetensors",
    "torch",
    "tqdm",
    "typer",
}


def test_what_is_packed_needs_nothing_that_the_other_machine_may_lack(module):
    pack = module("pack_wheels")
    listed = (BENCHMARKS / "on_gpu" / "wheels.txt").read_text().splitlines()
    names = [line for line in listed if line and not line.startswith("#")]
    pinned = pack.pinned(names, (ROOT / "requirements.txt").read_text().splitlines())
    assert [one.partition("==")[0].lower() for one in pinned] == [one.lower() for one in names]
    there = {one.lower().replace("_", "-") for one in names} | COMES_WITH_TORCH_AND_TRANSFORMERS
    for name in names:
        wanted = [Requirement(one) for one in requires(name) or ()]
        for one in wanted:
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                assert one.name.lower().replace("_", "-") in there, f"{name} needs {one.name}"


def test_a_package_without_a_pin_is_named(module):
    with pytest.raises(SystemExit, match="no version of nothing; pin it there"):
        module("pack_wheels").pinned(["nothing"], ["peft==0.21.2"])


def test_of_a_wheel_the_library_of_one_cuda_stays(module, tmp_path):
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    files = [f"bitsandbytes/libbitsandbytes_{one}.so" for one in ("cpu", "cuda130", "cuda118")]
    files += ["bitsandbytes/__init__.py", "bitsandbytes/libbitsandbytes_rocm70.so"]
    with zipfile.ZipFile(wheel, "w") as made:
        for name in files:
            made.writestr(name, name)
        made.writestr("bitsandbytes-1.dist-info/RECORD", "".join(f"{one},,\n" for one in files))
    module("pack_wheels").slim(wheel, "130")
    with zipfile.ZipFile(wheel) as made:
        kept = [files[0], files[1], files[3]]
        assert made.namelist() == [*kept, "bitsandbytes-1.dist-info/RECORD"]
        record = made.read("bitsandbytes-1.dist-info/RECORD").decode().splitlines()
        assert record == [f"{one},," for one in kept]
    with pytest.raises(SystemExit, match="no library for CUDA 99"):
        module("pack_wheels").slim(wheel, "99")
