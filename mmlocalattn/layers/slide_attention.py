"""Slide attention as a layer with two paths for training that fold into one for inference."""

from typing import Any

import torch
from torch import Tensor, nn

from mmlocalattn.ops.slide import shift_kernel, slide_attention


class SlideAttention(nn.Module):
    """Multi-head slide attention with its projections.

    See :func:`~mmlocalattn.ops.slide.slide_attention`. Keys and values slide by depthwise kernels
    of two paths: ``shift``, fixed one-hot kernels with a learned bias, and ``deform``, learned
    kernels. :meth:`merge` folds them into one, ``merged``. Checkpoints of either form load in
    layers of either form. Source: ``SlideAttention`` in Slide-Transformer's ``slide_swin.py``,
    which has both paths and does not merge them.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads. They share the kernels.
        kernel_size: Side of the window: 3, 5 or 7.
        qkv_bias: Bias of the projection to query, key and value.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``num_heads`` or ``kernel_size`` not one of
            those.
    """

    shift_weight: Tensor

    def __init__(
        self, dim: int, num_heads: int, kernel_size: int = 3, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim must be a multiple of num_heads, got {dim=}, {num_heads=}')
        self.num_heads = num_heads
        weight = shift_kernel(dim // num_heads, kernel_size)  # (head_dim, k * k, k, k)
        self.register_buffer('shift_weight', weight, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.shift = nn.ParameterDict({'bias': torch.empty(weight.shape[:2])})
        self.deform = nn.ParameterDict(
            {'weight': torch.empty_like(weight), 'bias': torch.empty(weight.shape[:2])}
        )
        self.merged: nn.ParameterDict | None = None
        self.rel_pos_bias = nn.Parameter(torch.empty(num_heads, kernel_size, kernel_size))
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.rel_pos_bias, std=0.02)
        for parameter in (*self.shift.values(), *self.deform.values()):
            nn.init.uniform_(parameter, -1 / kernel_size, 1 / kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(3)  # each (B, H, W, num_heads, head_dim)
        weight, bias = self._kernels()
        output = slide_attention(query, key, value, weight, bias, self.rel_pos_bias)
        return self.proj(output.flatten(3))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        _adapt_form(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold both paths into one, which saves memory and the sum in every call.

        Raises:
            RuntimeError: If they are merged already.
        """
        if self.merged is not None:
            raise RuntimeError('the paths of this SlideAttention are merged already')
        weight, bias = self._kernels()
        dtype = self.deform['weight'].dtype
        self.merged = nn.ParameterDict({'weight': weight.to(dtype), 'bias': bias.to(dtype)})
        del self.shift, self.deform

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """Weight (head_dim, k * k, k, k) and bias (head_dim, k * k) of both paths together."""
        if self.merged is not None:
            return self.merged['weight'], self.merged['bias']
        return _fold(
            self.shift_weight, self.shift['bias'], self.deform['weight'], self.deform['bias']
        )


def _fold(
    shift_weight: Tensor, shift_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum the paths, at least in fp32: in lower precisions a sum with 1 rounds the weight away."""
    compute = torch.promote_types(weight.dtype, torch.float32)
    return shift_weight + weight.to(compute), shift_bias.to(compute) + bias


def _adapt_form(layer: SlideAttention, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give the paths of a checkpoint the form of the layer that loads it.

    A merged path becomes the deformed one, less the shift, beside a shift without bias. An
    incomplete form stays as it is, and loading reports it.
    """
    two = [f'{prefix}{name}' for name in ('shift.bias', 'deform.weight', 'deform.bias')]
    one = [f'{prefix}{name}' for name in ('merged.weight', 'merged.bias')]
    given, wanted = (one, two) if layer.merged is None else (two, one)
    if not all(name in state_dict for name in given):
        return
    tensors = [state_dict.pop(name) for name in given]
    *_, weight, bias = tensors
    shift = shift_kernel(weight.shape[0], weight.shape[-1]).to(weight)
    if layer.merged is None:
        tensors = [torch.zeros_like(bias), weight - shift, bias]
    else:
        tensors = [*_fold(shift, *tensors)]
    state_dict.update(zip(wanted, tensors))
