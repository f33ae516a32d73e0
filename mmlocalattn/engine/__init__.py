"""Configs, data checks, checkpoints, resuming, logs and a look at attention, around MMEngine."""

from mmlocalattn.engine.checkpoint import (
    allow_mmengine_checkpoints,
    last_whole_checkpoint,
    read_seed,
)
from mmlocalattn.engine.data_check import check_data
from mmlocalattn.engine.exact_resume import ExactResumeHook
from mmlocalattn.engine.history import History, read_history
from mmlocalattn.engine.launch import (
    adapt_to_device,
    add_common_arguments,
    add_config_arguments,
    config_of,
    load_config,
)
from mmlocalattn.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmlocalattn.engine.visualisation import record_attention

__all__ = [
    'ExactResumeHook',
    'History',
    'LayerDecayOptimWrapperConstructor',
    'adapt_to_device',
    'add_common_arguments',
    'add_config_arguments',
    'allow_mmengine_checkpoints',
    'check_data',
    'config_of',
    'last_whole_checkpoint',
    'load_config',
    'read_history',
    'read_seed',
    'record_attention',
]
