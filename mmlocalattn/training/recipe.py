"""The recipe of a config for other data on this machine: batch, length, learning rate."""

from collections.abc import Collection
from copy import deepcopy

from mmengine.config import Config

from mmlocalattn.adapt import describe_changes
from mmlocalattn.adapt.sizes import fit_length
from mmlocalattn.training.batch import fit_batch
from mmlocalattn.training.clock import apply_clock


def fit_recipe(
    cfg: Config,
    num_images: int | None = None,
    minutes: float | None = None,
    given: Collection[str] = (),
) -> None:
    """Fit what is not given, and print what was changed.

    Args:
        cfg: Changed in place.
        num_images: For training, of data that are not those of the config; None if they are.
        minutes: To train by the clock; None for epochs or iterations.
        given: Keys of the config that stay, as ``'train_dataloader.batch_size'``.

    Raises:
        ValueError: Of :func:`~mmlocalattn.training.clock.apply_clock`.
    """
    before = deepcopy(cfg)
    is_length_given = any(key.startswith(('train_cfg.', 'param_scheduler')) for key in given)
    if num_images is not None:
        is_tried = cfg.get('launcher', 'none') == 'none'  # else processes would share memory
        if is_tried and 'train_dataloader.batch_size' not in given:
            fit_batch(cfg, num_images, 60 * minutes if minutes else None)
        if minutes is None and not is_length_given:
            fit_length(cfg, num_images)
    if minutes is not None:
        apply_clock(cfg, minutes)
    changes = describe_changes(before, cfg)
    if changes:
        print('for these data, this machine and its time:', *changes, sep='\n  ')
