"""Configs, command lines, checkpoints, resuming, layer decay and logs, around MMEngine."""

import mmlocalattn.training.interval_metrics  # noqa: F401 (registers them)
from mmlocalattn.adapt.nodes import channels_of, preprocessor_of
from mmlocalattn.training.arguments import (
    add_common_arguments,
    add_config_arguments,
    add_data_arguments,
    config_of,
    image_size,
    one_line_errors,
    run_config_of,
)
from mmlocalattn.training.checkpoint import (
    allow_mmengine_checkpoints,
    last_whole_checkpoint,
    read_checkpoint,
    read_seed,
    save_checkpoint,
)
from mmlocalattn.training.clock import (
    ClockCheckpointHook,
    ClockHook,
    ClockTrainLoop,
    apply_clock,
    start_clock,
)
from mmlocalattn.training.config import find_config, load_config
from mmlocalattn.training.errors import RunError, build_errors, run_errors
from mmlocalattn.training.history import History, read_history
from mmlocalattn.training.invalid_loss import InvalidLossHook
from mmlocalattn.training.launch import (
    adapt_to_device,
    build_runner,
    enable_amp,
    enable_auto_scale_lr,
    set_dtype,
)
from mmlocalattn.training.layer_decay import LayerDecayOptimWrapperConstructor
from mmlocalattn.training.low_precision import autocast_parts, has_bfloat16_units
from mmlocalattn.training.predictions import draw_predictions, save_predictions
from mmlocalattn.training.preflight import check_run, complete_parts
from mmlocalattn.training.resume import ExactResumeHook, apply_resume
from mmlocalattn.training.schedule import ScheduleHook
from mmlocalattn.training.weights import WeightsHook, load_weights

__all__ = [
    'ClockCheckpointHook',
    'ClockHook',
    'ClockTrainLoop',
    'ExactResumeHook',
    'History',
    'InvalidLossHook',
    'LayerDecayOptimWrapperConstructor',
    'RunError',
    'ScheduleHook',
    'WeightsHook',
    'adapt_to_device',
    'add_common_arguments',
    'add_config_arguments',
    'add_data_arguments',
    'allow_mmengine_checkpoints',
    'apply_clock',
    'apply_resume',
    'autocast_parts',
    'build_errors',
    'build_runner',
    'channels_of',
    'check_run',
    'complete_parts',
    'config_of',
    'draw_predictions',
    'enable_amp',
    'enable_auto_scale_lr',
    'find_config',
    'has_bfloat16_units',
    'image_size',
    'last_whole_checkpoint',
    'load_config',
    'load_weights',
    'one_line_errors',
    'preprocessor_of',
    'read_checkpoint',
    'read_history',
    'read_seed',
    'run_config_of',
    'run_errors',
    'save_checkpoint',
    'save_predictions',
    'set_dtype',
    'start_clock',
]
