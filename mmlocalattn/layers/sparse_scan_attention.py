"""Sparse scan attention (S3A) as a layer."""

from collections.abc import Callable

from torch import Tensor, nn

from mmlocalattn.layers.depthwise_conv import DepthwiseConv2d
from mmlocalattn.layers.residual import add_residual
from mmlocalattn.layers.scan_geometry import ScanGeometry, adaptive_scan
from mmlocalattn.ops.sparse_scan import sparse_scan_attention


class SparseScanAttention(nn.Module):
    """S3A with its projections and a 5x5 depthwise convolution of the values (LePE).

    ``proj(S3A(q, k, v) + lepe(v))``. See
    :func:`~mmlocalattn.ops.sparse_scan.sparse_scan_attention`. Source: ``ConvDecop`` in SSViT's
    ``SSViT.py``.

    Args:
        dim: Channels.
        num_heads: Divides ``dim``; the channels of a head are a multiple of 4.
        scan: Gives the windows for a map of (height, width), for example
            :func:`~mmlocalattn.layers.scan_geometry.adaptive_scan`.

    Raises:
        ValueError: If ``dim`` does not split into heads of a multiple of 4 channels.
    """

    def __init__(
        self, dim: int, num_heads: int, scan: Callable[[int, int], ScanGeometry] = adaptive_scan
    ) -> None:
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(
                'dim must be num_heads times a multiple of 4 (2-d rotary embedding), '
                f'got {dim=}, {num_heads=}'
            )
        self.num_heads = num_heads
        self.scan = scan
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe = DepthwiseConv2d(dim, 5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attend.

        Args:
            x: (B, H, W, C).
            rotary: (sin, cos), each (H, W, C / num_heads), see
                :func:`~mmlocalattn.layers.rotary.rotary_table`.

        Returns:
            (B, H, W, C).
        """
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.unbind(3)  # each (B, H, W, num_heads, head_dim)
        output = sparse_scan_attention(query, key, value, *self.scan(height, width), rotary=rotary)
        return self.proj(add_residual(self.lepe(value.flatten(3)), output.flatten(3)))
