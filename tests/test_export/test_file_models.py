"""Exported files in the place of models."""

import json
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from mmlocalattn.export.file_models import FileDetector

META = dict(sizes=[[64, 96]], outputs=['boxes', 'scores', 'labels', 'masks'], classes=['a'])


class OneBox(nn.Module):
    """Finds the same for each image: a box of 64 x 64, whose mask is its right half."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        number = image.shape[0]
        boxes = torch.tensor([[32.0, 0, 96, 64]]).repeat(number, 1, 1)
        mask = torch.cat((torch.zeros(8, 4), torch.ones(8, 4)), 1)
        return (
            boxes,
            torch.ones(number, 1),
            torch.zeros(number, 1, dtype=torch.int64),
            mask.repeat(number, 1, 1, 1),
        )


def test_masks_are_cut_at_the_border_with_their_boxes(tmp_path: Path) -> None:
    """And not squeezed into what is left of a box that reaches into the padding."""
    traced = torch.jit.trace(OneBox(), torch.zeros(1, 3, 64, 96))
    file = str(tmp_path / 'box.pt')
    torch.jit.save(traced, file, _extra_files={'mmlocalattn.json': json.dumps(META)})
    detector = FileDetector(file, dict(type='mmdet.DetDataPreprocessor'))
    sizes = dict(img_shape=(64, 80), ori_shape=(32, 40), scale_factor=(2.0, 2.0))
    (sample,) = detector.predict(torch.zeros(1, 3, 64, 80), [DetDataSample(metainfo=sizes)])
    assert sample.pred_instances.bboxes.tolist() == [[16, 0, 40, 32]]
    assert sample.pred_instances.masks.shape == (1, 32, 40)
    assert torch.equal(sample.pred_instances.masks[0, 16], torch.arange(40) >= 32)
