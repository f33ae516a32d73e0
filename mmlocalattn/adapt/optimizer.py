"""The optimizer and the schedules of a config whose backbone was replaced."""

from mmengine.config import Config

from mmlocalattn.adapt.zoo import ZooEntry


def fit_optimizer(cfg: Config, entry: ZooEntry) -> None:
    """Put AdamW in the place of another optimizer, and let schedules end in proportion.

    An Adam or AdamW stays as it is, and so does every optimizer for a backbone that the zoo gives
    none.

    Args:
        cfg: Changed in place.
        entry: The new backbone.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    old = wrapper.get('optimizer')
    batch_size = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    new = entry.optimizer(cfg.get('default_scope') or 'mmengine', batch_size)
    if old is None or new is None or old['type'] in ('Adam', 'AdamW'):
        return
    wrapper['optimizer'] = new
    wrapper['paramwise_cfg'] = {**(wrapper.get('paramwise_cfg') or {}), 'norm_decay_mult': 0.0}
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if 'eta_min' in scheduler:
            scheduler['eta_min'] *= new['lr'] / old['lr']


def fit_layer_decay(cfg: Config) -> None:
    """Name our constructor in the place of mmdet's or mmseg's, which knows ConvNeXt alone.

    mmpretrain's asks a backbone for its layers, as ours does, and stays.

    Args:
        cfg: Changed in place.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('constructor') != 'LearningRateDecayOptimizerConstructor':
        return
    options = dict(wrapper['paramwise_cfg'])
    rate = options.pop('decay_rate')
    for key in ('decay_type', 'num_layers'):
        options.pop(key, None)
    wrapper['constructor'] = 'mmlocalattn.LayerDecayOptimWrapperConstructor'
    wrapper['paramwise_cfg'] = {**options, 'layer_decay_rate': rate}
