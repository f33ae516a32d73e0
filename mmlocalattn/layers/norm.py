"""Normalisation of NCHW maps by the ``norm_cfg`` of the OpenMMLab configs."""

from collections.abc import Mapping

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, type[nn.Module]] = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'LN': ChannelNorm,
}


def build_norm(norm_cfg: Mapping | None, channels: int) -> nn.Module:
    """Build the normalisation of an NCHW map, with mmcv's names and keys.

    Args:
        norm_cfg: ``type`` is ``'BN'``, ``'SyncBN'``, ``'GN'`` (with ``num_groups``) or ``'LN'``
            (over the channels); ``requires_grad=False`` freezes weight and bias; other keys go to
            the layer. None means ``'BN'``.
        channels: C of the map.

    Raises:
        ValueError: If the type is unknown, or ``'GN'`` lacks ``num_groups``.
    """
    options = {'type': 'BN', **(norm_cfg or {})}
    name, requires_grad = options.pop('type'), options.pop('requires_grad', True)
    if name == 'GN':
        if 'num_groups' not in options:
            raise ValueError(f'GN needs num_groups, got {norm_cfg=}')
        norm: nn.Module = nn.GroupNorm(num_channels=channels, **options)
    elif name in NORMS:
        norm = NORMS[name](channels, **options)
    else:
        raise ValueError(f'norm type must be one of {sorted([*NORMS, "GN"])}, got {norm_cfg=}')
    return norm.requires_grad_(requires_grad)
