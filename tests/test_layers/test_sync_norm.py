"""SyncBN on a CPU: two processes of unequal batches do what one does with both."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmlocalattn.registry import MODELS

SIZES = (3, 1)  # pictures of each process


def build(**options: object) -> nn.Module:
    torch.manual_seed(0)
    norm = MODELS.build(dict(type='CPUSyncBN', num_features=3, **options))
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def answers(norm: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output, the gradients, and the statistics after two steps."""
    x = x.clone().requires_grad_()
    norm(x * 2 - 1)
    output = norm(x)
    grads = torch.autograd.grad(output, [x, *norm.parameters()], upstream)
    return [output.detach(), *grads, *(buffer.double() for buffer in norm.buffers())]


def in_process(rank: int, port: int, options: dict, path: Path) -> None:
    torch.set_num_threads(1)
    address = f'tcp://127.0.0.1:{port}'
    torch.distributed.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    x, upstream = inputs(options)
    torch.save(answers(build(**options), x.split(SIZES)[rank], upstream.split(SIZES)[rank]), path)


def inputs(options: dict) -> Tensor:
    """A map whose mean is far above its deviation, and what flows back."""
    torch.manual_seed(1)
    maps = torch.stack([torch.randn(4, 3, 5, 6) + 100, torch.randn(4, 3, 5, 6)])
    return maps.to(options.get('dtype', torch.float32))


@pytest.mark.parametrize(
    'options',
    [{}, dict(momentum=None), dict(affine=False), dict(dtype=torch.float64)],
    ids=str,
)
def test_two_processes_equal_one(options: dict, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                in_process(rank, port, options, tmp_path / str(rank))
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    norm = build(**options)
    reference = nn.BatchNorm2d(3, **options)
    reference.load_state_dict(norm.state_dict())
    expected = answers(reference, *inputs(options))
    allowed = 1e-9 if 'dtype' in options else 1e-4
    parameters = len([*norm.parameters()])
    for index, theirs in enumerate(expected):
        if index < 2:  # of the map
            ours = torch.cat([first[index], second[index]])
        elif index < 2 + parameters:  # each process has its share
            ours = first[index] + second[index]
        else:
            ours = first[index]
            torch.testing.assert_close(second[index], ours, rtol=0, atol=0)
        torch.testing.assert_close(ours, theirs, rtol=allowed, atol=allowed)


def test_in_evaluation() -> None:
    """With the statistics that are known, in one process too."""
    norm = build().eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        norm(x),
        nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        ),
    )


@pytest.mark.parametrize('shape', [(4, 3), (2, 3, 5), (2, 3, 4, 5)], ids=str)
def test_in_a_training_of_one_process(shape: tuple[int, ...]) -> None:
    """As a config that several processes have trained asks for it."""
    torch.manual_seed(0)
    norm, x = build(), torch.randn(shape)
    expected = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=norm.eps)
    torch.testing.assert_close(norm(x), expected)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(axes))
