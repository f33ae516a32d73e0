"""Local-attention operators, one module per operator.

``from mmlocalattn.ops import neighborhood_attention``, or from the operator's module. Without the
compiled extension the dispatcher runs the PyTorch reference of each operator. Which implementation
serves CUDA tensors, :func:`implementation` and the variable ``MMLOCALATTN_CUDA`` choose.
"""

from mmlocalattn.ops._implementation import choose_from_environment, implementation
from mmlocalattn.ops._library import has_kernel, load_ext
from mmlocalattn.ops.neighborhood import neighborhood_attention
from mmlocalattn.ops.query_and_attend import query_and_attend  # hides its module, as an attribute
from mmlocalattn.ops.slide import slide_attention
from mmlocalattn.ops.sparse_scan import sparse_scan_attention
from mmlocalattn.ops.stand_alone import stand_alone_attention

__all__ = [
    'OPS',
    'has_kernel',
    'implementation',
    'neighborhood_attention',
    'query_and_attend',
    'slide_attention',
    'sparse_scan_attention',
    'stand_alone_attention',
]

OPS = (
    'neighborhood_attention',
    'sparse_scan_attention',
    'slide_attention',
    'query_and_attend',
    'stand_alone_attention',
)
"""Names of the public operators."""

load_ext('_ext', [*OPS, *(f'_{name}_backward' for name in OPS)])

choose_from_environment()
