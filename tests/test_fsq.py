"""The quantizer: every code there and back, precision, and a start that does not collapse."""

import numpy as np
import pytest
import torch

from ae_trainer import AutoEncoder, codebook_report
from tests.golden import recipe
from utils.errors import InputError
from utils.fsq import FSQ, PUBLISHED


def test_sizes_agree():
    assert np.prod(PUBLISHED.levels) == PUBLISHED.size == PUBLISHED.padding == PUBLISHED.vocabulary - 1
    assert list(PUBLISHED.basis) == np.cumprod([1, *PUBLISHED.levels[:-1]]).tolist()


def test_every_code_there_and_back():
    quantizer = FSQ(8)
    indices = torch.arange(PUBLISHED.size)
    codes = quantizer.indices_to_codes(indices)
    assert codes.unique(dim=0).shape[0] == PUBLISHED.size
    assert codes.abs().max() <= 1
    assert torch.equal(quantizer.codes_to_indices(codes), indices)


def test_every_code_can_be_reached():
    """Numbers that the bound maps onto each level's middle are quantised to that level."""
    quantizer = FSQ(8)
    indices = torch.arange(PUBLISHED.size)
    digits = quantizer.indices_to_codes(indices) * quantizer.half_width
    z = torch.atanh(((digits + quantizer.offset) / quantizer.half_range).double().clamp(-0.9999, 0.9999)).float()
    reached = quantizer.codes_to_indices(quantizer.quantize(z - quantizer.shift))
    assert torch.equal(reached, indices)


def test_autocast_does_not_change_codes():
    torch.manual_seed(0)
    quantizer, x = FSQ(24), torch.randn(500, 24)
    expected = quantizer(x)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, indices = quantizer(x)
    assert torch.equal(indices, expected)
    assert quantized.dtype == torch.float32


def test_gradient_passes_straight_through():
    quantizer = FSQ(8)
    z = torch.randn(3, 5, requires_grad=True)
    quantizer.quantize(z).sum().backward()
    bounded = z.detach().clone().requires_grad_()
    (quantizer.bound(bounded) / quantizer.half_width).sum().backward()
    torch.testing.assert_close(z.grad, bounded.grad)


@pytest.mark.parametrize("init", ["plain", "data"])
def test_every_tensor_of_the_tokenizer_starts_as_published(init):
    """The decoder from N(0, 0.02) with biases 0 and norms 1 and 0; the quantizer by torch; data change one tensor."""
    torch.manual_seed(1)
    model = AutoEncoder(768)
    if init == "data":
        model.start_from(recipe.embeddings(500, 768, 0))
    for name, value in model.state_dict().items():
        if "norm.weight" in name:
            assert (value == 1).all(), name
        elif name.startswith("decoder.") and name.endswith("bias"):
            assert (value == 0).all(), name
        elif name.startswith("decoder."):
            assert value.std().item() == pytest.approx(0.02, rel=0.1) and value.mean().abs() < 0.002, name
        elif not (init == "data" and "project_in" in name):
            bound = 1 / np.sqrt(192 if "project_in" in name else 5)  # uniform, by the width that goes in
            assert value.abs().max() <= bound, name
            if value.numel() > 5:
                assert value.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.2), name


def test_start_from_data_does_not_collapse():
    rows = recipe.embeddings(3000, 96, seed=3)
    torch.manual_seed(0)
    model = AutoEncoder(96).eval()
    plain = codebook_report(model.tokenize(rows), rows)
    model.start_from(rows)
    report = codebook_report(model.tokenize(rows), rows)
    assert report["distinct_share"] > 0.95 > plain["distinct_share"]
    assert report["codes_used"] > 10 * plain["codes_used"]


def test_report_counts():
    codes = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8], [1, 2, 3, 9]], dtype=np.int16)
    embeddings = np.array([[0.0], [0.0], [1.0], [2.0], [3.0]], dtype=np.float32)
    report = codebook_report(codes, embeddings)
    assert report["codes_used"] == 9
    assert report["collisions"] == 4
    assert report["distinct_share"] == 0.5  # four distinct embeddings, two of them alone with their codes


def test_nan_and_width_are_refused():
    model = AutoEncoder(32).eval()
    rows = np.ones((3, 32), dtype=np.float32)
    with pytest.raises(InputError, match="64 wide, the tokenizer expects 32"):
        model.tokenize(np.ones((3, 64), dtype=np.float32))
    rows[1, 4] = np.nan
    with pytest.raises(InputError, match="row 1"):
        model.tokenize(rows)
