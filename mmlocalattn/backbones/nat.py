"""NAT and DiNAT, (dilated) neighborhood attention transformers (arXiv 2204.07143, 2209.15001).

Source of what the papers leave open: ``classification/{nat,dinat}.py`` and the configurations of
``detection`` and ``segmentation`` of the released code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmlocalattn.backbones.pyramid import PyramidBackbone, Stage, resolve_arch
from mmlocalattn.layers.drop_path import drop_path_rates
from mmlocalattn.layers.mlp import MLP
from mmlocalattn.layers.neighborhood_attention import NeighborhoodAttention
from mmlocalattn.layers.patch_embed import ConvDownsample, ConvTokenizer
from mmlocalattn.layers.transformer_block import TransformerBlock
from mmlocalattn.layers.weight_init import init_linear
from mmlocalattn.registry import MODELS


def _arch(
    width: int, third_depth: int, mlp_ratio: int, layer_scale: float | None = None
) -> dict[str, Sequence]:
    """Widths double from stage to stage, a head has 32 channels."""
    return {
        'embed_dims': tuple(width << stage for stage in range(4)),
        'depths': (3, 4, third_depth, 5),
        'num_heads': tuple((width << stage) // 32 for stage in range(4)),
        'mlp_ratios': (mlp_ratio,) * 4,
        'layer_scale': (layer_scale,) * 4,
    }


@MODELS.register_module()
class NAT(PyramidBackbone):
    """NAT backbone: feature maps of stride 4, 8, 16 and 32.

    For classification, ``out_indices=(3,)`` with mmpretrain's ``GlobalAveragePooling`` and
    ``LinearClsHead`` is the released model: its last norm is the output norm.

    Args:
        arch: ``'mini'``, ``'tiny'``, ``'small'``, ``'base'``, or a dict of one value per stage
            under each of the keys of :attr:`arch_settings` (``layer_scale`` may be left out).
        in_channels: Of the image.
        drop_path_rate: Of the last block; rises linearly from 0 at the first. Published for
            classification: 0.2 (mini, tiny), 0.3 (small), 0.5 (base).
        kernel_size: Odd window of the attention, in taps.
        dilations: For each stage the distances between taps through which its blocks cycle; None
            is 1 everywhere.
        pad_small_maps: Whether a map that is smaller than a window grows by zeros, as in the
            released models, or the window comes closer together, which costs less and lets no
            query attend to padding. See ``pad`` of
            :class:`~mmlocalattn.layers.neighborhood_attention.NeighborhoodAttention`. It matters
            to the released DiNAT detectors on images with a side below 784 pixels.
        **options: Of :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`, after ``stages``.

    Raises:
        ValueError: If ``arch``, ``dilations`` or another option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        'mini': _arch(64, 6, 3),
        'tiny': _arch(64, 18, 3),
        'small': _arch(96, 18, 2, layer_scale=1e-5),
        'base': _arch(128, 18, 2, layer_scale=1e-5),
    }

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        *,
        drop_path_rate: float = 0.0,
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        pad_small_maps: bool = False,
        **options: Any,
    ) -> None:
        settings = resolve_arch(arch, self.arch_settings, optional=('layer_scale',))
        dims, depths = settings['embed_dims'], settings['depths']
        layer_scale = settings.get('layer_scale', [None] * len(dims))
        cycles = [(1,)] * len(dims) if dilations is None else dilations
        if len(cycles) != len(dims) or not all(cycles):
            raise ValueError(
                f'dilations must list those of each of {len(dims)} stages, got {dilations=}'
            )
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (dim, cycle) in enumerate(zip(dims, cycles)):
            blocks = [
                TransformerBlock(
                    dim,
                    NeighborhoodAttention(
                        dim,
                        settings['num_heads'][i],
                        kernel_size,
                        cycle[j % len(cycle)],
                        pad=pad_small_maps,
                    ),
                    MLP(dim, int(settings['mlp_ratios'][i] * dim)),
                    rates[i][j],
                    layer_scale[i],
                )
                for j in range(depths[i])
            ]
            stages.append(Stage(blocks, dim, _downsample(dims[i - 1], dim) if i else None))
        stem = ConvTokenizer(in_channels, dims[0])
        super().__init__(stem, stages, norm_eps=1e-5, **options)
        self.apply(init_linear)


@MODELS.register_module()
class DiNAT(NAT):
    """DiNAT backbone: NAT whose blocks look at neighbors and, in turn, at distant positions.

    Args:
        arch: As for :class:`NAT`, also ``'large'``.
        dilations: Name in :attr:`dilation_settings`, or the dilations themselves as for
            :class:`NAT`. The weights do not depend on them.
        **options: Of :class:`NAT`. Drop path published for classification of large: 0.35.

    Raises:
        ValueError: As for :class:`NAT`.
    """

    arch_settings: Mapping[str, Mapping] = {
        'mini': _arch(64, 6, 3),
        'tiny': _arch(64, 18, 3),
        'small': _arch(96, 18, 2),
        'base': _arch(128, 18, 2, layer_scale=1e-5),
        'large': _arch(192, 18, 2),
    }
    dilation_settings: Mapping[str, Sequence[Sequence[int]]] = {
        'imagenet': ((1, 8), (1, 4), (1, 2), (1,)),
        'imagenet_384': ((1, 13), (1, 6), (1, 3), (1,)),
        'coco': ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),
        'ade20k': ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),
        'ade20k_640': (
            (1, 20),
            (1, 5, 1, 10),
            (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
            (1, 2),
        ),
        'mask2former': (
            (1, 14),
            (1, 4, 1, 7),
            (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3),
            (1,),
        ),
    }
    """Released sets by the data they were chosen for: images of 224 and 384 pixels, COCO's
    800 x 1333, ADE20K crops of 512 and 640 pixels (the last with large only), and Mask2Former,
    which has large with windows of 11."""

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        dilations: str | Sequence[Sequence[int]] = 'imagenet',
        **options: Any,
    ) -> None:
        if isinstance(dilations, str):
            if dilations not in self.dilation_settings:
                raise ValueError(
                    f'dilations must be one of {list(self.dilation_settings)} or a list for each '
                    f'stage, got {dilations=}'
                )
            dilations = self.dilation_settings[dilations]
        super().__init__(arch, dilations=dilations, **options)


def _downsample(in_channels: int, out_channels: int) -> nn.Module:
    return ConvDownsample(in_channels, out_channels, {'type': 'LN'}, bias=False)
