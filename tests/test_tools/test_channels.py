"""The tools on images of one and four channels, read as the pipeline of the config reads them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
import torch
from mmseg.models import SegDataPreProcessor
from tiny_data import SIDE, data, quick  # noqa: F401

pytestmark = pytest.mark.usefixtures('quick')

GRAY = """
model['backbone']['in_channels'] = 1
model['data_preprocessor'] = dict(mean=[100.0], std=[50.0], bgr_to_rgb=False)
pipeline[0]['color_type'] = 'grayscale'
"""
FOUR = """
model['backbone']['in_channels'] = 4
model['data_preprocessor'].update(mean=[100.0] * NUMBERS, std=[50.0] * NUMBERS, bgr_to_rgb=False)
pipeline[0]['color_type'] = 'unchanged'
"""
KINDS = {'gray': ('DETECTION', GRAY, 1), 'four': ('SEGMENTATION', FOUR, 4)}


@pytest.fixture
def images(tmp_path: Path, data: Path) -> Path:  # noqa: F811
    """The tiny data set, each image with a fourth channel of infrared."""
    folder = tmp_path / 'data'
    for name in ('images', 'maps'):
        (folder / name).mkdir(parents=True)
        for file in (data / name).iterdir():
            image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            image = np.dstack([image, 255 - image[..., 0]]) if name == 'images' else image
            cv2.imwrite(str(folder / name / file.name), image)
    (folder / 'coco.json').write_text((data / 'coco.json').read_text())
    return folder


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path, images: Path) -> tuple[str, Path, int]:
    """A config, a checkpoint with random weights, and the channels."""
    task, extra, channels = KINDS[request.param]
    try:
        SegDataPreProcessor(mean=[0.0] * 4, std=[1.0] * 4)
        numbers = 4
    except AssertionError:  # onedl's takes 1 or 3, as MMDetection's
        numbers = 1
    extra = extra.replace('NUMBERS', str(numbers))
    config, checkpoint = tiny_data.write_model(tmp_path, images, task, extra)
    return config, checkpoint, channels


def test_image_demo(model: tuple[str, Path, int], images: Path, tmp_path: Path) -> None:
    config, checkpoint, channels = model
    tool = tiny_data.load_tool('image_demo')
    out = tmp_path / 'out'
    options = ('--device', 'cpu', '--score-thr', 0.0, '--out-dir', out)
    tiny_data.run(tool, config, checkpoint, images / 'images' / '0.png', *options)
    drawn = cv2.imread(str(out / '0.png'))
    assert drawn.shape[1:] == (SIDE, 3)
    assert drawn[:SIDE].std() > 5
    if channels == 4:
        cv2.imwrite(str(tmp_path / 'color.png'), drawn)
        with pytest.raises(
            SystemExit, match=r"color\.png' is read with 3 channels, the model takes 4: say color_"
        ):
            tiny_data.run(tool, config, checkpoint, tmp_path / 'color.png', *options)


def test_browse_dataset(model: tuple[str, Path, int], tmp_path: Path) -> None:
    tool = tiny_data.load_tool('analysis/browse_dataset')
    tiny_data.run(tool, model[0], '--number', 1, '--output-dir', tmp_path / 'out')
    (picture,) = (tmp_path / 'out').iterdir()
    assert cv2.imread(str(picture)).shape[1:] == (SIDE, 3)


def test_vis_attention(model: tuple[str, Path, int], images: Path, tmp_path: Path) -> None:
    config, checkpoint, _ = model
    argv = (config, checkpoint, images / 'images' / '0.png', '--short-side', 64, '--stages', 3)
    tiny_data.run(tiny_data.load_tool('analysis/vis_attention'), *argv, '--out', tmp_path / 'out')
    names = sorted(file.name for file in (tmp_path / 'out').iterdir())
    assert names == ['attention.html', 'stage3_32_32.png']


def test_export(model: tuple[str, Path, int], tmp_path: Path) -> None:
    config, checkpoint, channels = model
    out = tmp_path / 'model.pt'
    argv = (config, checkpoint, '--format', 'torchscript', '--part', 'backbone', '--size', '64x64')
    tiny_data.run(tiny_data.load_tool('export'), *argv, '--out', out)
    files = {'mmlocalattn.json': ''}
    exported = torch.jit.load(out, _extra_files=files)
    assert json.loads(files['mmlocalattn.json'])['channels'] == channels
    assert len(exported(torch.zeros(1, channels, 64, 64))) == 4


@pytest.mark.parametrize('whole', [(), ('--whole',)], ids=['backbone', 'model'])
def test_bench_model(
    model: tuple[str, Path, int],
    whole: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import bench_model
    from benchmarking import timing

    monkeypatch.setattr(timing, 'BLOCK_SECONDS', 0.0)
    bench_model.main([model[0], '--size', '64x64', '--rounds', '1', *whole])
    assert '| 64 x 64 |' in capsys.readouterr().out


def test_swapped_backbone_takes_them(model: tuple[str, Path, int]) -> None:
    config, _, channels = model
    tool = tiny_data.load_tool('analysis/get_flops')
    options = ('--backbone', 'slide_pvt_t', '--size', '64x64')
    tiny_data.run(tool, config, *options)
    from mmlocalattn.adapt import swap_backbone
    from mmlocalattn.training import load_config, preprocessor_of

    cfg = load_config(config)
    swapped = swap_backbone(cfg, 'slide_pvt_t')
    assert swapped.model.backbone.in_channels == channels
    assert preprocessor_of(swapped) == preprocessor_of(cfg)
