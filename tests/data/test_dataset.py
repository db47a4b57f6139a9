"""Examples as arrays are the examples that were read, and cost few bytes each."""

import json
import os
import tempfile
import tracemalloc
from dataclasses import replace
from functools import partial
from itertools import accumulate
from shlex import quote

import numpy as np
import pytest
from PIL import Image
from published import make_processor
from ticks import next_tick
from tiny import make_image, pages, turn, write_data
from words import WordProcessor

from foveal.data import rows
from foveal.data.batch import build_batch, open_as_planned
from foveal.data.checking.check import check_file
from foveal.data.dataset import build_dataset, read_dataset
from foveal.data.encode import count_tokens, encode
from foveal.data.encoded import encoding
from foveal.data.example import read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.row_planning.groups import Group, Row
from foveal.errors import DataError
from foveal.evaluate.questions import Opener


def mixed(folder):
    """Turns without a picture, with two in another order, with the same one twice, and later."""
    for number in range(3):
        make_image(folder / "images" / f"{number}.png", number)
    return write_data(
        folder / "mixed.jsonl",
        [
            [turn("only text?", "yes")],
            [turn("<|image_2|>then<|image_1|>?", "no", ["0.png", "1.png"])],
            [turn("twice?", "yes", ["2.png", "2.png"]), turn("and?", "so", ["0.png"])],
            [turn("the same?", "é", ["0.png"])],
        ],
    )


def test_an_example_read_from_the_arrays_is_the_one_that_was_encoded(tmp_path):
    data, processor = mixed(tmp_path), make_processor(4)
    folder = ImageFolder(data)
    encoded = [encode(one, processor, folder) for one in read_examples(data)]
    dataset = build_dataset(encoded, processor)
    assert len(dataset.examples) == 4
    for number, (one, found) in enumerate(zip(encoded, dataset.examples, strict=True)):
        shapes = [dataset.images[image].shape for image in dataset.image_numbers(number)]
        assert (found.id, found.images, found.prompt_entries) == (
            one.id,
            one.images,
            one.prompt_entries,
        )
        for ours, theirs in zip(
            vars(found.expand(shapes)).values(),
            vars(one.expand(shapes)).values(),
            strict=True,
        ):
            assert np.array_equal(ours, theirs)
        assert dataset.sizes.tokens[number] == len(one.expand(shapes).ids)
    assert [fact.path.name for fact in dataset.images] == ["0.png", "1.png", "2.png"]
    assert dataset.image_numbers(2) == [2, 2, 0]
    assert dataset.learnt_tokens() == sum(int(one.learnt.sum()) for one in encoded)


def test_an_example_in_which_nothing_is_learnt_is_found(tmp_path):
    data, processor = mixed(tmp_path), make_processor(4)
    encoded = [encode(one, processor, ImageFolder(data)) for one in read_examples(data)]
    encoded[2] = replace(encoded[2], learnt=np.zeros_like(encoded[2].learnt))
    dataset = build_dataset(encoded, processor)
    assert dataset.without_targets() == [2]


def test_several_files_are_one_data_set_and_each_finds_its_own_pictures(tmp_path):
    processor = make_processor(4)
    one, two = pages(tmp_path / "one", 1, 2), pages(tmp_path / "two", 2, 1)
    examples, both = read_dataset([one, two], processor, weights=[1.0, 0.5])
    assert len(examples) == len(both.examples) == 4
    assert [fact.path.parts[-3] for fact in both.images] == ["one", "two", "two"]
    assert [shown.an_epoch for shown in both.sizes.shown] == [2, 1]
    fingerprints = {
        both.fingerprint,
        read_dataset(one, processor)[1].fingerprint,
        read_dataset(two, processor)[1].fingerprint,
        read_dataset([two, one], processor)[1].fingerprint,
    }
    assert len(fingerprints) == 4
    with pytest.raises(DataError, match=r"data\.jsonl: weight 0\.1 of 2 examples shows none"):
        read_dataset([one, two], processor, weights=[0.1, 1])


def test_a_change_in_any_file_changes_the_fingerprint(tmp_path):
    processor = make_processor(4)
    files = [pages(tmp_path / "one", 1, 2), pages(tmp_path / "two", 1, 2)]
    before = read_dataset(files, processor)[1].fingerprint
    assert read_dataset(files, processor)[1].fingerprint == before
    files[1].write_text(files[1].read_text().replace("It is 01", "It is 10"))
    assert read_dataset(files, processor)[1].fingerprint != before


def test_check_counts_the_tokens_that_a_run_would_have(tmp_path):
    data, processor = mixed(tmp_path), make_processor(4)
    _, dataset = read_dataset(data, processor)
    for number, example in enumerate(read_examples(data)):
        counts = count_tokens(processor, example, ImageFolder(data))
        assert sum(counts.turns) == dataset.sizes.tokens[number]
        assert counts.learnt == dataset.examples[number].learnt.sum()


def conversation(folder, num_turns):
    """Every third turn shows a picture."""
    make_image(folder / "images" / "a.png", 0)
    asked = [(f"And {number}?", f"It is {number}.") for number in range(num_turns)]
    turns = [turn(*one, ["a.png"] * (place % 3 == 1)) for place, one in enumerate(asked)]
    return [turns[: last + 1] for last in range(num_turns)]


@pytest.mark.parametrize("turns", ["recipe", "template"])
def test_a_turn_is_counted_up_to_where_a_conversation_that_ends_with_it_would_end(tmp_path, turns):
    data = write_data(tmp_path / "data.jsonl", conversation(tmp_path, 5))
    processor = make_processor(4)
    processor.turns = turns
    _, dataset = read_dataset(data, processor)
    *_, whole = read_examples(data)
    counts = count_tokens(processor, whole, ImageFolder(data))
    assert [*accumulate(counts.turns)] == dataset.sizes.tokens.tolist()


def test_the_tokens_of_a_long_conversation_are_counted_without_reading_each_turn_again(
    tmp_path, monkeypatch
):
    data = write_data(tmp_path / "data.jsonl", conversation(tmp_path, 20)[-1:])
    (example,), processor, read = read_examples(data), make_processor(4), []
    encode_turns = processor.encode_turns
    monkeypatch.setattr(
        processor,
        "encode_turns",
        lambda turns, *more: read.extend(turns) or encode_turns(turns, *more),
    )
    count_tokens(processor, example, ImageFolder(data))
    assert len(read) <= 2 * 20


def test_what_nobody_wants_is_noticed_while_reading_and_what_cannot_be_is_refused(tmp_path):
    make_image(tmp_path / "images" / "a.png", 0)
    data = tmp_path / "data.jsonl"
    lines = [
        {"id": "x", "conversations": [turn("fine?", "yes", ["a.png"])]},
        {"id": "x", "conversations": [turn(" ", "yes", ["a.png"])]},
        {"id": "y", "conversations": [turn("<|end|> of it?", "yes", ["a.png"])]},
        {"id": "z", "conversations": [turn("which?", "c", ["a.png"], choices=["a", "b"])]},
    ]
    data.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    said = list(read_dataset(data, make_processor(4))[1].remarks.lines())
    assert said[:3] == [
        f"{data}:3: turn 1: user is empty",
        f"{data}:5: turn 1: user holds <|end|>, which the model would read as plain text",
        f'{data}:7: turn 1: "c" is none of the choices',
    ]
    assert said[3].startswith(
        f"and 1 more of what was noticed while reading; `foveal check {quote(str(data))}`"
    )
    with data.open("a") as file:
        file.write(json.dumps({"id": "w", "conversations": [turn("q", "a", ["no.png"])]}) + "\n")
    with pytest.raises(DataError, match=r"data\.jsonl:8 \(w\): image no\.png is not in .*check"):
        read_dataset(data, make_processor(4))


def test_processes_encode_alike_and_name_the_same_line(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 150)
    data, processor = mixed(tmp_path), WordProcessor()
    with data.open("a") as file:
        file.write(json.dumps({"id": "x", "conversations": [turn("</s>", "a")]}) + "\n\n")
    alone, together = (read_dataset(data, processor, workers=n)[1] for n in (1, 2))
    assert together.fingerprint == alone.fingerprint
    assert [list(one.entries) for one in together.examples] == [
        list(one.entries) for one in alone.examples
    ]
    assert together.remarks == alone.remarks
    assert [noticed.count for _, noticed in together.remarks.noticed] == [1]
    with data.open("a") as file:
        file.write(json.dumps({"id": "y", "conversations": [turn("q", "a", ["no.png"])]}))
    with pytest.raises(DataError, match=r"mixed\.jsonl:7 \(y\): image no\.png is not in"):
        read_dataset(data, processor, workers=2)


def test_a_process_holds_less_than_a_hundred_bytes_of_an_example_that_is_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(rows, "WORTH_KEEPING", 1)
    (tmp_path / "images").mkdir()
    count = 4000
    for page in range(count // 4):
        Image.new("1", (6, 4)).save(tmp_path / "images" / f"{page}.bmp")
    asked = [[turn(f"What is number {n} of it?", "5.", [f"{n // 4}.bmp"])] for n in range(count)]
    data, cache = write_data(tmp_path / "data.jsonl", asked), tmp_path / "cache"

    def start():
        _, dataset = read_dataset(data, WordProcessor(), cache=cache)
        plan = rows.RowPlanner(dataset.sizes, examples_per_step=64, tokens_per_pass=900)
        return dataset, plan, plan.step(3)

    start()
    tracemalloc.start()
    held = start()
    bytes_held, _ = tracemalloc.get_traced_memory()  # what is mapped is the system's
    tracemalloc.stop()
    assert len(held[0].examples) == count
    assert bytes_held < 30 * count + 200_000


def test_without_a_cache_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "WORTH_KEEPING", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    _, dataset = read_dataset(pages(tmp_path, 2, 2), WordProcessor())
    rows.RowPlanner(dataset.sizes, examples_per_step=2, tokens_per_pass=900).step(0)
    assert not list((tmp_path / "temporary").iterdir())


def put_bmp(path, size) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)


@pytest.mark.parametrize(
    ("size", "num_crops", "tokens"),
    [
        ((1344, 1008), 16, 1921),  # 3 x 4 crops
        ((1008, 1344), 16, 1933),  # 4 x 3: a row of the picture ends in a token of its own
        ((500, 500), 4, 757),  # 2 x 2
        ((400, 100), 16, 2485),  # 2 x 8
        ((100, 400), 16, 2557),  # 8 x 2
    ],
)
def test_a_picture_costs_what_the_published_processor_says(tmp_path, size, num_crops, tokens):
    put_bmp(tmp_path / "images" / "a.bmp", size)
    data = write_data(tmp_path / "data.jsonl", [[turn("?", "!", ["a.bmp"])]])
    processor = make_processor(num_crops, crop_size=336, patch_size=14)
    _, dataset = read_dataset(data, processor)
    assert dataset.images[0].shape.tokens == tokens
    (example,) = read_examples(data)
    text = len(dataset.examples[0].entries) - 1
    assert sum(count_tokens(processor, example, ImageFolder(data)).turns) == text + tokens


def test_a_picture_of_another_shape_in_its_place_gives_other_tokens_in_the_next_run(tmp_path):
    path = tmp_path / "images" / "a.bmp"
    data = write_data(tmp_path / "data.jsonl", [[turn("?", "!", ["a.bmp"])]])
    processor = make_processor(16, crop_size=336, patch_size=14)
    found = []
    for size in ((400, 100), (100, 400)):
        put_bmp(path, size)
        os.utime(path, (1, 1))
        found.append(read_dataset(data, processor, cache=tmp_path / "cache")[1])
        next_tick(path)
    assert [dataset.images[0].shape.tokens for dataset in found] == [2485, 2557]
    assert found[0].fingerprint != found[1].fingerprint


def test_a_picture_of_another_shape_in_the_midst_of_a_run_is_left_out_by_name(tmp_path):
    path = tmp_path / "images" / "a.bmp"
    data = write_data(tmp_path / "data.jsonl", [[turn("?", "!", ["a.bmp"])]])
    processor = make_processor(16)
    put_bmp(path, (400, 100))
    _, dataset = read_dataset(data, processor)
    put_bmp(path, (100, 400))  # as many crops, but 8 x 2 where 2 x 8 were planned
    fact = dataset.images[0]
    with pytest.raises(DataError, match=r"a\.bmp: it was another picture when the run began"):
        open_as_planned(fact, processor)
    with Opener(dataset, processor) as opener, pytest.raises(DataError, match=r"a\.bmp: it was"):
        opener.pixels(0)
    batch = build_batch(Row((Group((0,), 0),)), dataset, processor)
    assert [one.example_id for one in batch.left_out] == ["example-0"]
    put_bmp(path, (40, 10))
    assert open_as_planned(fact, processor).size == (40, 10)


def test_a_picture_that_is_too_elongated_is_named(tmp_path):
    put_bmp(tmp_path / "images" / "thin.bmp", (4000, 1))
    data = write_data(tmp_path / "data.jsonl", [[turn("?", "!", ["thin.bmp"])]])
    processor = make_processor(4)
    with pytest.raises(DataError, match=r"thin\.bmp: a picture of 4000 x 1 pixels is too elong"):
        read_dataset(data, processor)
    (problem,) = check_file(data, count_tokens=partial(count_tokens, processor))
    assert problem.message.startswith("image thin.bmp: a picture of 4000 x 1 pixels is too elong")
