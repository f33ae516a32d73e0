"""What the shapes of a released pyramid show of its architecture."""

import re
from collections.abc import Mapping

from torch import Tensor


def infer_stages(state_dict: Mapping[str, Tensor], pattern: str) -> dict[str, tuple[int, ...]]:
    """Widths and depths of the stages.

    Args:
        state_dict: A released model's.
        pattern: Regular expression that matches the name of one vector of C values in each block;
            its two groups are the numbers of stage and block.

    Returns:
        ``embed_dims`` and ``depths``, empty where no name matches.
    """
    blocks: dict[int, dict[int, int]] = {}  # stage -> block -> channels
    for name, tensor in state_dict.items():
        if match := re.fullmatch(pattern, name):
            stage, block = map(int, match.groups())
            blocks.setdefault(stage, {})[block] = tensor.shape[0]
    stages = [blocks[stage] for stage in sorted(blocks)]
    return {
        'embed_dims': tuple(channels[min(channels)] for channels in stages),
        'depths': tuple(len(stage) for stage in stages),
    }
