"""Slide-Transformer: slide attention in the early stages of five hosts (arXiv 2304.04237).

Released is Slide-Swin for images of 224 pixels. Which stages of the other hosts slide, and with
which kernel, is neither published nor released.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmlocalattn.backbones.pyramid import PyramidBackbone, Stage, resolve_arch
from mmlocalattn.layers.cross_window_attention import CrossWindowAttention
from mmlocalattn.layers.drop_path import drop_path_rates
from mmlocalattn.layers.mlp import MLP, ConvMLP
from mmlocalattn.layers.neighborhood_attention import NeighborhoodAttention
from mmlocalattn.layers.patch_embed import (
    ConvDownsample,
    ConvTokenizer,
    PatchEmbed,
    PatchMerging,
    PatchStem,
)
from mmlocalattn.layers.position_embedding import PositionEmbedding
from mmlocalattn.layers.slide_attention import SlideAttention
from mmlocalattn.layers.spatial_reduction_attention import SpatialReductionAttention
from mmlocalattn.layers.transformer_block import TransformerBlock
from mmlocalattn.layers.weight_init import init_conv, init_linear
from mmlocalattn.layers.window_attention import WindowAttention
from mmlocalattn.registry import MODELS


class NormedStage(Stage):
    """A stage that ends with a LayerNorm. Arguments as for its base."""

    def __init__(
        self, blocks: Sequence[nn.Module], out_channels: int, downsample: nn.Module | None = None
    ) -> None:
        super().__init__(blocks, out_channels, downsample)
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)

    def forward(self, x: Tensor, with_cp: bool = False) -> Tensor:
        """(B, H, W, C) of the previous stage to (B, H', W', out_channels)."""
        return self.norm(super().forward(x, with_cp))


class SlideTransformer(PyramidBackbone):
    """What the families share: a host whose first stages have slide attention in their blocks.

    Args:
        settings: Resolved architecture.
        embed: Builds the step down to a stage from its number and the channels before it; that of
            stage 0 is the stem.
        host: Builds the host's attention from the numbers of stage and block.
        in_channels: Of the image.
        drop_path_rate: Of the last block; rises linearly from 0 at the first.
        num_slide_stages: How many stages slide, from the first. 0 is the unmodified host.
        kernel_size: Side of the window of slide attention: 3, 5 or 7.
        norm_eps: Of all LayerNorms.
        mlp: Of the blocks, from channels and hidden channels.
        stage: Class of the stages.
        **options: Of :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`, after ``stages``.

    Raises:
        ValueError: If an option is not valid.
    """

    def __init__(
        self,
        settings: Mapping[str, Sequence],
        embed: Callable[[int, int], nn.Module],
        host: Callable[[int, int], nn.Module],
        in_channels: int = 3,
        *,
        drop_path_rate: float = 0.0,
        num_slide_stages: int = 2,
        kernel_size: int = 3,
        norm_eps: float = 1e-5,
        mlp: Callable[[int, int], nn.Module] = MLP,
        stage: type[Stage] = Stage,
        **options: Any,
    ) -> None:
        dims, depths, heads = settings['embed_dims'], settings['depths'], settings['num_heads']
        if not 0 <= num_slide_stages <= len(dims):
            raise ValueError(f'num_slide_stages must be in 0..{len(dims)}, got {num_slide_stages=}')
        rates = drop_path_rates(drop_path_rate, depths)
        layer_scale = settings.get('layer_scale', [None] * len(dims))
        stages = []
        for i, dim in enumerate(dims):
            slides = i < num_slide_stages
            blocks = [
                TransformerBlock(
                    dim,
                    SlideAttention(dim, heads[i], kernel_size) if slides else host(i, j),
                    mlp(dim, int(settings['mlp_ratios'][i] * dim)),
                    rates[i][j],
                    layer_scale[i],
                    norm_eps,
                )
                for j in range(depths[i])
            ]
            stages.append(stage(blocks, dim, embed(i, dims[i - 1]) if i else None))
        super().__init__(embed(0, in_channels), stages, norm_eps=norm_eps, **options)
        self.apply(init_linear)


def _doubling(
    width: int, depths: Sequence[int], heads: int, mlp_ratio: int, **settings: Sequence
) -> dict[str, Sequence]:
    """Channels and heads double from stage to stage."""
    return {
        'embed_dims': tuple(width << stage for stage in range(4)),
        'depths': depths,
        'num_heads': tuple(heads << stage for stage in range(4)),
        'mlp_ratios': (mlp_ratio,) * 4,
        **settings,
    }


@MODELS.register_module()
class SlideSwin(SlideTransformer):
    """Slide-Swin backbone: feature maps of stride 4, 8, 16 and 32.

    For classification, ``out_indices=(3,)`` with mmpretrain's ``GlobalAveragePooling`` and
    ``LinearClsHead`` is the released model: its last norm is the output norm.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict of one value per stage under each of
            the keys of :attr:`arch_settings`.
        window_size: Of the host's attention, at most the map of a 224-pixel image: stage ``i`` has
            windows of ``min(window_size, 56 >> i)``, and every second block shifts them by half.
            56 has the shapes of the released ImageNet weights (windows of 14 and 7 in stages 2
            and 3, of which one covers the map of a 224-pixel image); 7 suits dense prediction.
        **options: Of :class:`SlideTransformer`, after ``host``. Drop path published for
            classification: 0.2 (tiny), 0.3 (small), 0.5 (base).

    Raises:
        ValueError: If ``arch`` or an option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        'tiny': _doubling(96, (2, 2, 6, 2), 3, 4),
        'small': _doubling(96, (2, 2, 18, 2), 3, 4),
        'base': _doubling(128, (2, 2, 18, 2), 4, 4),
    }

    def __init__(self, arch: str | Mapping = 'tiny', window_size: int = 7, **options: Any) -> None:
        settings = resolve_arch(arch, self.arch_settings)
        dims, heads = settings['embed_dims'], settings['num_heads']

        def embed(stage: int, channels: int) -> nn.Module:
            if stage == 0:
                return PatchStem(channels, dims[0], 4, 4)
            return PatchMerging(channels, dims[stage])

        def host(stage: int, block: int) -> nn.Module:
            window = min(window_size, 56 >> stage)
            return WindowAttention(dims[stage], heads[stage], window, block % 2 * (window // 2))

        super().__init__(settings, embed, host, **options)


@MODELS.register_module()
class SlidePVT(SlideTransformer):
    """Slide-PVT backbone: feature maps of stride 4, 8, 16 and 32.

    Stages 0 and 1 slide, the others keep spatial reduction. Our choice: of all placements only this
    one has the published parameters (12.2 M for tiny, 22.7 M for small), multiply-adds (2.0, 4.0
    and about 6.8 G at 224 x 224) and savings of detectors (21, 36 and 36 G at 800 x 1280). The
    class token of the host is left out: its classifier pools the map.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'medium'``, or a dict of one value per stage under each of
            the keys of :attr:`arch_settings`.
        **options: Of :class:`SlideTransformer`, after ``host``. Released detectors of the host
            have no output norms.

    Raises:
        ValueError: If ``arch`` or an option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        name: {
            'embed_dims': (64, 128, 320, 512),
            'depths': depths,
            'num_heads': (1, 2, 5, 8),
            'mlp_ratios': (8, 8, 4, 4),
            'sr_ratios': (8, 4, 2, 1),
        }
        for name, depths in {
            'tiny': (2, 2, 2, 2),
            'small': (3, 4, 6, 3),
            'medium': (3, 4, 18, 3),
        }.items()
    }

    def __init__(self, arch: str | Mapping = 'tiny', **options: Any) -> None:
        settings = resolve_arch(arch, self.arch_settings)
        dims, heads = settings['embed_dims'], settings['num_heads']

        def embed(stage: int, channels: int) -> nn.Module:
            patches = (
                PatchEmbed(channels, dims[stage], 2, 2)
                if stage
                else PatchStem(channels, dims[stage], 4, 4)
            )
            return nn.Sequential(patches, PositionEmbedding(dims[stage], 56 >> stage))

        def host(stage: int, block: int) -> nn.Module:
            return SpatialReductionAttention(
                dims[stage], heads[stage], settings['sr_ratios'][stage]
            )

        super().__init__(settings, embed, host, norm_eps=1e-6, **options)


@MODELS.register_module()
class SlidePVTv2(SlideTransformer):
    """Slide-PVTv2 backbone: feature maps of stride 4, 8, 16 and 32.

    Stages 0 and 1 slide, the others keep spatial reduction. Our choice: only so are there 13.0 M
    parameters (b1), 2.2, 4.2, about 7.1 and 10.3 G multiply-adds (b1 to b4), and 21 and 36 G less
    in detectors, as published. The parameters of b2 are 23.6 M then, 22.8 M is published; no
    placement of whole stages has that.

    Args:
        arch: ``'b1'`` to ``'b5'``, or a dict of one value per stage under each of the keys of
            :attr:`arch_settings`.
        output_norm: Every stage ends with a norm of its own, so there is none by default.
        **options: Of :class:`SlideTransformer`, after ``host``.

    Raises:
        ValueError: If ``arch`` or an option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        name: {
            'embed_dims': (64, 128, 320, 512),
            'depths': depths,
            'num_heads': (1, 2, 5, 8),
            'mlp_ratios': (4, 4, 4, 4) if name == 'b5' else (8, 8, 4, 4),
            'sr_ratios': (8, 4, 2, 1),
        }
        for name, depths in {
            'b1': (2, 2, 2, 2),
            'b2': (3, 4, 6, 3),
            'b3': (3, 4, 18, 3),
            'b4': (3, 8, 27, 3),
            'b5': (3, 6, 40, 3),
        }.items()
    }

    def __init__(
        self, arch: str | Mapping = 'b1', output_norm: bool = False, **options: Any
    ) -> None:
        settings = resolve_arch(arch, self.arch_settings)
        dims, heads = settings['embed_dims'], settings['num_heads']

        def embed(stage: int, channels: int) -> nn.Module:
            if stage == 0:
                return PatchStem(channels, dims[0], 7, 4, 3)
            return PatchEmbed(channels, dims[stage], 3, 2, 1)

        def host(stage: int, block: int) -> nn.Module:
            return SpatialReductionAttention(
                dims[stage], heads[stage], settings['sr_ratios'][stage]
            )

        super().__init__(
            settings,
            embed,
            host,
            output_norm=output_norm,
            norm_eps=1e-6,
            mlp=ConvMLP,
            stage=NormedStage,
            **options,
        )
        self.apply(init_conv)


@MODELS.register_module()
class SlideCSwin(SlideTransformer):
    """Slide-CSwin backbone: feature maps of stride 4, 8, 16 and 32.

    Stages 0 and 1 slide, as in Slide-Swin. Our choice: parameters and multiply-adds hardly tell
    the placements apart. They are 34.7 M and 6.85 G (small), 77.4 M and 15.03 G (base) with it;
    35 M and 6.9 G, 78 M and 15.0 G are published.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict of one value per stage under each of
            the keys of :attr:`arch_settings`; ``split_sizes`` are the widths of the stripes, None
            attends to the whole map.
        **options: Of :class:`SlideTransformer`, after ``host``.

    Raises:
        ValueError: If ``arch`` or an option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        'tiny': _doubling(64, (1, 2, 21, 1), 2, 4, split_sizes=(1, 2, 7, None)),
        'small': _doubling(64, (2, 4, 32, 2), 2, 4, split_sizes=(1, 2, 7, None)),
        'base': _doubling(96, (2, 4, 32, 2), 4, 4, split_sizes=(1, 2, 7, None)),
    }

    def __init__(self, arch: str | Mapping = 'tiny', **options: Any) -> None:
        settings = resolve_arch(arch, self.arch_settings)
        dims, heads = settings['embed_dims'], settings['num_heads']

        def embed(stage: int, channels: int) -> nn.Module:
            if stage == 0:
                return PatchStem(channels, dims[0], 7, 4, 2)
            return PatchEmbed(channels, dims[stage], 3, 2, 1)

        def host(stage: int, block: int) -> nn.Module:
            return CrossWindowAttention(dims[stage], heads[stage], settings['split_sizes'][stage])

        super().__init__(settings, embed, host, **options)


@MODELS.register_module()
class SlideNAT(SlideTransformer):
    """Slide-NAT backbone: feature maps of stride 4, 8, 16 and 32.

    Stage 0 slides, the others keep neighborhood attention. The placement is not published; this is
    our choice. The published parameters of 28 and 51 M do not tell placements apart (slide
    attention adds less than 0.02 M); of the published multiply-adds of 4.3 and 7.8 G (mini: 2.7),
    those with one sliding stage round to them, those with two are 4.4 and 7.9 (2.8).

    Args:
        arch: ``'mini'``, ``'tiny'``, ``'small'``, or a dict of one value per stage under each of
            the keys of :attr:`arch_settings` (``layer_scale`` may be left out).
        num_slide_stages: How many stages slide, from the first. 0 is the unmodified host.
        **options: Of :class:`SlideTransformer`, after ``host``. Drop path published for
            classification of the host: 0.2 (mini, tiny), 0.3 (small).

    Raises:
        ValueError: If ``arch`` or an option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        'mini': _doubling(64, (3, 4, 6, 5), 2, 3, layer_scale=(None,) * 4),
        'tiny': _doubling(64, (3, 4, 18, 5), 2, 3, layer_scale=(None,) * 4),
        'small': _doubling(96, (3, 4, 18, 5), 3, 2, layer_scale=(1e-5,) * 4),
    }

    def __init__(
        self, arch: str | Mapping = 'tiny', num_slide_stages: int = 1, **options: Any
    ) -> None:
        settings = resolve_arch(arch, self.arch_settings, optional=('layer_scale',))
        dims, heads = settings['embed_dims'], settings['num_heads']

        def embed(stage: int, channels: int) -> nn.Module:
            if stage == 0:
                return ConvTokenizer(channels, dims[0])
            return ConvDownsample(channels, dims[stage], {'type': 'LN'}, bias=False)

        def host(stage: int, block: int) -> nn.Module:
            return NeighborhoodAttention(dims[stage], heads[stage])

        super().__init__(settings, embed, host, num_slide_stages=num_slide_stages, **options)
