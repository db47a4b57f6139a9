"""Crops become image embeddings, however they are handed over."""

import pytest
import torch
from published import make_config

from foveal.models.phi3_vision.image import CLIP_MEAN, CLIP_STD, global_view, normalize
from foveal.models.phi3_vision.vision import ImageEmbedding

GRIDS = [(1, 1), (2, 2), (1, 3), (1, 1), (3, 1)]


@pytest.fixture(scope="module")
def embedding():
    torch.manual_seed(0)
    module = ImageEmbedding(make_config())
    for separator in (module.glb_GN, module.sub_GN):
        torch.nn.init.normal_(separator)
    return module


@pytest.fixture(scope="module")
def crops():
    """Own crops of each picture, bytes."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(rows * columns, 3, 28, 28) for rows, columns in GRIDS]
    return [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes
    ]


def normalised(pixels):
    return normalize(pixels, CLIP_MEAN, CLIP_STD)


def with_views(crops):
    pixels = []
    for own, grid in zip(map(normalised, crops), GRIDS, strict=True):
        pixels += [global_view(own, *grid), own]
    return torch.cat(pixels)


def test_bytes_without_global_views_equal_normalised_crops_with_them(embedding, crops):
    with torch.no_grad():
        from_bytes = embedding(torch.cat(crops), GRIDS)
        without_views = embedding(torch.cat([normalised(own) for own in crops]), GRIDS)
        as_published = embedding(with_views(crops), GRIDS)
    for one, two, three in zip(from_bytes, without_views, as_published, strict=True):
        torch.testing.assert_close(one, three, atol=1e-5, rtol=0)
        torch.testing.assert_close(two, three, atol=1e-5, rtol=0)


def test_bytes_may_bring_their_global_views(embedding, crops):
    pixels = torch.cat([torch.cat([own[-1:], own]) for own in crops])  # any view will do
    with torch.no_grad():
        from_bytes, from_floats = embedding(pixels, GRIDS), embedding(normalised(pixels), GRIDS)
    for one, other in zip(from_bytes, from_floats, strict=True):
        assert torch.equal(one, other)


def test_a_picture_does_not_change_with_its_neighbours(embedding, crops):
    with torch.no_grad():
        together = embedding(torch.cat(crops), GRIDS)
        for own, grid, expected in zip(crops, GRIDS, together, strict=True):
            torch.testing.assert_close(embedding(own, [grid])[0], expected, atol=1e-5, rtol=0)


def test_tokens_run_line_by_line_over_the_whole_picture_each_line_ended_by_a_separator():
    # One number a merged patch: its place in the picture, or 100 and more in the global view.
    embedding = ImageEmbedding(make_config())
    embedding.sub_GN = torch.nn.Parameter(torch.full((1, 1, 1, 1), -1.0))
    embedding.glb_GN = torch.nn.Parameter(torch.full((1, 1, 1), -2.0))
    rows, columns, side = 2, 3, 2
    places = torch.arange(rows * side * columns * side).view(rows, side, columns, side)
    crops = places.transpose(1, 2).reshape(rows * columns, side, side, 1)
    view = torch.arange(100, 104).view(1, side, side, 1)
    made = embedding._arrange(crops.float(), view.float(), rows, columns)
    lines = [[*range(start, start + 6), -1] for start in (0, 6, 12, 18)]
    own = [place for line in lines for place in line]
    assert made.flatten().tolist() == [*own, -2, 100, 101, -1, 102, 103, -1]


def test_a_picture_of_a_single_crop_is_encoded_once(embedding, crops):
    counted = []
    hook = embedding.img_processor.register_forward_hook(
        lambda module, inputs, output: counted.append(len(inputs[0]))
    )
    with torch.no_grad(), hook:
        embedding(torch.cat(crops), GRIDS)
    assert counted == [1 + (4 + 1) + (3 + 1) + 1 + (3 + 1)]


@pytest.mark.parametrize("extra", [-1, 1, len(GRIDS) - 1, len(GRIDS) + 1])
def test_crops_that_fit_neither_form_are_refused(embedding, crops, extra):
    pixels = torch.cat([*crops, torch.cat(crops)])[: sum(map(len, crops)) + extra]
    with pytest.raises(ValueError, match=r"crops do not fit 5 images of \[1, 4, 3, 1, 3\] crops"):
        embedding(pixels, GRIDS)


def test_the_last_tower_layer_and_the_norm_behind_it_are_never_run(embedding, crops):
    embedding.zero_grad()
    sum(features.sum() for features in embedding(torch.cat(crops), GRIDS)).backward()
    idle = {name for name, one in embedding.named_parameters() if one.grad is None}
    unused = ("encoder.layers.2.", "post_layernorm.")
    tower = "img_processor.vision_model."
    names = {name for name, _ in embedding.named_parameters()}
    assert idle == {name for name in names if name.startswith(tuple(tower + one for one in unused))}
    assert len(idle) == 16 + 2
