"""The attention stem of stand-alone self-attention (arXiv 1906.05909, section 3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.layers.norm import build_norm, fixed_affine, norm_channels_last
from mmlocalattn.layers.symbolic_size import is_symbolic, round_up

SIDE = 4  # of a block, and of the max-pooling window


class AttentionStem(nn.Module):
    """Attention inside each 4x4 block of an image, norm, and 4x4 max-pooling of stride 4.

    A pixel's value is a mixture of several projections, ``sum_m p(a, b, m) W_m x``, whose weights
    depend on its row a and column b in the block, ``p = softmax_m((row(a) + column(b)) . nu_m)``
    (appendix A.1), and are the same for all heads. The logits are those of equation 3. The last
    blocks of a row or column are smaller where 4 does not divide the image.

    Args:
        in_channels: Of the image.
        out_channels: Of the map, a multiple of ``2 * num_heads``.
        num_heads: Attention heads, 4 in the paper.
        num_mixtures: Projections of the values. The paper does not say how many: 4 is our choice.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.

    Raises:
        ValueError: If ``out_channels`` is not a multiple of ``2 * num_heads``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int = 4,
        num_mixtures: int = 4,
        norm_cfg: Mapping | None = None,
    ) -> None:
        super().__init__()
        if out_channels % (2 * num_heads):
            raise ValueError(
                'out_channels must be a multiple of 2 * num_heads, '
                f'got {out_channels=}, {num_heads=}'
            )
        self.num_heads = num_heads
        half = out_channels // num_heads // 2
        self.query = nn.Linear(in_channels, out_channels, bias=False)
        self.key = nn.Linear(in_channels, out_channels, bias=False)
        self.values = nn.Parameter(torch.empty(num_mixtures, out_channels, in_channels))
        self.row_embedding = nn.Parameter(torch.empty(num_heads, 2 * SIDE - 1, half))
        self.column_embedding = nn.Parameter(torch.empty(num_heads, 2 * SIDE - 1, half))
        self.mixture_rows = nn.Parameter(torch.empty(SIDE, out_channels))
        self.mixture_columns = nn.Parameter(torch.empty(SIDE, out_channels))
        self.mixtures = nn.Parameter(torch.empty(num_mixtures, out_channels))
        self.norm = build_norm(norm_cfg, out_channels)
        self._init_weights(2 * half)

    def _init_weights(self, head_dim: int) -> None:
        """As in StandAloneAttention; the paper does not say."""
        in_channels, out_channels = self.query.in_features, self.query.out_features
        nn.init.normal_(self.query.weight, std=(in_channels * head_dim) ** -0.5)
        nn.init.normal_(self.key.weight, std=in_channels**-0.5)
        nn.init.normal_(self.values, std=in_channels**-0.5)
        for embedding in (self.row_embedding, self.column_embedding):
            nn.init.normal_(embedding, std=head_dim**-0.5)
        for embedding in (self.mixture_rows, self.mixture_columns):
            nn.init.normal_(embedding)
        nn.init.normal_(self.mixtures, std=out_channels**-0.5)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, ceil(H / 4), ceil(W / 4), out_channels)."""
        height, width = image.shape[2:]
        below, right = (round_up(side, SIDE) - side for side in (height, width))
        x = F.pad(image, (0, right, 0, below)).permute(0, 2, 3, 1)
        outside, affine = None, fixed_affine(self.norm)
        # A slice would have an unknown size, but a norm may only see the image.
        symbolic = is_symbolic(height, width) and affine is not None
        if symbolic or below or right:
            row, column = (torch.arange(side, device=x.device) for side in x.shape[1:3])
            outside = ((row >= height)[:, None] | (column >= width))[None, ..., None]
        y = self._attend(x, outside, affine)
        if not symbolic:
            y = y[:, :height, :width]
        if affine is None:
            y = norm_channels_last(self.norm, y)
        if symbolic and outside is not None:
            y = y.masked_fill(outside, -torch.inf)
        y = F.max_pool2d(y.permute(0, 3, 1, 2), SIDE, ceil_mode=not symbolic)
        return y.permute(0, 2, 3, 1)

    def _attend(
        self, x: Tensor, outside: Tensor | None, affine: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attention in the blocks of (B, H, W, in_channels), whose sides are multiples of 4.

        Args:
            x: The image.
            outside: (1, H, W, 1), true where there is no pixel; None if there is one everywhere.
            affine: Scale and shift of the output, which the values take.

        Returns:
            (B, H, W, out_channels).
        """
        blocks = _to_blocks(x)  # (N, 16, in_channels)
        split = (self.num_heads, -1)
        query, key = (
            linear(blocks).unflatten(-1, split).transpose(1, 2) for linear in (self.query, self.key)
        )  # (N, num_heads, 16, head_dim)
        by_position = blocks.transpose(0, 1)  # (16, N, in_channels)
        value = by_position @ self._value_weights(affine)
        if affine is not None:
            value = value + affine[1]
        value = value.unflatten(-1, split).permute(1, 2, 0, 3)
        logits = (by_position @ self._offset_weights()).unflatten(-1, split).permute(1, 2, 0, 3)
        if outside is not None:
            hidden = _to_blocks(outside).transpose(1, 2)[:, None]  # (blocks of an image, 1, 1, 16)
            hidden = hidden.repeat(x.shape[0], 1, 1, 1)
            logits = logits.masked_fill(hidden, -torch.inf)
        # One dtype, which under autocast torch 2.1 wants of the caller.
        value, logits = value.to(query.dtype), logits.to(query.dtype)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=logits, scale=1.0)
        return _to_map(y.transpose(1, 2).flatten(2), x.shape)

    def _value_weights(self, affine: tuple[Tensor, Tensor] | None) -> Tensor:
        """The projection of each position to its value, (16, in_channels, out_channels)."""
        places = self.mixture_rows[:, None] + self.mixture_columns  # (4, 4, out_channels)
        mixture = (places.flatten(0, 1) @ self.mixtures.T).softmax(-1)  # (16, num_mixtures)
        weights = torch.einsum('pm,moc->pco', mixture, self.values)
        return weights if affine is None else weights * affine[0]

    def _offset_weights(self) -> Tensor:
        """From a pixel to the position terms of its logits, (16, in_channels, num_heads * 16).

        That is the query's projection times the embeddings of the offsets to the 16 keys.
        """
        side = torch.arange(SIDE, device=self.row_embedding.device)
        offset = side - side[:, None] + SIDE - 1  # [query, key]
        shape = (self.num_heads, SIDE, SIDE, SIDE, SIDE, -1)  # rows and columns of query and key
        rows = self.row_embedding[:, offset][:, :, None, :, None].expand(shape)
        columns = self.column_embedding[:, offset][:, None, :, None].expand(shape)
        embedding = torch.cat([rows, columns], -1).flatten(3, 4).flatten(1, 2)
        weight = self.query.weight.unflatten(0, (self.num_heads, -1))
        return torch.einsum('hdc,hpkd->pchk', weight, embedding).flatten(2)


def _to_blocks(x: Tensor) -> Tensor:
    """(B, H, W, C) with sides that are multiples of 4 to (B * H / 4 * W / 4, 16, C)."""
    blocks = x.unflatten(2, (-1, SIDE)).unflatten(1, (-1, SIDE)).transpose(2, 3)
    return blocks.flatten(3, 4).flatten(0, 2)


def _to_map(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`_to_blocks` for a map of ``shape``, of any number of channels."""
    batch, height, width, _ = shape
    rows = blocks.view(batch, height // SIDE, width // SIDE, SIDE, SIDE, -1).transpose(2, 3)
    return rows.flatten(3, 4).flatten(1, 2)
