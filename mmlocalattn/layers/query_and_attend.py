"""Query-and-attend (QnA) as a layer: local attention whose queries are learned (arXiv 2112.11435).

Source of what the paper leaves open: ``FusedKQnA`` in ``layers/qna.py`` of the released code.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlocalattn.ops.query_and_attend import query_and_attend

POS_BIASES = ('relative', 'absolute', 'none')
ATTENTION_SCALES = ('normal', 'normal_elementwise', 'posneg', 'ones', 'avg', 'none')


class QueryAndAttend(nn.Module):
    """Attend to the window of each position with queries that all windows share.

    See :func:`~mmlocalattn.ops.query_and_attend.query_and_attend`. Queries do not depend on the
    map, so they are multiplied with the key projection once per forward: a linear layer gives the
    scores, and there are no keys. A bias of the keys would add the same to all scores of a window,
    which softmax ignores, so there is none. Nor is there the released code's contextual position
    bias, which it computes for one image only.

    ``attention_scale`` weighs the attention of the queries before it is summed over them:

    ======================  ====================================================================
    ``normal``              learned per query, head and tap, normal of deviation 0.02 at first
    ``ones``                the same, 1 at first
    ``normal_elementwise``  learned per query and head, normal of deviation 0.02 at first
    ``posneg``              1 for the first half of the queries, -1 for the second (of heads if
                            there is one query)
    ``avg``                 1 / ``num_queries``
    ``none``                1
    ======================  ====================================================================

    With ``upsample`` = n, the output is n times higher and wider: n * n sets of queries attend to
    the window of a position, one for each of its sub-pixels, over the same keys and values. The
    paper describes upsampling by more queries, but no released code has it: this is our reading.

    Args:
        dim: Channels of the input.
        num_heads: Attention heads.
        kernel_size: Odd window size in taps, at most 13, the same on both axes.
        stride: 1 or 2 positions between windows; 2 halves the resolution.
        upsample: Factor on the resolution, for example 2 or 4; needs ``stride`` 1.
        out_dim: Channels inside and of the output, a multiple of ``num_heads``; ``dim`` if None.
        num_queries: Queries for each window (and sub-pixel) and head.
        normalize_query: Divide the queries of each head by their length, for stability.
        pos_bias: What is added to the scores by tap: ``'relative'``, a learned number per query
            and head; ``'absolute'``, the product of the query and a learned embedding of the tap;
            or ``'none'``.
        attention_scale: See above.
        bias: Of values and output.

    Raises:
        ValueError: If ``out_dim`` is not a multiple of ``num_heads``, ``kernel_size`` is not odd,
            ``stride`` is another, ``upsample`` < 1 or combined with a stride, or a name is unknown.
    """

    attention_scale: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 3,
        stride: int = 1,
        upsample: int = 1,
        out_dim: int | None = None,
        num_queries: int = 2,
        normalize_query: bool = True,
        pos_bias: str = 'relative',
        attention_scale: str = 'normal',
        bias: bool = False,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        _check_size(out_dim, num_heads, kernel_size, stride, upsample)
        if pos_bias not in POS_BIASES:
            raise ValueError(f'pos_bias must be one of {POS_BIASES}, got {pos_bias=}')
        if attention_scale not in ATTENTION_SCALES:
            raise ValueError(
                f'attention_scale must be one of {ATTENTION_SCALES}, got {attention_scale=}'
            )
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.stride = stride
        self.upsample = upsample
        self.normalize_query = normalize_query
        query_heads, head_dim = upsample**2 * num_heads, out_dim // num_heads
        self.query = nn.Parameter(torch.empty(num_queries, query_heads, head_dim))
        std = head_dim**-0.5
        nn.init.trunc_normal_(self.query, std=std, a=-2 * std, b=2 * std)
        self.key = nn.Linear(dim, out_dim, bias=False)
        self.value = nn.Linear(dim, out_dim, bias=bias)
        self.proj = nn.Linear(out_dim, out_dim, bias=bias)

        taps = num_queries, query_heads, kernel_size, kernel_size
        self.pos_bias: nn.Parameter | None = None
        if pos_bias != 'none':
            embedding = (head_dim,) if pos_bias == 'absolute' else ()
            self.pos_bias = nn.Parameter(torch.zeros(*taps, *embedding))
        if attention_scale in ('normal', 'ones', 'normal_elementwise'):
            shape = (*taps[:2], 1, 1) if attention_scale == 'normal_elementwise' else taps
            initial = torch.ones(shape) if attention_scale == 'ones' else 0.02 * torch.randn(shape)
            self.attention_scale = nn.Parameter(initial)
        else:
            fixed = _fixed_scale(attention_scale, num_queries, query_heads)
            self.register_buffer('attention_scale', fixed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H', W', out_dim).

        H' is ceil(H / stride) or upsample * H, W' likewise.
        """
        query = self._normalized_query()
        weight = torch.einsum(
            'qsnd,ndc->qsnc',  # sub-pixel s, head n, channel c of the input
            query.unflatten(1, (-1, self.num_heads)),
            self.key.weight.unflatten(0, (self.num_heads, -1)),
        )
        scores = F.linear(x, weight.flatten(0, 2)).unflatten(-1, query.shape[:2])
        values = self.value(x).unflatten(-1, (self.num_heads, -1))  # (B, H, W, n, d)
        if self.upsample > 1:
            copies = values.unsqueeze(3).expand(-1, -1, -1, self.upsample**2, -1, -1)
            values = copies.flatten(3, 4)  # as large as the output
        output = query_and_attend(
            scores, values, self._bias(query), self._scale(), self.kernel_size, self.stride
        )
        return self.proj(self._to_pixels(output.flatten(3)))

    def _normalized_query(self) -> Tensor:
        """(num_queries, query_heads, head_dim), divided by the root of head_dim."""
        query = self.query
        if self.normalize_query:
            query = query / (query.norm(dim=-1, keepdim=True) + 1e-6)
        return query * query.shape[-1] ** -0.5

    def _bias(self, query: Tensor) -> Tensor | None:
        """(num_queries, query_heads, k, k)."""
        if self.pos_bias is None or self.pos_bias.dim() == 4:
            return self.pos_bias
        return torch.einsum('qnd,qnijd->qnij', query, self.pos_bias)

    def _scale(self) -> Tensor | None:
        """(num_queries, query_heads, k, k)."""
        if self.attention_scale is None:
            return None
        taps = self.kernel_size, self.kernel_size
        return self.attention_scale.expand(*self.query.shape[:2], *taps)

    def _to_pixels(self, x: Tensor) -> Tensor:
        """(B, H, W, upsample ** 2 * C) to (B, upsample * H, upsample * W, C)."""
        if self.upsample == 1:
            return x
        x = x.unflatten(-1, (self.upsample, self.upsample, -1))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _fixed_scale(name: str, num_queries: int, num_heads: int) -> Tensor | None:
    """(num_queries, num_heads, 1, 1), or None for 1."""
    if name == 'none':
        return None
    scale = torch.full((num_queries * num_heads,), 1 / num_queries if name == 'avg' else 1.0)
    if name == 'posneg':
        scale[len(scale) // 2 :] = -1
    return scale.view(num_queries, num_heads, 1, 1)


def _check_size(out_dim: int, num_heads: int, kernel_size: int, stride: int, upsample: int) -> None:
    if out_dim % num_heads:
        raise ValueError(f'out_dim must be a multiple of num_heads, got {out_dim=}, {num_heads=}')
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, got {kernel_size=}')
    if stride not in (1, 2):
        raise ValueError(f'stride must be 1 or 2, got {stride=}')
    if upsample < 1 or (upsample > 1 and stride > 1):
        raise ValueError(
            f'upsample must be at least 1, and 1 if stride is 2, got {upsample=}, {stride=}'
        )
