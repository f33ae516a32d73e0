"""Local-attention operators, one module per operator.

Import an operator from its module: ``from mmlocalattn.ops.neighborhood import
neighborhood_attention``. Without the compiled extension the dispatcher runs the PyTorch reference
of each operator.
"""

from mmlocalattn.ops import (  # noqa: F401  (register them)
    flops,
    neighborhood,
    query_and_attend,
    slide,
    sparse_scan,
    stand_alone,
)
from mmlocalattn.ops._library import has_kernel, load_ext

__all__ = ['OPS', 'has_kernel']

OPS = (
    'neighborhood_attention',
    'sparse_scan_attention',
    'slide_attention',
    'query_and_attend',
    'stand_alone_attention',
)
"""Names of the public operators."""

load_ext('_ext', [*OPS, *(f'_{name}_backward' for name in OPS)])
