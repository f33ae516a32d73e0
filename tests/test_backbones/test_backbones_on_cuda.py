"""Whole backbones on a GPU against the CPU: fp32, AMP and CUDA graphs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmlocalattn.backbones import NAT, QnAViT, SASAResNet, SlideSwin, SSViT

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    'SSViT-T': lambda: SSViT('tiny'),
    'NAT-T': lambda: NAT('tiny'),
    'Slide-Swin-T': lambda: SlideSwin('tiny'),
    'QnA-ViT-T': lambda: QnAViT('tiny'),
    'SASA-26': lambda: SASAResNet(26),
}
IMAGE = (2, 3, 160, 224)


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    """On the CPU, without dropout or statistics of a batch."""
    torch.manual_seed(0)
    return BACKBONES[request.param]().eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error as a fraction of the largest expected value."""
    expected = expected.detach().double().cpu()
    error = (actual.detach().double().cpu() - expected).abs().max()
    return (error / expected.abs().max().clamp(min=1e-6)).item()


def step(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """Outputs, and gradients of the image and of all parameters."""
    image = image.detach().requires_grad_()
    outputs = backbone(image)
    inputs = [image, *(param for param in backbone.parameters() if param.requires_grad)]
    loss = sum(output.float().square().mean() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def check_against_cpu(backbone: nn.Module, device: str) -> None:
    image = torch.randn(IMAGE)
    expected = step(backbone, image)
    actual = step(backbone.to(device), image.to(device))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.device.type == device
        assert relative_error(ours, theirs) < 1e-3


def check_autocast(backbone: nn.Module, device: str) -> None:
    """Its error is at most twice that of the CPU at the same precision."""
    image = torch.randn(IMAGE)
    with torch.no_grad():
        exact = backbone(image)
        with torch.autocast('cpu', torch.bfloat16):
            rounded = backbone(image)
    with torch.autocast(device, torch.bfloat16):
        results = step(backbone.to(device), image.to(device))
    for ours, theirs, truth in zip(results, rounded, exact):
        assert relative_error(ours, truth) <= 2 * max(relative_error(theirs, truth), 2**-8)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.cuda
def test_is_that_of_the_cpu(backbone: nn.Module) -> None:
    check_against_cpu(backbone, 'cuda')


@pytest.mark.cuda
def test_autocast(backbone: nn.Module) -> None:
    check_autocast(backbone, 'cuda')


@pytest.mark.cuda
def test_cuda_graph(backbone: nn.Module) -> None:
    """A graph of forward and backward repeats what they do, for another image too."""
    backbone, images = backbone.cuda(), torch.randn(2, *IMAGE, device='cuda')
    expected = [step(backbone, image) for image in images]
    image, graph, stream = images[0].clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(backbone, image)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        actual = step(backbone, image)
    for other, results in zip(images, expected):
        image.copy_(other)
        graph.replay()
        for ours, theirs in zip(actual, results, strict=True):
            assert relative_error(ours, theirs) < 1e-5
