"""Draw the images of a data set with its boxes, masks, index maps or labels.

Drawn is what the data loader of the config makes, after its random augmentation: what the model
trains on. This does for detection, segmentation and classification what browse_dataset.py of mmdet,
mmsegmentation and mmpretrain do. That of mmsegmentation 1.2.2 hands OpenCV an array that is not
contiguous, and stops.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from rich.progress import track

from mmlocalattn.data import check_data
from mmlocalattn.training import add_config_arguments, config_of
from mmlocalattn.visualisation.pictures import build_visualizer, draw_sample


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument(
        '--output-dir', type=Path, help='default work_dirs/<config name>/browse_<split>'
    )
    parser.add_argument('--number', type=int, default=20, help='of images, default 20; 0 for all')
    args = parser.parse_args(argv)
    if args.number < 0:
        parser.error(f'--number must not be negative, got {args.number}')
    folder = f'work_dirs/{Path(args.config).stem}/browse_{args.split}'
    args.output_dir = args.output_dir or Path(folder)
    return args


def with_plain_arrays(sample: BaseDataElement) -> BaseDataElement:
    """The sample with mmdet's boxes and masks as arrays, which its visualizer wants."""
    sample = sample.numpy()
    instances = sample.get('gt_instances')
    if instances is not None:
        from mmdet.models.utils import mask2ndarray
        from mmdet.structures.bbox import BaseBoxes

        if isinstance(instances.get('bboxes'), BaseBoxes):
            instances.bboxes = instances.bboxes.tensor
        if 'masks' in instances:
            instances.masks = mask2ndarray(instances.masks).astype(bool)
    return sample


def image_of(item: dict) -> NDArray[np.uint8]:
    """The (H, W, 3) BGR image that the pipeline packed as (3, H, W)."""
    return np.ascontiguousarray(item['inputs'].permute(1, 2, 0).numpy())


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        cfg = config_of(args)
        if cfg.get(f'{args.split}_dataloader') is None:
            raise ValueError(f'{args.config!r} has no {args.split}_dataloader')
        check_data(cfg, (args.split,))
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f'{args.split}_dataloader'].dataset)
    visualizer = build_visualizer(cfg, dataset.metainfo)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    number = min(args.number or len(dataset), len(dataset))
    for index in track(range(number), description='drawing'):
        item = dataset[index]
        sample = with_plain_arrays(item['data_samples'])
        picture = draw_sample(visualizer, image_of(item), sample, draw_pred=False)
        name = f'{index:06d}_{Path(sample.get("img_path", "image")).stem}.png'
        if not cv2.imwrite(str(args.output_dir / name), picture):
            raise SystemExit(f'error: cannot write {args.output_dir / name}')
    print(f'{number} of {len(dataset)} images in {args.output_dir}')


if __name__ == '__main__':
    main()
