"""Pictures of a validation or test, drawn as it goes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from PIL import Image

from mmlocalattn.visualisation import pictures_hook
from mmlocalattn.visualisation.pictures_hook import PicturesHook

TURNED = 0x0112, 6  # EXIF's orientation: lies on its side
AS_STORED = dict(pipeline=[dict(type='LoadImageFromFile', color_type='color_ignore_orientation')])
OBEYED = dict(pipeline=[dict(type='LoadImageFromFile')])


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
