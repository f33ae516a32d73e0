"""What the command lines of the benchmarks offer: names alone, which cost no imports."""

BASELINES = ('reference', 'unfold', 'sdpa', 'flex', 'flex-tiled', 'natten')
"""Besides ours: see baselines.py."""
WINDOW_BASELINES = (
    'depthwise convolutions',
    'unfold',
    'neighborhood_attention',
    'Swin windows',
)
"""Besides ours: see windows.py."""
DTYPES = ('float32', 'bfloat16', 'float16')
