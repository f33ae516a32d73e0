"""Stand-alone self-attention (arXiv 1906.05909) as a layer."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.layers.norm import fixed_affine, norm_channels_last
from mmlocalattn.layers.symbolic_size import is_symbolic, round_up
from mmlocalattn.ops.stand_alone import stand_alone_attention


class StandAloneAttention(nn.Module):
    """Multi-head attention over a window around each position, in place of a convolution.

    See :func:`~mmlocalattn.ops.stand_alone.stand_alone_attention`. The published numbers of
    parameters are those of full projections to query, key and value, without biases, and no
    projection of the output. Every head has its own row and column embeddings. With a stride of 2,
    2x2 averages of the output are taken, of what there is at an odd border.

    The paper does not give the initialisation. Our choice: projections that keep the variance,
    except that the query's deviation is smaller by ``head_dim ** -0.5``, which stands for the
    factor that the logits do not have; embeddings of deviation ``head_dim ** -0.5``.

    Args:
        in_channels: Before.
        out_channels: After, a multiple of ``num_heads``.
        num_heads: Attention heads.
        kernel_size: Odd window size in positions, 3 to 11, the same on both axes.
        padding: ``'mask'`` leaves out what the window sees outside the map (our choice, the paper
            does not say), ``'zero'`` takes it as zeros.
        stride: 1 or 2.

    Raises:
        ValueError: If ``out_channels`` is not a multiple of ``num_heads``, or an option is not
            valid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int = 8,
        kernel_size: int = 7,
        padding: Literal['mask', 'zero'] = 'mask',
        stride: int = 1,
    ) -> None:
        super().__init__()
        if out_channels % num_heads:
            raise ValueError(
                f'out_channels must be a multiple of num_heads, got {out_channels=}, {num_heads=}'
            )
        if kernel_size not in range(3, 12, 2):
            raise ValueError(f'kernel_size must be 3, 5, 7, 9 or 11, got {kernel_size=}')
        if padding not in ('mask', 'zero'):
            raise ValueError(f"padding must be 'mask' or 'zero', got {padding=}")
        if stride not in (1, 2):
            raise ValueError(f'stride must be 1 or 2, got {stride=}')
        self.out_channels = out_channels
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.padding: Literal['mask', 'zero'] = padding
        self.stride = stride
        head_dim = out_channels // num_heads
        self.qkv = nn.Linear(in_channels, 3 * out_channels, bias=False)
        rows, columns = head_dim // 2, head_dim - head_dim // 2
        self.row_embedding = nn.Parameter(torch.empty(num_heads, kernel_size, rows))
        self.column_embedding = nn.Parameter(torch.empty(num_heads, kernel_size, columns))
        nn.init.normal_(self.qkv.weight, std=in_channels**-0.5)
        with torch.no_grad():
            self.qkv.weight[:out_channels] *= head_dim**-0.5
        nn.init.normal_(self.row_embedding, std=head_dim**-0.5)
        nn.init.normal_(self.column_embedding, std=head_dim**-0.5)

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Attend, and normalise the output.

        Args:
            x: (B, H, W, in_channels).
            norm: Of the output. A BatchNorm with fixed statistics is folded into the values: the
                attention weights of a position sum to one.

        Returns:
            (B, ceil(H / stride), ceil(W / stride), out_channels).
        """
        batch, height, width, _ = x.shape
        affine = None
        if norm is not None and self.padding == 'mask':
            affine = fixed_affine(norm)
        qkv = self._project(x, affine).view(batch, height, width, 3, self.num_heads, -1)
        query, key, value = qkv.unbind(3)  # each (B, H, W, num_heads, head_dim)
        output = stand_alone_attention(
            query,
            key,
            value,
            self.row_embedding,
            self.column_embedding,
            self.kernel_size,
            self.padding,
        ).flatten(3)
        if self.stride == 2:
            output = _pool(output)
        if norm is None or affine is not None:
            return output
        return norm_channels_last(norm, output)

    def _project(self, x: Tensor, affine: tuple[Tensor, Tensor] | None) -> Tensor:
        """Query, key, and value after its affine map, as (B, H, W, 3 * out_channels)."""
        if affine is None:
            return self.qkv(x)
        scale, shift = affine
        keep, zero = torch.ones_like(scale), torch.zeros_like(shift)
        weight = self.qkv.weight * torch.cat([keep, keep, scale])[:, None]
        # A convolution: PyTorch's matrix product copies the bias to every position beforehand.
        image, bias = x.permute(0, 3, 1, 2), torch.cat([zero, zero, shift])
        return F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        """The options in the printed model."""
        return (
            f'num_heads={self.num_heads}, kernel_size={self.kernel_size}, '
            f'padding={self.padding!r}, stride={self.stride}'
        )


def _pool(x: Tensor) -> Tensor:
    """2x2 averages of (B, H, W, C), at an odd border of what there is."""
    symbolic = is_symbolic(*x.shape[1:3])
    if symbolic:  # without ceil_mode, whose size depends on H % 2: an odd border is doubled
        rows, columns = (
            torch.arange(round_up(side, 2), device=x.device).clamp(max=side - 1)
            for side in x.shape[1:3]
        )
        x = x[:, rows][:, :, columns]
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=not symbolic).permute(0, 2, 3, 1)
