"""Drawing ground truth and predictions: one way for the three toolboxes."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from numpy.typing import NDArray

from mmlocalattn.data.check import leaf_datasets
from mmlocalattn.data.findings import Budget
from mmlocalattn.data.images import as_picture, read_image
from mmlocalattn.data.picture_files import MOST_TIMES, is_too_thin, too_many_pixels
from mmlocalattn.training import build_errors, channels_of
from mmlocalattn.training.data_check import check_sample
from mmlocalattn.visualisation.segmentation import draw_maps


def image_reader(cfg: Config) -> Callable[[str | Path], NDArray]:
    """What reads an image as the test data of a config does: an array (H, W) or (H, W, C).

    A config without test data reads BGR images of bytes. The reader raises

    - a FileNotFoundError if there is no such file;
    - a ValueError if it is no image, has another number of channels than the model takes, or is so
      long and thin that no resizing would keep it.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain, whose scope becomes the default one.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    load, channels = _loading(cfg), channels_of(cfg)

    def read(path: str | Path) -> NDArray:
        if not Path(path).is_file():
            raise FileNotFoundError(f'image {str(path)!r} does not exist')
        if reason := too_many_pixels(path):
            raise ValueError(f'{str(path)!r} is not read: {reason}; cut it into pieces')
        if load is None:
            image = read_image(path)
        else:
            try:
                image = TRANSFORMS.build(load)(dict(img_path=str(path)))['img']
            except Exception as error:  # of OpenCV, Pillow, tifffile, ...
                raise ValueError(
                    f'{str(path)!r} is no image that {load["type"]} of the config reads: '
                    + ' '.join(str(error).split())
                ) from error
        check_image(image, channels, path)
        return image

    return read


def check_image(image: NDArray, channels: int, path: str | Path) -> None:
    """Raise a ValueError that names the file if a model cannot take its image."""
    found = 1 if image.ndim == 2 else image.shape[2]
    if found != channels:
        raise ValueError(
            f'{str(path)!r} is read with {found} channels, the model takes {channels}: say '
            "color_type='grayscale', 'color' or 'unchanged' in LoadImageFromFile of the config's "
            'test data, or give other images'
        )
    height, width = image.shape[:2]
    if is_too_thin((width, height)):
        raise ValueError(
            f'{str(path)!r} has {height} x {width} pixels: one side is more than {MOST_TIMES} '
            'times the other; cut it into pieces'
        )


def _loading(cfg: Config) -> dict | None:
    """The transform that reads the images of the test data."""
    loader = cfg.get('test_dataloader')
    if loader is None:
        return None
    pipeline = next(leaf_datasets(loader.dataset)).get('pipeline') or []
    names = [str(transform['type']).rpartition('.')[2] for transform in pipeline]
    loads = [load for load, name in zip(pipeline, names) if re.match('Load.*Image', name)]
    return loads[0] if loads else None


def dataset_meta(cfg: Config, split: str = 'test') -> dict:
    """Classes and palette of a data set of a config; its files are not read.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain, whose scope is the default one.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        The ``metainfo`` of the first data set inside wrappers, without what is None there.

    Raises:
        ValueError: If the config has no such data loader.
    """
    leaf = next(leaf_datasets(_dataset_of(cfg, split)))
    meta = DATASETS.build({**leaf, 'lazy_init': True}).metainfo
    return {key: value for key, value in meta.items() if value is not None}


def build_dataset(cfg: Config, split: str, number: int | None = None) -> BaseDataset:
    """The data set of a config, whose scope becomes the default one.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        split: ``'train'``, ``'val'`` or ``'test'``.
        number: Of the first images that are used, 0 for all: these are checked. None checks a
            sample of all in a few seconds.

    Raises:
        FileNotFoundError: If a file or folder of it does not exist; says how to get it.
        ValueError: If the config has no such data loader, or the data are wrong; says how.
    """
    dataset = _dataset_of(cfg, split)
    budget = None if number is None else Budget(items=number or None, spread=False)
    check_sample(cfg, (split,), with_model=False, budget=budget)
    init_default_scope(cfg.default_scope)
    with build_errors(cfg.filename):
        return DATASETS.build(dataset)


def _dataset_of(cfg: Config, split: str) -> ConfigDict:
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise ValueError(f'{cfg.filename!r} has no {split}_dataloader')
    return loader.dataset


def build_visualizer(cfg: Config, meta: Mapping) -> Visualizer:
    """The visualizer of a config, to draw with and not to log to.

    Args:
        cfg: Whose scope is the default one.
        meta: ``classes`` and ``palette``.
    """
    # Visualizers are global by their name, and an old one would come back without these settings.
    name = f'pictures_{time.time_ns()}'
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': name, 'vis_backends': None})
    visualizer.dataset_meta = dict(meta)
    return visualizer


def draw_sample(
    visualizer: Visualizer, image: NDArray[np.uint8], sample: BaseDataElement, **options: object
) -> NDArray[np.uint8]:
    """Draw what a data sample says about an image.

    Args:
        visualizer: Of :func:`build_visualizer`.
        image: (H, W, 3) BGR, as OpenCV reads it.
        sample: Ground truth, predictions or both.
        options: More arguments of the visualizer, as ``draw_gt=False``.

    Returns:
        (H, W, 3) BGR, or (H, 2 W, 3) with the ground truth on the left.
    """
    maps = [
        torch.as_tensor(sample.get(f'{kind}_sem_seg').data).cpu().numpy()[0]
        for kind in ('gt', 'pred')
        if options.get(f'draw_{kind}', True) and f'{kind}_sem_seg' in sample
    ]
    if maps:
        meta, alpha = visualizer.dataset_meta, getattr(visualizer, 'alpha', 0.5)
        return draw_maps(image, maps, meta['classes'], meta['palette'], alpha)
    # Visualizers draw with OpenCV, which does not take a view with reversed channels.
    rgb = np.ascontiguousarray(image[..., ::-1])
    draw = getattr(visualizer, 'visualize_cls', None) or visualizer.add_datasample
    draw(name='', image=rgb, data_sample=sample, **options)
    return np.ascontiguousarray(visualizer.get_image()[..., ::-1])


def read_item(dataset: BaseDataset, index: int) -> dict:
    """An item of a data set, through its pipeline.

    Raises:
        ValueError: If the pipeline cannot make it; names the image.
    """
    try:
        return dataset[index]
    except Exception as error:  # of whatever the pipeline uses
        where = f'image {index} of the data set'
        if hasattr(dataset, 'get_data_info'):
            where = dataset.get_data_info(index).get('img_path', where)
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'{where}: the pipeline cannot read it: {reason}') from error


def draw_item(visualizer: Visualizer, item: dict) -> NDArray[np.uint8]:
    """Draw an item of a data set with its ground truth.

    Args:
        visualizer: Of :func:`build_visualizer`.
        item: ``inputs``, a (C, H, W) image, and ``data_samples``, as the pipelines of the
            three toolboxes pack them.

    Returns:
        (H, W, 3) BGR.
    """
    image = as_picture(item['inputs'].permute(1, 2, 0).numpy())
    sample = _with_plain_arrays(item['data_samples'])
    return draw_sample(visualizer, image, sample, draw_pred=False)


def _with_plain_arrays(sample: BaseDataElement) -> BaseDataElement:
    """The sample with mmdet's boxes and masks as arrays, which its visualizer wants."""
    sample = sample.numpy()
    instances = sample.get('gt_instances')
    if instances is not None:
        # mmdet's own classes, unless the pipeline left them out.
        bboxes, masks = instances.get('bboxes'), instances.get('masks')
        if hasattr(bboxes, 'tensor'):
            instances.bboxes = bboxes.tensor
        if masks is not None:
            plain = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks
            instances.masks = plain.astype(bool)
    return sample
