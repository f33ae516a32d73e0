"""QnA-ViT, a pyramid of learned-query and window attention (arXiv 2112.11435).

Source of what the paper leaves open: ``models/qna_vit.py`` of the released code.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.backbones.pyramid import PyramidBackbone, Stage, resolve_arch
from mmlocalattn.layers.drop_path import DropPath, drop_path_rates
from mmlocalattn.layers.mlp import MLP
from mmlocalattn.layers.query_and_attend import QueryAndAttend
from mmlocalattn.layers.residual import add_residual
from mmlocalattn.layers.symbolic_size import is_symbolic, round_up
from mmlocalattn.layers.transformer_block import TransformerBlock
from mmlocalattn.layers.window_attention import WindowAttention
from mmlocalattn.registry import MODELS


class QnAStem(nn.Conv2d):
    """4x4 convolution of stride 4, without bias, on an image that is zero-padded to fit.

    Padding is split between both sides, the odd pixel below and to the right, as Flax does.

    Args:
        in_channels: Of the image.
        out_channels: Of the map.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=4, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ceil(H / 4), ceil(W / 4), out_channels)."""
        height, width = (round_up(side, 4) - side for side in image.shape[2:])
        if is_symbolic(height, width) or height or width:
            before, above = width // 2, height // 2
            image = F.pad(image, (before, width - before, above, height - above))
        return super().forward(image).permute(0, 2, 3, 1).contiguous()


class QnADownsample(nn.Module):
    """QnA block of stride 2; a 1x1 convolution of stride 2 takes the place of its skip.

    Args:
        in_dim: Channels before.
        out_dim: Channels after.
        num_heads: Attention heads.
        kernel_size: Odd window size of the attention.
        mlp_ratio: Hidden channels of the MLP over ``out_dim``.
        drop_path_rate: Probability of dropping the MLP of a sample. The attention stays.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_heads: int,
        kernel_size: int,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.skip = nn.Linear(in_dim, out_dim, bias=False)
        self.norm1 = nn.LayerNorm(in_dim, eps=1e-6)
        self.attn = QueryAndAttend(in_dim, num_heads, kernel_size, stride=2, out_dim=out_dim)
        self.norm2 = nn.LayerNorm(out_dim, eps=1e-6)
        self.mlp = MLP(out_dim, int(mlp_ratio * out_dim), approximate='tanh')
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_dim) to (B, ceil(H / 2), ceil(W / 2), out_dim)."""
        x = add_residual(self.attn(self.norm1(x)), self.skip(x[:, ::2, ::2]))
        return add_residual(self.drop_path(self.mlp(self.norm2(x))), x)


@MODELS.register_module()
class QnAViT(PyramidBackbone):
    """QnA-ViT backbone: feature maps of stride 4, 8, 16 and 32.

    A stage is a step down (a QnA block of stride 2), blocks of window attention, then QnA blocks.
    Windows at the border of a map that they do not divide are padded, and the padding is masked,
    so any image size works; the released code asks for multiples.

    Args:
        arch: ``'tiny'``, ``'tiny_7x7'``, ``'small'``, ``'base'``, or a dict of one value per stage
            under each of the keys of :attr:`arch_settings`: ``depths``, ``num_heads`` and
            ``kernel_sizes`` are those of the QnA blocks, ``window_depths``, ``window_heads`` and
            ``window_sizes`` those of the blocks of window attention before them. The step down to
            a stage has the kernel size of the stage before and twice its heads.
        in_channels: Of the image.
        drop_path_rate: Of the last block; rises linearly from 0 at the first, steps down included.
            Published for classification: 0.05 (tiny, tiny_7x7), 0.2 (small), 0.5 (base).
        **options: Of :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`, after ``stages``.
            The released classifiers have the output norm of the last map.

    Raises:
        ValueError: If ``arch`` or another option is not valid.
    """

    arch_settings: Mapping[str, Mapping] = {
        'tiny': {
            'embed_dims': (64, 128, 256, 512),
            'depths': (2, 3, 2, 0),
            'num_heads': (8, 16, 32, 64),
            'kernel_sizes': (3, 3, 3, 3),
            'window_depths': (0, 0, 4, 2),
            'window_heads': (2, 4, 8, 16),
            'window_sizes': (7, 7, 14, 7),
            'mlp_ratios': (4, 4, 4, 4),
        },
        'tiny_7x7': {
            'embed_dims': (64, 128, 256, 512),
            'depths': (2, 3, 2, 0),
            'num_heads': (8, 16, 32, 64),
            'kernel_sizes': (7, 7, 7, 7),
            'window_depths': (0, 0, 4, 2),
            'window_heads': (2, 4, 8, 16),
            'window_sizes': (7, 7, 14, 7),
            'mlp_ratios': (4, 4, 4, 4),
        },
        'small': {
            'embed_dims': (64, 128, 256, 512),
            'depths': (2, 3, 6, 0),
            'num_heads': (8, 16, 32, 64),
            'kernel_sizes': (3, 3, 3, 3),
            'window_depths': (0, 0, 12, 2),
            'window_heads': (2, 4, 8, 16),
            'window_sizes': (7, 7, 14, 7),
            'mlp_ratios': (4, 4, 4, 4),
        },
        'base': {
            'embed_dims': (96, 192, 384, 768),
            'depths': (2, 3, 6, 0),
            'num_heads': (6, 12, 24, 48),
            'kernel_sizes': (3, 3, 3, 3),
            'window_depths': (0, 0, 12, 2),
            'window_heads': (3, 6, 12, 24),
            'window_sizes': (7, 7, 14, 7),
            'mlp_ratios': (4, 4, 4, 4),
        },
    }

    def __init__(
        self,
        arch: str | Mapping = 'small',
        in_channels: int = 3,
        *,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        settings = resolve_arch(arch, self.arch_settings)
        dims = settings['embed_dims']
        steps = [min(index, 1) for index in range(len(dims))]  # down to each stage: 0, 1, 1, ...
        blocks = map(sum, zip(steps, settings['window_depths'], settings['depths']))
        rates = drop_path_rates(drop_path_rate, list(blocks))
        stages = [_build_stage(settings, index, rates[index]) for index in range(len(dims))]
        super().__init__(QnAStem(in_channels, dims[0]), stages, **options)
        self.apply(_init_weights)


def _build_stage(settings: Mapping[str, Sequence], index: int, rates: list[float]) -> Stage:
    """Stage ``index`` with one drop path rate for each of its blocks, the step down included."""
    stage = {key: values[index] for key, values in settings.items()}
    dim, mlp_ratio, rest = stage['embed_dims'], stage['mlp_ratios'], list(rates)
    downsample = None
    if index:
        downsample = QnADownsample(
            settings['embed_dims'][index - 1],
            dim,
            2 * settings['num_heads'][index - 1],
            settings['kernel_sizes'][index - 1],
            mlp_ratio,
            rest.pop(0),
        )
    attentions: list[nn.Module] = [
        WindowAttention(
            dim, stage['window_heads'], stage['window_sizes'], qkv_bias=False, proj_bias=False
        )
        for _ in range(stage['window_depths'])
    ]
    attentions += [
        QueryAndAttend(dim, stage['num_heads'], stage['kernel_sizes'])
        for _ in range(stage['depths'])
    ]
    blocks = [
        TransformerBlock(
            dim, attention, MLP(dim, int(mlp_ratio * dim), approximate='tanh'), rate, norm_eps=1e-6
        )
        for attention, rate in zip(attentions, rest)
    ]
    return Stage(blocks, dim, downsample)


def _init_weights(module: nn.Module) -> None:
    """As released: LeCun's truncated normal weights, no biases, no position biases."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        std = 1 / math.sqrt(module.weight[0].numel())
        cut = 2 * std / 0.87962566  # Flax widens the normal so that std is left after the cut
        nn.init.trunc_normal_(module.weight, std=cut / 2, a=-cut, b=cut)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention) and module.rel_pos_bias is not None:
        nn.init.zeros_(module.rel_pos_bias)
