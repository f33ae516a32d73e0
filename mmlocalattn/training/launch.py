"""A config on the machine that it meets."""

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')  # of MMEngine's AmpOptimWrapper


def adapt_to_device(cfg: Config) -> None:
    """Let a config written for GPUs run where there is none, and say so.

    MMEngine's AMP needs an accelerator, SyncBN needs a GPU, and MMEngine's launcher assumes CUDA.
    Without one, training is in float32 with BN, and processes talk through gloo. (With one GPU,
    MMEngine itself replaces SyncBN.)

    Args:
        cfg: Changed in place.
    """
    if get_device() in AMP_DEVICES:
        return
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None and wrapper.get('type', '').endswith('AmpOptimWrapper'):
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        print_log('No GPU found: training in float32 instead of mixed precision.', logger=None)
    _replace_type(cfg.model, 'SyncBN', 'BN')
    if cfg.get('launcher', 'none') == 'pytorch':
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def _replace_type(node: object, old: str, new: str) -> None:
    """Replace ``type=old`` by ``type=new`` in nested dicts and lists."""
    if isinstance(node, dict):
        if node.get('type') == old:
            node['type'] = new
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _replace_type(child, old, new)
