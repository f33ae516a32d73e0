"""A feature pyramid network of stand-alone self-attention (arXiv 1906.05909, appendix A.3)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.layers.stand_alone_attention import StandAloneAttention
from mmlocalattn.registry import MODELS


@MODELS.register_module()
class AttentionFPN(nn.Module):
    """FPN whose 3x3 convolutions are attention: the neck of a detector.

    Levels above those of the backbone are made from the last output by attention and 2x2 average
    pooling, as mmdet's ``FPN(add_extra_convs='on_output')`` makes them by strided convolutions.

    Args:
        in_channels: Of each map of the backbone, from high to low resolution.
        out_channels: Of every output.
        num_outs: Number of outputs, at least one for each used map.
        start_level: The first map that is used.
        num_heads: Attention heads.
        kernel_size: See :class:`~mmlocalattn.layers.stand_alone_attention.StandAloneAttention`, as
            is ``padding``.

    Raises:
        ValueError: If there are more used maps than outputs, or none.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        num_heads: int = 8,
        kernel_size: int = 7,
        padding: Literal['mask', 'zero'] = 'mask',
    ) -> None:
        super().__init__()
        used = in_channels[start_level:]
        if not 0 < len(used) <= num_outs or start_level < 0:
            raise ValueError(
                'num_outs must be at least the number of used maps, which must be at least 1, '
                f'got {num_outs=}, {in_channels=}, {start_level=}'
            )
        self.start_level = start_level
        laterals = [nn.Conv2d(channels, out_channels, 1) for channels in used]
        self.laterals = nn.ModuleList(laterals)
        self.attentions = nn.ModuleList(
            [
                StandAloneAttention(
                    out_channels, out_channels, num_heads, kernel_size, padding, stride
                )
                for stride in [1] * len(used) + [2] * (num_outs - len(used))
            ]
        )
        for lateral in laterals:
            assert lateral.bias is not None
            nn.init.xavier_uniform_(lateral.weight)
            nn.init.zeros_(lateral.bias)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the pyramid.

        Args:
            inputs: One (B, C, H, W) map for each of ``in_channels``.

        Returns:
            ``num_outs`` contiguous (B, out_channels, H', W') maps; those above the backbone's have
            half the rows and columns of the one before, rounded up.
        """
        maps = [
            lateral(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
            for lateral, x in zip(self.laterals, inputs[self.start_level :])
        ]
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + F.interpolate(
                maps[level], size=maps[level - 1].shape[2:], mode='nearest'
            )
        maps = [x.permute(0, 2, 3, 1) for x in maps]
        outputs = [attention(x) for attention, x in zip(self.attentions, maps)]
        for attention in self.attentions[len(maps) :]:
            outputs.append(attention(outputs[-1]))
        return tuple(output.permute(0, 3, 1, 2).contiguous() for output in outputs)
