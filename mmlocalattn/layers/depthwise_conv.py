"""Depthwise convolution of a channels-last map."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.layers.residual import add_residual
from mmlocalattn.ops._library import autocasted, is_autocasting, is_compiling

_FAST_COLUMNS = 3
"""Of a kernel: up to so many, oneDNN has a fast weight gradient for depthwise convolutions."""


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the size, on (B, H, W, C) maps.

    A channels-last map is an NCHW tensor in ``torch.channels_last`` order, so nothing is copied
    on the way.

    Args:
        dim: Channels.
        kernel_size: Odd.
        residual: Add the input to the output. In fp32 the kernel does it by its centre, which
            saves a pass over the map in forward and one in backward; in lower precisions
            ``1 + weight`` would round the weight away.
    """

    identity: Tensor

    def __init__(self, dim: int, kernel_size: int, residual: bool = False) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.residual = residual
        identity = torch.zeros(kernel_size, kernel_size)
        identity[kernel_size // 2, kernel_size // 2] = 1
        self.register_buffer('identity', identity, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        folds = self.residual and x.dtype == torch.float32 and not is_autocasting(x)
        weight = self.weight + self.identity if folds else self.weight
        image = x.permute(0, 3, 1, 2)
        if self.bias is not None and self._trains_wide_kernel(x):
            output = _WideDepthwiseConv.apply(*autocasted(image, weight, self.bias))
        else:
            output = self._conv_forward(image, weight, self.bias)
        output = output.permute(0, 2, 3, 1).contiguous()
        return add_residual(output, x) if self.residual and not folds else output

    def _trains_wide_kernel(self, x: Tensor) -> bool:
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        is_traced = torch.jit.is_tracing() or is_compiling()
        is_wide = self.weight.shape[3] > _FAST_COLUMNS
        return is_wide and trains and x.device.type == 'cpu' and not is_traced


class _WideDepthwiseConv(torch.autograd.Function):
    """Depthwise convolution (NCHW) whose weight gradient is computed for few columns at a time.

    The same numbers: of a 5 x 5 kernel, oneDNN's own takes 8 times as long on large maps.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        return F.conv2d(x, weight, bias, padding=padding, groups=weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        rows, columns = weight.shape[2] // 2, weight.shape[3] // 2
        grad_x = None
        if ctx.needs_input_grad[0]:
            # Of x it takes the shape alone, which grad has; x may be a slice, to be copied first.
            grad_x, _ = _gradients(grad, grad, weight, (rows, columns), (True, False))
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, columns, columns))
        parts: list[Tensor] = []
        for taps in weight.split(_FAST_COLUMNS, dim=3):
            first = sum(part.shape[3] for part in parts)
            seen = padded.narrow(2, first, x.shape[3] + taps.shape[3] - 1).contiguous()
            seen = seen.permute(0, 3, 1, 2)
            parts.append(_gradients(grad, seen, taps, (rows, 0), (False, True))[1])
        return grad_x, torch.cat(parts, dim=3), grad.sum((0, 2, 3))


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Of a depthwise convolution without a bias: those that are wanted of input and weight."""
    return torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), weight.shape[0]),
        (*wanted, False),
    )[:2]
