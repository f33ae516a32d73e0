"""Configs, command lines, checkpoints, resuming, layer decay and logs, around MMEngine."""

from mmlocalattn.training.arguments import (
    add_common_arguments,
    add_config_arguments,
    config_of,
    image_size,
    one_line_errors,
)
from mmlocalattn.training.checkpoint import (
    allow_mmengine_checkpoints,
    last_whole_checkpoint,
    read_seed,
)
from mmlocalattn.training.config import load_config
from mmlocalattn.training.history import History, read_history
from mmlocalattn.training.launch import adapt_to_device
from mmlocalattn.training.layer_decay import LayerDecayOptimWrapperConstructor
from mmlocalattn.training.resume import ExactResumeHook

__all__ = [
    'ExactResumeHook',
    'History',
    'LayerDecayOptimWrapperConstructor',
    'adapt_to_device',
    'add_common_arguments',
    'add_config_arguments',
    'allow_mmengine_checkpoints',
    'config_of',
    'image_size',
    'last_whole_checkpoint',
    'load_config',
    'one_line_errors',
    'read_history',
    'read_seed',
]
