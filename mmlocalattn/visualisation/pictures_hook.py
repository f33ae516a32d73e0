"""Pictures of the predictions of a validation or test, drawn as it goes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from mmengine.visualization import Visualizer

from mmlocalattn.data.images import read_image, write_image
from mmlocalattn.registry import HOOKS
from mmlocalattn.visualisation.pictures import build_visualizer, draw_sample


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draws ground truth and prediction of images side by side; only the first process does.

    Args:
        folder: Where the pictures go.
        number: Of images, the first ones; None for all.
    """

    priority = 'LOWEST'

    def __init__(self, folder: str, number: int | None = None) -> None:
        self.folder = Path(folder)
        self.number = number
        self._visualizer: Visualizer | None = None
        self._as_stored = False
        self._drawn = 0

    def before_val(self, runner: Runner) -> None:
        """Start with the first image again."""
        self._start(runner, 'val')

    def before_test(self, runner: Runner) -> None:
        """Start with the first image."""
        self._start(runner, 'test')

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Draw a batch."""
        self._draw(outputs or [])

    after_test_iter = after_val_iter

    def _start(self, runner: Runner, split: str) -> None:
        self._drawn = 0
        self._as_stored = 'color_ignore_orientation' in repr(runner.cfg.get(f'{split}_dataloader'))
        if runner.rank == 0 and self._visualizer is None:
            dataset = getattr(runner, f'{split}_loop').dataloader.dataset
            self._visualizer = build_visualizer(runner.cfg, dataset.metainfo)

    def _draw(self, samples: Sequence) -> None:
        for sample in samples:
            if self._visualizer is None or self._drawn == self.number:
                return
            image = read_image(sample.img_path, self._as_stored)
            sample = _on_the_picture(sample.cpu(), image.shape[:2])
            picture = draw_sample(self._visualizer, image, sample)
            name = f'{self._drawn:04d}_{Path(sample.img_path).stem}.png'
            write_image(self.folder / name, picture)
            self._drawn += 1


def _on_the_picture(sample: BaseDataElement, size: tuple[int, int]) -> BaseDataElement:
    """Bring objects back to the size of the picture, of a pipeline that resizes after loading them.

    Args:
        sample: Of mmdet; without masks the pipeline's size is not known, and nothing is done.
        size: Height and width of the picture.
    """
    instances = sample.get('gt_instances')
    masks = None if instances is None else instances.get('masks')
    if masks is None or (masks.height, masks.width) == size:
        return sample
    ratios = torch.tensor([size[1] / masks.width, size[0] / masks.height] * 2)
    sample = sample.clone()
    sample.gt_instances = InstanceData(
        bboxes=instances.bboxes * ratios, labels=instances.labels, masks=masks.resize(size)
    )
    return sample
