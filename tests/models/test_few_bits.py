"""4-bit weights mean the same numbers on every machine, whatever its kernels make of them."""

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit
from tiny import SIZES

from foveal.adapt.quantize import plan_quantization
from foveal.adapt.strategy import rules_of
from foveal.config import QuantizationSettings
from foveal.models.few_bits import is_computed_rightly, unpack
from foveal.models.loading import load
from foveal.models.phi3_vision.tiny import write_tiny

CPU = torch.device("cpu")
WIDTHS = [16, 33, 48, 50, 64, 80, 96, 128, 200]


def by_hand(packed, state):
    """One number after the other, as the paper writes it, in Python's own arithmetic."""
    halves = [half for byte in packed.flatten().tolist() for half in (byte >> 4, byte & 15)]
    scales = state.absmax.tolist()
    if state.nested:
        code, coarse = state.state2.code.tolist(), state.state2.absmax.tolist()
        size, mean = state.state2.blocksize, state.offset.item()
        scales = [code[one] * coarse[place // size] + mean for place, one in enumerate(scales)]
    count, levels = state.shape.numel(), state.code.tolist()
    return [levels[halves[at]] * scales[at // state.blocksize] for at in range(count)]


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_unpacked_numbers_are_the_codes_level_times_the_blocks_scale(width, double):
    weight = torch.randn(21, width, generator=torch.Generator().manual_seed(width))
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    found = unpack(packed, state)
    expected = torch.tensor(by_hand(packed, state)).view(21, width)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    # 16 levels leave about a tenth of normally spread numbers' norm.
    assert 0.05 < (found - weight).norm() / weight.norm() < 0.15


def shifted(result):
    """What a kernel gives that reads the next place."""
    return result.roll(1, dims=-1)


def test_a_shape_whose_width_fills_blocks_is_computed_rightly_everywhere():
    for compute in (torch.float32, torch.bfloat16, torch.float16):
        for double in (True, False):
            assert is_computed_rightly((48, 128), CPU, compute, double), (compute, double)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["matmul_4bit", "functional.dequantize_4bit"])
def test_a_kernel_that_computes_wrongly_is_found_out(monkeypatch, name, compute):
    parent = bitsandbytes.functional if "." in name else bitsandbytes
    right = getattr(parent, name.rpartition(".")[2])
    monkeypatch.setattr(f"bitsandbytes.{name}", lambda *args, **more: shifted(right(*args, **more)))
    assert not is_computed_rightly((48, 128), CPU, compute, True)


def test_a_kernel_that_spoils_one_row_of_many_or_gives_no_number_is_found_out(monkeypatch):
    right = bitsandbytes.matmul_4bit

    def spoil(value):
        def wrong(*args, **more):
            result = right(*args, **more)
            return torch.cat([result[..., :-1], torch.full_like(result[..., -1:], value)], -1)

        return wrong

    for value in (0.0, torch.nan):
        monkeypatch.setattr(bitsandbytes, "matmul_4bit", spoil(value))
        assert not is_computed_rightly((512, 128), CPU, torch.bfloat16, True)


def test_a_loaded_model_answers_before_it_learns_without_being_repacked(tmp_path):
    write_tiny(tmp_path / "model", 0, SIZES)
    held = plan_quantization(
        str(tmp_path / "model"), rules_of("qlora"), QuantizationSettings(), "float32"
    )
    model = load(str(tmp_path / "model"), 4, quantization=held).model
    layers = [one for one in model.modules() if isinstance(one, Linear4bit)]
    packed = [one.weight.data.clone() for one in layers]
    with torch.no_grad():
        model.eval()(torch.arange(3, 30)[None])
    assert layers
    assert not any(one.support_avx512bf16_for_cpu for one in layers)
    assert all(one.weight.data.equal(before) for one, before in zip(layers, packed, strict=True))
    assert not any(
        getattr(one.weight.quant_state, "packing_format_for_cpu", False) for one in layers
    )
