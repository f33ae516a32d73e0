"""The operators of the installed mmcv, which tools/setup_env.sh compiles its own way."""

import ast
from pathlib import Path

import mmcv._ext
import mmcv.ops
import pytest
import torch
import torchvision
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)]


def asked_of_the_extension() -> set[str]:
    """The functions that mmcv's Python loads: of every ``ext_loader.load_ext('_ext', [...])``."""
    names = set()
    for file in Path(mmcv.ops.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == 'ext_loader.load_ext':
                names |= set(ast.literal_eval(node.args[1]))
    return names


def test_nothing_is_missing() -> None:
    names = asked_of_the_extension()
    assert len(names) > 100
    assert not names - {*dir(mmcv._ext)}


def random_boxes(number: int, side: float) -> torch.Tensor:
    """(number, 4) corners inside a square."""
    corners = side * torch.rand(number, 2, 2)
    return torch.cat([corners.amin(1), corners.amax(1) + 1], 1)


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align(device: str) -> None:
    x = torch.randn(2, 5, 24, 32, device=device, requires_grad=True)
    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), random_boxes(3, 80)], 1).to(device)
    ours = mmcv.ops.roi_align(x, rois, (7, 7), 0.25, 2, 'avg', True)
    theirs = torchvision.ops.roi_align(x, rois, (7, 7), 0.25, 2, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(ours)
    (grad,) = torch.autograd.grad(ours, x, weight)
    torch.testing.assert_close(
        grad, torch.autograd.grad(theirs, x, weight)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize('device', DEVICES)
def test_nms(device: str) -> None:
    boxes, scores = random_boxes(200, 100).to(device), torch.rand(200, device=device)
    _, kept = mmcv.ops.nms(boxes, scores, 0.4)
    torch.testing.assert_close(kept, torchvision.ops.nms(boxes, scores, 0.4))
    assert 5 < len(kept) < 200


@pytest.mark.parametrize('device', DEVICES)
def test_deformable_convolution(device: str) -> None:
    x, weight = torch.randn(2, 4, 9, 11, device=device), torch.randn(6, 4, 3, 3, device=device)
    offset = torch.randn(2, 18, 9, 11, device=device)
    mask = torch.rand(2, 9, 9, 11, device=device)
    ours = mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    theirs = torchvision.ops.deform_conv2d(x, offset, weight, padding=1, mask=mask)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
def test_deformable_attention() -> None:
    shapes = torch.tensor([[9, 11], [5, 6]], device='cuda')
    starts = torch.tensor([0, 99], device='cuda')
    value = torch.randn(2, 129, 4, 8, device='cuda')
    locations = torch.rand(2, 7, 4, 2, 3, 2, device='cuda')
    weights = torch.rand(2, 7, 4, 2, 3, device='cuda')
    ours = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    theirs = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
def test_focal_loss() -> None:
    logits, target = torch.randn(20, 5, device='cuda'), torch.randint(6, (20,), device='cuda')
    one_hot = torch.nn.functional.one_hot(target, 6)[:, :5].float()
    ours = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'sum')
    theirs = torchvision.ops.sigmoid_focal_loss(logits, one_hot, reduction='sum')
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
