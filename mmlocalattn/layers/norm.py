"""Normalisation of NCHW maps by the ``norm_cfg`` of the OpenMMLab configs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlocalattn.layers.sync_norm import CPUSyncBatchNorm


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, type[nn.Module]] = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'CPUSyncBN': CPUSyncBatchNorm,
    'LN': ChannelNorm,
}


def build_norm(norm_cfg: Mapping | None, channels: int) -> nn.Module:
    """Build the normalisation of an NCHW map, with mmcv's names and keys.

    Args:
        norm_cfg: ``type`` is ``'BN'``, ``'SyncBN'``, ``'CPUSyncBN'``, ``'GN'`` (with
            ``num_groups``) or ``'LN'`` (over the channels); ``requires_grad=False`` freezes weight
            and bias; other keys go to the layer. None means ``'BN'``.
        channels: C of the map.

    Raises:
        ValueError: If the type is unknown, or ``'GN'`` lacks ``num_groups``.
    """
    options = {'type': 'BN', **(norm_cfg or {})}
    name = options.pop('type').removeprefix('mmlocalattn.')  # the scope, for mmcv's layers
    requires_grad = options.pop('requires_grad', True)
    if name == 'GN':
        if 'num_groups' not in options:
            raise ValueError(f'GN needs num_groups, got {norm_cfg=}')
        norm: nn.Module = nn.GroupNorm(num_channels=channels, **options)
    elif name in NORMS:
        norm = NORMS[name](channels, **options)
    else:
        raise ValueError(f'norm type must be one of {sorted([*NORMS, "GN"])}, got {norm_cfg=}')
    return norm.requires_grad_(requires_grad)


def fixed_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The scale and shift of a norm that does not look at its input.

    Folding them into the weights of the linear map before the norm saves a pass over the map, and
    in training what the norm would keep of it. Gradients reach the norm's weight and bias.

    Args:
        norm: Any normalisation.

    Returns:
        Scale and shift, both (C,), of a BatchNorm that uses its running statistics; None for every
        other norm.
    """
    if not isinstance(norm, _BatchNorm) or norm.training or norm.running_var is None:
        return None
    assert norm.running_mean is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def norm_channels_last(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the norm of an NCHW map to a (B, H, W, C) map."""
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
