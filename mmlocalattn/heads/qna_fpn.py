"""A feature pyramid network whose top-down path upsamples with learned queries."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.layers.query_and_attend import QueryAndAttend
from mmlocalattn.registry import MODELS

EXTRA_CONVS = (False, 'on_input', 'on_output')


class QnAUpsample(nn.Module):
    """LayerNorm and query-and-attend with one query for each of the four sub-pixels of a position.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        kernel_size: Odd window size in taps.
    """

    def __init__(self, dim: int, num_heads: int = 8, kernel_size: int = 3) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = QueryAndAttend(
            dim, num_heads, kernel_size, upsample=2, num_queries=1, attention_scale='none'
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W) to (B, C, *size): twice the size, then cropped or its border repeated."""
        x = self.attn(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = x[:, :, : size[0], : size[1]].contiguous()
        below, behind = size[0] - x.shape[2], size[1] - x.shape[3]
        return F.pad(x, (0, behind, 0, below), mode='replicate') if below or behind else x


@MODELS.register_module()
class QnAFPN(nn.Module):
    """mmdet's ``FPN`` with :class:`QnAUpsample` in the place of nearest upsampling.

    QnA's paper describes upsampling by more queries, but neither it nor the released code has such
    a neck: it is our choice.

    Args:
        in_channels: Of the backbone's maps, from high to low resolution.
        out_channels: Of every output.
        num_outs: Number of outputs, at least that of the maps used.
        start_level: Number of the first map used.
        add_extra_convs: Where outputs beyond the maps come from: strided 3x3 convolutions from the
            last map (``'on_input'``) or the last output (``'on_output'``), or, if False, every
            second position of the last output.
        num_heads: Attention heads of the upsampling.
        kernel_size: Odd window size of the upsampling.

    Raises:
        ValueError: If ``num_outs`` or ``start_level`` does not match ``in_channels``, or
            ``add_extra_convs`` is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        add_extra_convs: bool | str = False,
        num_heads: int = 8,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        used = list(in_channels)[start_level:]
        if not used or num_outs < len(used):
            raise ValueError(
                f'num_outs must be at least the number of maps from start_level on, at least 1, '
                f'got {num_outs=}, {start_level=}, {in_channels=}'
            )
        if add_extra_convs not in EXTRA_CONVS:
            raise ValueError(
                f'add_extra_convs must be one of {EXTRA_CONVS}, got {add_extra_convs=}'
            )
        self.start_level = start_level
        self.num_outs = num_outs
        self.add_extra_convs = add_extra_convs
        self.lateral_convs = nn.ModuleList(nn.Conv2d(dim, out_channels, 1) for dim in used)
        self.upsamples = nn.ModuleList(
            QnAUpsample(out_channels, num_heads, kernel_size) for _ in used[1:]
        )
        self.fpn_convs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in used
        )
        self.extra_convs = nn.ModuleList()
        if add_extra_convs:
            first = used[-1] if add_extra_convs == 'on_input' else out_channels
            dims = [first, *[out_channels] * (num_outs - len(used))]
            self.extra_convs.extend(
                nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in pairwise(dims)
            )
        self.apply(_init_weights)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C, H, W) of the backbone to ``num_outs`` maps (B, out_channels, H', W')."""
        maps = inputs[self.start_level :]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for index in range(len(laterals) - 1, 0, -1):
            finer = laterals[index - 1]
            coarser = self.upsamples[index - 1](laterals[index], finer.shape[2:])
            laterals[index - 1] = finer + coarser
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        source = maps[-1] if self.add_extra_convs == 'on_input' else outputs[-1]
        for conv in self.extra_convs:
            source = conv(source)
            outputs.append(source)
        while len(outputs) < self.num_outs:
            outputs.append(outputs[-1][:, :, ::2, ::2].contiguous())
        return tuple(outputs)


def _init_weights(module: nn.Module) -> None:
    """Xavier as in mmdet's FPN."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
