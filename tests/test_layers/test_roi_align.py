"""RoIAlign on all cores gives what mmcv's gives."""

import pytest
import torch
from mmcv.ops import RoIAlign
from torch import Tensor

from mmlocalattn.layers.roi_align import roi_align

SCALE = 1 / 16


def boxes(dtype: torch.dtype) -> Tensor:
    """Of all sizes, in and around two images of 200 x 336 pixels."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(100, 2, generator=generator) * torch.tensor([336.0, 200.0])
    sides = torch.rand(100, 2, generator=generator) ** 3 * 336
    image = torch.randint(2, (100, 1), generator=generator)
    rois = torch.cat([image, centers - sides / 2, centers + sides / 2], 1)
    rois[0, 3:] = rois[0, 1:3]  # without extent
    rois[1, 4] = rois[1, 2]
    rois[2, 1:] += 5000  # outside
    rois[3, 1:] -= 5000
    rois[4] = torch.tensor([0, 0.0, 0.0, 336.0, 200.0])
    return rois.to(dtype)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('size', [(7, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_same_as_mmcv(
    aligned: bool, size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 6, 13, 21, dtype=dtype)
    theirs, ours = features.clone().requires_grad_(), features.clone().requires_grad_()
    rois = boxes(dtype)
    expected = RoIAlign(size, SCALE, 0, aligned=aligned)(theirs, rois)
    actual = roi_align(ours.contiguous(memory_format=layout), rois, size, SCALE, aligned)
    tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=1e-12, rtol=0)
    torch.testing.assert_close(actual, expected, **tolerance)
    assert expected[0].eq(0).all() == aligned  # else it has a pixel at least
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    actual.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


def test_no_boxes() -> None:
    output = roi_align(torch.zeros(1, 4, 5, 5), torch.zeros(0, 5), (2, 3), 1.0)
    assert output.shape == (0, 4, 2, 3)


def test_boxes_that_end_before_they_begin() -> None:
    rois = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0], [0, 3.0, 1.0, 2.0, 4.0]])
    with pytest.raises(ValueError, match=r'must not end before they begin, got .*3\., 1\., 2\.'):
        roi_align(torch.zeros(1, 4, 5, 5), rois, (2, 2), 1.0)


def test_learned_boxes_get_no_gradient() -> None:
    features = torch.rand(1, 4, 5, 5, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0]], requires_grad=True)
    roi_align(features, rois, (2, 2), 1.0).sum().backward()
    assert features.grad.any()
    assert rois.grad is None


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('aligned', [True, False])
def test_boxes_without_end(value: float, aligned: bool) -> None:
    rois = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0], [0, 1.0, 1.0, 2.0, value]])
    with pytest.raises(ValueError, match=rf'must be finite, got .* 2\., +{value}\].*diverged'):
        roi_align(torch.zeros(1, 4, 5, 5), rois, (2, 2), 1.0, aligned)
