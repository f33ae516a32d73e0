"""Rotary position embedding on a 2-d map."""

import torch
from torch import Tensor

BASE = 10000.0


def rotary_table(
    height: int, width: int, head_dim: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Sine and cosine by which the ops rotate adjacent channel pairs of query and key.

    The first half of the channels turns with the row index, the second half with the column
    index. Pair ``i`` of a half turns by ``index / BASE ** (i / (head_dim / 4 - 1))``: indices are
    absolute, not divided by the map's size. Source: ``RoPE`` in SSViT's ``SSViT.py``.

    Recompute the table where it is needed: one per stage and forward costs little beside the
    stage's blocks, and no cache must be kept right under torch.compile, DDP and changing sizes.

    Args:
        height: Of the map.
        width: Of the map.
        head_dim: Channels of one head, a multiple of 4.
        device: Of the result.

    Returns:
        (sin, cos), each (H, W, head_dim) fp32; both channels of a pair hold the same value.

    Raises:
        ValueError: If ``head_dim`` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(
            f'2-d rotary embedding needs a head_dim that is a multiple of 4, got {head_dim=}'
        )
    exponent = torch.linspace(0, 1, head_dim // 4, device=device, dtype=torch.float32)
    angle = (1.0 / BASE**exponent).repeat_interleave(2)  # (head_dim / 2,)
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] * angle
    columns = torch.arange(width, device=device, dtype=torch.float32)[:, None] * angle
    return _table(rows.sin(), columns.sin()), _table(rows.cos(), columns.cos())


def _table(rows: Tensor, columns: Tensor) -> Tensor:
    """(H, D / 2) and (W, D / 2) to (H, W, D)."""
    height, width = rows.shape[0], columns.shape[0]
    return torch.cat(
        [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1
    )
