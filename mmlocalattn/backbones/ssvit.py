"""SSViT, a vision transformer with a sparse scan prior (arXiv 2405.13335).

Source of what the paper leaves open: ``classfication_release/SSViT.py`` of the released code.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmlocalattn.backbones.pyramid import PyramidBackbone, Stage, resolve_arch
from mmlocalattn.layers.depthwise_conv import DepthwiseConv2d
from mmlocalattn.layers.drop_path import DropPath, drop_path_rates
from mmlocalattn.layers.layer_scale import LayerScale
from mmlocalattn.layers.mlp import ConvFFN
from mmlocalattn.layers.patch_embed import ConvDownsample, ConvStem
from mmlocalattn.layers.residual import add_residual
from mmlocalattn.layers.rotary import rotary_table
from mmlocalattn.layers.scan_geometry import ScanGeometry, adaptive_scan, spread_scan
from mmlocalattn.layers.sparse_scan_attention import SparseScanAttention
from mmlocalattn.registry import MODELS

Scan = Callable[[int, int], ScanGeometry]


class SSViTBlock(nn.Module):
    """Positional convolution, sparse scan attention, feed-forward network, each added to its input.

    Args:
        dim: Channels.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the feed-forward network over ``dim``.
        scan: Windows of the attention for a map of (height, width).
        drop_path_rate: Probability of dropping a branch of a sample.
        layer_scale: Initial factor on both branches; None has no factors.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        scan: Scan,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.pos_conv = DepthwiseConv2d(dim, 3, residual=True)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SparseScanAttention(dim, num_heads, scan)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ConvFFN(dim, int(mlp_ratio * dim))
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(B, H, W, C) and the rotary table (sin, cos), each (H, W, head_dim), to (B, H, W, C)."""
        x = self.pos_conv(x)
        x = add_residual(self.drop_path(self.scale1(self.attn(self.norm1(x), rotary))), x)
        return add_residual(self.drop_path(self.scale2(self.ffn(self.norm2(x)))), x)


class SSViTStage(Stage):
    """Blocks that share a rotary table.

    Args:
        blocks: SSViT blocks.
        out_channels: Of the stage.
        head_dim: Channels of one head.
        downsample: See :class:`~mmlocalattn.backbones.pyramid.Stage`.
    """

    def __init__(
        self,
        blocks: Sequence[SSViTBlock],
        out_channels: int,
        head_dim: int,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__(blocks, out_channels, downsample)
        self.head_dim = head_dim

    def shared_inputs(self, x: Tensor) -> tuple:
        """The rotary table of the map (B, H, W, C)."""
        return (rotary_table(x.shape[1], x.shape[2], self.head_dim, x.device),)


@MODELS.register_module()
class SSViT(PyramidBackbone):
    """SSViT backbone: feature maps of stride 4, 8, 16 and 32.

    ``scan`` decides where attention looks once the map is larger than in pre-training.
    Multiply-adds of the attention windows for one image (in 1e9; a 224 x 224 image costs the same
    by both rules):

    =======  =========  ==================  ===============
    arch     224 x 224  adaptive, 800x1280  fixed, 800x1280
    =======  =========  ==================  ===============
    tiny          0.19               18.75             3.91
    small         0.35               31.33             7.05
    base          0.63               55.89            12.90
    large         0.88               78.16            17.99
    =======  =========  ==================  ===============

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, or a dict of one value per stage
            under each of the keys of :attr:`arch_settings` (``layer_scale`` may be left out).
        in_channels: Of the image.
        drop_path_rate: Of the last block; rises linearly from 0 at the first. Published for
            classification: 0.1 (tiny), 0.15 (small), 0.4 (base), 0.5 (large).
        scan: ``'adaptive'``, the released rule, whose windows and anchors grow with the map;
            ``'fixed'``, the kernels of a 224-pixel image with anchors spread over the map (our
            choice); or one entry per stage, each such a name, the dict of the arguments of
            :func:`~mmlocalattn.layers.scan_geometry.spread_scan`, or a sequence of such dicts
            through which the blocks of the stage cycle.
        norm_cfg: Norm of the stem and between stages, ``dict(type='BN')`` if None; ``'SyncBN'``
            suits many GPUs.
        **options: Of :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`, after ``stages``.

    Raises:
        ValueError: If ``arch``, ``scan`` or another option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        'tiny': {
            'embed_dims': (64, 128, 256, 512),
            'depths': (2, 2, 9, 2),
            'num_heads': (2, 4, 8, 16),
            'mlp_ratios': (4, 4, 3, 3),
            'layer_scale': (None, None, None, None),
        },
        'small': {
            'embed_dims': (64, 128, 256, 512),
            'depths': (3, 5, 18, 4),
            'num_heads': (2, 4, 8, 16),
            'mlp_ratios': (4, 4, 3, 3),
            'layer_scale': (None, None, None, None),
        },
        'base': {
            'embed_dims': (80, 160, 320, 512),
            'depths': (4, 9, 25, 9),
            'num_heads': (5, 5, 10, 16),
            'mlp_ratios': (4, 4, 3, 3),
            'layer_scale': (None, None, 1e-6, 1e-6),
        },
        'large': {
            'embed_dims': (112, 224, 448, 640),
            'depths': (4, 9, 25, 9),
            'num_heads': (7, 7, 14, 20),
            'mlp_ratios': (4, 4, 3, 3),
            'layer_scale': (None, None, 1e-6, 1e-6),
        },
    }

    def __init__(
        self,
        arch: str | Mapping = 'small',
        in_channels: int = 3,
        *,
        drop_path_rate: float = 0.0,
        scan: str | Sequence = 'adaptive',
        norm_cfg: Mapping | None = None,
        **options: Any,
    ) -> None:
        settings = resolve_arch(arch, self.arch_settings, optional=('layer_scale',))
        dims, depths, heads = settings['embed_dims'], settings['depths'], settings['num_heads']
        layer_scale = settings.get('layer_scale', [None] * len(dims))
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, cycle in enumerate(_scan_cycles(scan, len(dims))):
            blocks = [
                SSViTBlock(
                    dims[i],
                    heads[i],
                    settings['mlp_ratios'][i],
                    cycle[j % len(cycle)],
                    rates[i][j],
                    layer_scale[i],
                )
                for j in range(depths[i])
            ]
            downsample = ConvDownsample(dims[i - 1], dims[i], norm_cfg) if i else None
            stages.append(SSViTStage(blocks, dims[i], dims[i] // heads[i], downsample))
        super().__init__(ConvStem(in_channels, dims[0], norm_cfg), stages, **options)
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    """As released: normal weights of deviation 0.02 (the truncation there is far out), no bias."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _scan_cycles(scan: str | Sequence, num_stages: int) -> list[list[Scan]]:
    """For each stage, the rules through which its blocks cycle."""
    entries = [scan] * num_stages if isinstance(scan, str) else list(scan)
    if len(entries) != num_stages:
        raise ValueError(
            f'scan must be a name or have one entry for each of {num_stages} stages, got {scan=}'
        )
    return [_scan_cycle(entry, 224 // (4 << stage)) for stage, entry in enumerate(entries)]


def _scan_cycle(entry: str | Mapping | Sequence[Mapping], pretrain_side: int) -> list[Scan]:
    """The rules of one stage, whose map of a 224-pixel image has ``pretrain_side`` rows."""
    orders = (False, True)
    if entry == 'adaptive':
        return [partial(adaptive_scan, grid_first=order) for order in orders]
    if entry == 'fixed':
        scans = [adaptive_scan(pretrain_side, pretrain_side, order) for order in orders]
        entry = [
            {'local_kernel': scan.local_kernel[0], 'anchor_kernel': scan.anchor_kernel[0]}
            for scan in scans
        ]
    if isinstance(entry, str):
        raise ValueError(f"scan must be 'adaptive', 'fixed' or one entry per stage, got {entry!r}")
    return [_explicit_scan(rule) for rule in ([entry] if isinstance(entry, Mapping) else entry)]


def _explicit_scan(rule: Mapping) -> Scan:
    valid = ('local_kernel', 'anchor_kernel', 'anchor_dilation')
    if not {'local_kernel', 'anchor_kernel'} <= set(rule) <= set(valid):
        raise ValueError(
            f'a scan dict must have the keys {valid} (anchor_dilation optional), got {dict(rule)}'
        )
    scan: Scan = partial(spread_scan, **rule)
    scan(1, 1)  # checks the values
    return scan
