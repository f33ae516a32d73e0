"""From a config to the module that is exported, and what the user of its file must know."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from mmlocalattn import __version__
from mmlocalattn.export.files import Size
from mmlocalattn.export.modules import Exportable, FeatureMaps, exportable
from mmlocalattn.export.pipeline import divisor_of, sizes_after, test_scale
from mmlocalattn.training import (
    build_errors,
    channels_of,
    load_weights,
    preprocessor_of,
    read_checkpoint,
)
from mmlocalattn.training.data_sets import check_class_order, classes_of
from mmlocalattn.training.errors import reason_of
from mmlocalattn.training.weights import classes_in

CLASSIFIER_SIZES: list[Size] = [(224, 224), (256, 320), (384, 288)]
DENSE_SIZES: list[Size] = [(512, 512), (480, 640), (608, 448)]


def default_sizes(cfg: Config, file_format: str) -> list[Size]:
    """(height, width) of images on which a file is verified if nobody names others.

    Those of detectors and segmentors are what the test pipeline makes of images of 1:1, 1:2 and
    2:1. A TorchScript file, which takes one size alone, gets that in which all of them fit.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        sizes = CLASSIFIER_SIZES
        return sizes[:1] if file_format == 'torchscript' else sizes
    sizes = sizes_after(cfg) or DENSE_SIZES
    heights, widths = zip(*sizes)
    return [(max(heights), max(widths))] if file_format == 'torchscript' else sizes


def check_sizes(cfg: Config, sizes: list[Size], file_format: str, part: str) -> None:
    """Look for sizes of which no file can be made that takes them.

    Raises:
        ValueError: If there are several for a TorchScript file, or a whole detector does not take
            one.
    """
    named = ' '.join(f'{height}x{width}' for height, width in sizes)
    if file_format == 'torchscript' and len(sizes) > 1:
        raise ValueError(
            f'--size {named}: a TorchScript file takes images of one size; name that alone, or '
            '--format pt2'
        )
    divisor = divisor_of(cfg) if part == 'model' and cfg.get('default_scope') == 'mmdet' else 1
    for height, width in sizes:
        padded = [-(-side // divisor) * divisor for side in (height, width)]
        if padded != [height, width]:
            raise ValueError(
                f'--size {height}x{width}: {cfg.filename} pads the sides of images to multiples of '
                f'{divisor} (pad_size_divisor); name {padded[0]}x{padded[1]}'
            )


def build_exportable(
    cfg: Config,
    checkpoint: str | Path | None = None,
    part: str = 'model',
    labels: bool = False,
) -> Exportable:
    """The part of a config's model that is exported, on the CPU.

    Args:
        cfg: Whose scope becomes the default one.
        checkpoint: Weights; without it they are random. What is not exported needs none.
        part: As for :func:`~mmlocalattn.export.modules.exportable`.
        labels: As there.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the model has no such part, or the checkpoint is of another one.
    """
    if checkpoint is not None:
        read_checkpoint(checkpoint, mmap=True)
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    with build_errors(cfg.filename):
        # A copy: DETRHead leaves a tensor in the config that it takes from nobody.
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    module = exportable(model, scope, part, labels)
    module.in_channels = channels_of(cfg)
    if checkpoint is None:
        if hasattr(model, 'level_embed'):  # of Deformable DETR: what lay in the memory
            torch.nn.init.normal_(model.level_embed)
        return module
    if not isinstance(module, FeatureMaps):
        content = load_weights(model, checkpoint)
        check_class_order(classes_in(content), cfg, f'checkpoint {str(checkpoint)!r}')
        return module
    load_weights(module.extract, checkpoint, 'backbone.')
    if module.neck is not None:
        load_weights(module.neck, checkpoint, 'neck.')
    return module


def check_forward(cfg: Config, module: Exportable, size: Size) -> None:
    """Run a module once, before minutes are spent on a file of it.

    Raises:
        ValueError: If it does not run on images of this (height, width); says why.
    """
    try:
        with torch.no_grad():
            module(torch.zeros(1, module.in_channels, *size))
    except Exception as error:  # of any class that a config names
        raise ValueError(
            f'the model of {cfg.filename} does not run on an image of --size {size[0]}x{size[1]}: '
            f'{reason_of(error)}'
        ) from error


def describe(
    cfg: Config, part: str, sizes: list[Size], file_format: str, module: Exportable | None = None
) -> dict:
    """What a user of the file must know, for its metadata."""
    preprocessor = preprocessor_of(cfg)
    keys = ('mean', 'std', 'bgr_to_rgb', 'to_rgb', 'pad_size_divisor')
    about = {
        'mmlocalattn': __version__,
        'torch': torch.__version__,
        'config': Path(cfg.filename or '').name,
        'scope': cfg.get('default_scope'),
        'part': part,
        'channels': channels_of(cfg),
        'sizes': [list(size) for size in sizes],
        'preprocessing': {key: preprocessor[key] for key in keys if key in preprocessor},
        'requires': list((module or Exportable).requires)
        if file_format in ('pt2', 'torchscript')
        else [],
    }
    if module is None or module.output_names is None:
        return about
    about |= {'outputs': list(module.output_names), 'classes': list(classes_of(cfg) or ())}
    about |= {'test_scale': test_scale(cfg)}
    mask_frame = getattr(module, 'mask_frame', None)
    if mask_frame is not None:
        about |= {'mask_frame': mask_frame, 'mask_threshold': module.mask_threshold}
    return about
