"""Pictures of a validation or test, drawn as it goes, with the ground truth where it shows it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image

from mmlocalattn.visualisation import pictures_hook
from mmlocalattn.visualisation.pictures_hook import PicturesHook, _on_the_picture

TURNED = 0x0112, 6  # EXIF's orientation: lies on its side
AS_STORED = dict(pipeline=[dict(type='LoadImageFromFile', color_type='color_ignore_orientation')])
OBEYED = dict(pipeline=[dict(type='LoadImageFromFile')])
CORNERS = np.array([10.0, 10, 20, 10, 20, 20, 10, 20])


@pytest.mark.parametrize(
    ('split', 'val', 'test', 'size'),
    [
        ('val', AS_STORED, OBEYED, (8, 4)),
        ('test', AS_STORED, OBEYED, (4, 8)),
        ('test', OBEYED, AS_STORED, (8, 4)),
        ('test', None, AS_STORED, (8, 4)),
    ],
)
def test_orientation_is_that_of_the_loader(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
    val: dict | None,
    test: dict,
    size: tuple[int, int],
) -> None:
    """A picture is drawn as the loader that is running reads it."""
    exif = Image.Exif()
    exif[TURNED[0]] = TURNED[1]
    Image.new('RGB', (8, 4)).save(tmp_path / 'a.jpg', exif=exif)
    monkeypatch.setattr(pictures_hook, 'build_visualizer', lambda cfg, meta: meta['classes'])
    monkeypatch.setattr(pictures_hook, 'draw_sample', lambda visualizer, image, sample: image)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=SimpleNamespace(metainfo={})))
    loop.dataloader.dataset.metainfo['classes'] = ('a',)
    cfg = Config(dict(test_dataloader=test, **(dict(val_dataloader=val) if val else {})))
    runner = SimpleNamespace(rank=0, cfg=cfg, val_loop=loop, test_loop=loop)
    hook = PicturesHook(str(tmp_path / 'out'), number=1)
    getattr(hook, f'before_{split}')(runner)
    sample = BaseDataElement(metainfo=dict(img_path=str(tmp_path / 'a.jpg')))
    getattr(hook, f'after_{split}_iter')(runner, 0, outputs=[sample, sample])
    (picture,) = (tmp_path / 'out').iterdir()
    assert Image.open(picture).size == size


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
