"""Pictures of a validation: ground truth is drawn where the picture shows it."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from mmlocalattn.visualisation.pictures_hook import _on_the_picture

CORNERS = np.array([10.0, 10, 20, 10, 20, 20, 10, 20])


@pytest.mark.parametrize(
    'masks',
    [PolygonMasks([[CORNERS]], 64, 64), BitmapMasks(np.ones((1, 64, 64), np.uint8), 64, 64)],
    ids=['polygons', 'bitmaps'],
)
def test_objects_that_the_pipeline_has_resized(masks: PolygonMasks | BitmapMasks) -> None:
    boxes = torch.tensor([[10.0, 10, 20, 20]])
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([3]), masks=masks)
    )
    assert _on_the_picture(sample, (64, 64)) is sample
    resized = _on_the_picture(sample, (96, 128)).gt_instances
    assert resized.bboxes.tolist() == [[20, 15, 40, 30]]
    assert resized.labels.tolist() == [3]
    assert (resized.masks.height, resized.masks.width) == (96, 128)
    assert sample.gt_instances.bboxes is boxes
    bare = DetDataSample(gt_instances=InstanceData(bboxes=boxes))
    assert _on_the_picture(bare, (96, 128)) is bare
