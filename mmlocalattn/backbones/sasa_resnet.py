"""ResNet with stand-alone self-attention in place of its 3x3 convolutions (arXiv 1906.05909)."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.backbones.pyramid import PyramidBackbone, Stage, resolve_arch
from mmlocalattn.layers.attention_stem import AttentionStem
from mmlocalattn.layers.conv_norm import ConvNorm
from mmlocalattn.layers.drop_path import DropPath, drop_path_rates
from mmlocalattn.layers.norm import build_norm
from mmlocalattn.layers.residual import add_residual, relu
from mmlocalattn.layers.stand_alone_attention import StandAloneAttention
from mmlocalattn.registry import MODELS


class ResNetStem(nn.Module):
    """The stem of a ResNet: 7x7 convolution of stride 2, norm, ReLU, 3x3 max-pooling of stride 2.

    Args:
        in_channels: Of the image.
        out_channels: Of the map.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_cfg: Mapping | None = None
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 7, 2, norm_cfg)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ceil(H / 4), ceil(W / 4), out_channels)."""
        x = relu(self.conv(image.permute(0, 2, 3, 1).contiguous()))
        return F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, padding=1).permute(0, 2, 3, 1)


class AttentionNorm(nn.Module):
    """Stand-alone self-attention and the norm behind it, in the place of a 3x3 convolution.

    Args:
        attn: The attention.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
    """

    def __init__(self, attn: StandAloneAttention, norm_cfg: Mapping | None = None) -> None:
        super().__init__()
        self.attn = attn
        self.norm = build_norm(norm_cfg, attn.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), C)."""
        return self.attn(x, self.norm)


class Bottleneck(nn.Module):
    """1x1 convolution, the spatial operation, 1x1 convolution, added to a shortcut.

    Args:
        in_channels: Before.
        out_channels: After; a quarter of them inside.
        spatial: Maps (B, H, W, out_channels // 4) to the size of the output; has its own norm.
        stride: Of the spatial operation.
        drop_path_rate: Probability of dropping the branch of a sample.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial: nn.Module,
        stride: int = 1,
        drop_path_rate: float = 0.0,
        norm_cfg: Mapping | None = None,
    ) -> None:
        super().__init__()
        self.reduce = ConvNorm(in_channels, out_channels // 4, 1, norm_cfg=norm_cfg)
        self.spatial = spatial
        self.expand = ConvNorm(out_channels // 4, out_channels, 1, norm_cfg=norm_cfg)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride, norm_cfg)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, ceil(H / stride), ceil(W / stride), out_channels)."""
        y = relu(self.spatial(relu(self.reduce(x))))
        return relu(add_residual(self.drop_path(self.expand(y)), self.shortcut(x)))


@MODELS.register_module()
class SASAResNet(PyramidBackbone):
    """ResNet of stand-alone self-attention: feature maps of stride 4, 8, 16 and 32.

    Where the 3x3 convolution of a ResNet has a stride of 2, the attention is followed by 2x2
    average pooling. Weights start as in ResNet, those of attention as its layer says.

    Args:
        depth: 26, 38, 50, or a dict of one value per stage under each of the keys of
            :attr:`arch_settings`.
        in_channels: Of the image.
        drop_path_rate: Of the last block; rises linearly from 0 at the first.
        stem: ``'conv'`` or ``'attention'``.
        conv_stages: The first so many stages keep their 3x3 convolutions; 4 is an ordinary ResNet.
            The paper finds that convolutions in the first one or two help.
        kernel_size: Odd window size of the attention, 3 to 11 positions.
        padding: Of the attention: ``'mask'`` or ``'zero'``, see
            :class:`~mmlocalattn.layers.stand_alone_attention.StandAloneAttention`.
        num_mixtures: Of the attention stem.
        zero_init_residual: Start with blocks that pass their input on: the last norm of each has
            weight zero.
        norm_cfg: Norm of the blocks and the stem, ``dict(type='BN')`` if None.
        output_norm: As for all backbones, but off: a ResNet has batch norms.
        **options: Of :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`, after ``stages``.

    Raises:
        ValueError: If ``depth``, ``stem``, ``conv_stages`` or another option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        name: {
            'embed_dims': (256, 512, 1024, 2048),
            'depths': depths,
            'num_heads': (8, 8, 8, 8),
        }
        for name, depths in (('26', (1, 2, 4, 1)), ('38', (2, 3, 5, 2)), ('50', (3, 4, 6, 3)))
    }

    def __init__(
        self,
        depth: int | Mapping = 50,
        in_channels: int = 3,
        *,
        drop_path_rate: float = 0.0,
        stem: Literal['conv', 'attention'] = 'conv',
        conv_stages: int = 0,
        kernel_size: int = 7,
        padding: Literal['mask', 'zero'] = 'mask',
        num_mixtures: int = 4,
        zero_init_residual: bool = True,
        norm_cfg: Mapping | None = None,
        output_norm: bool = False,
        **options: Any,
    ) -> None:
        arch = depth if isinstance(depth, Mapping) else str(depth)
        settings = resolve_arch(arch, self.arch_settings)
        dims, depths, heads = settings['embed_dims'], settings['depths'], settings['num_heads']
        if stem not in ('conv', 'attention'):
            raise ValueError(f"stem must be 'conv' or 'attention', got {stem=}")
        if not 0 <= conv_stages <= len(dims):
            raise ValueError(f'conv_stages must be in 0..{len(dims)}, got {conv_stages=}')
        rates = drop_path_rates(drop_path_rate, depths)
        stages, channels = [], dims[0] // 4
        for i, (dim, num_heads) in enumerate(zip(dims, heads)):
            blocks = []
            for j in range(depths[i]):
                stride = 2 if i and j == 0 else 1
                if i < conv_stages:
                    spatial: nn.Module = ConvNorm(dim // 4, dim // 4, 3, stride, norm_cfg)
                else:
                    attn = StandAloneAttention(
                        dim // 4, dim // 4, num_heads, kernel_size, padding, stride
                    )
                    spatial = AttentionNorm(attn, norm_cfg)
                blocks.append(Bottleneck(channels, dim, spatial, stride, rates[i][j], norm_cfg))
                channels = dim
            stages.append(Stage(blocks, dim))
        stem_module: nn.Module
        if stem == 'conv':
            stem_module = ResNetStem(in_channels, dims[0] // 4, norm_cfg)
        else:
            stem_module = AttentionStem(
                in_channels, dims[0] // 4, num_mixtures=num_mixtures, norm_cfg=norm_cfg
            )
        super().__init__(stem_module, stages, output_norm=output_norm, **options)
        self._init_weights(zero_init_residual)

    def _init_weights(self, zero_init_residual: bool) -> None:
        """As in ResNet: He's for convolutions, by the outputs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, Bottleneck) and zero_init_residual:
                nn.init.zeros_(module.expand.norm.get_parameter('weight'))
