"""A folder with one of each fault: a line for each before the training, and none in the midst."""

import json
from pathlib import Path

import numpy as np
import pytest
import sample_folders
import tiny_data
from PIL import Image
from sample_folders import Sample
from tiny_data import quick  # noqa: F401

from mmlocalattn.training import read_history

CHECK = tiny_data.load_tool('analysis/check_data')
TRAIN = tiny_data.load_tool('train')
pytestmark = pytest.mark.usefixtures('quick')

FAULTS = {  # of the picture or annotation: a piece of its line, and whether it stops a training
    'unreadable': ('this image cannot be read (cannot identify image file)', True),
    'truncated': ('this image cannot be read (', True),
    'extension': ('it is called .png and is a JPEG file', False),
    '16bit': ('it has 16 bits per channel', False),
    'cmyk': ('its colours are CMYK', False),
    'rotated': ('are annotated as its EXIF turns it', False),
    'outside': ('it is outside of its picture', False),
    'flat': ('it is less than a pixel wide or high', False),
    'points': ('segmentation has a polygon of 4 numbers', True),
    'class': ('category_id 7 is not that of a category of the file', False),
    'negative': ('have no object: they are kept', False),
    'gone': ('there is no such picture in the folder', True),
    'unlisted': ('belong to no annotation, class or split, and are not read', False),
    'twice': ('which is in val, this one in train', False),
}
NAMES = tuple(f'{name}.{"jpg" if name == "cmyk" else "png"}' for name in FAULTS)
VAL = ('good1.png', 'good2.png')
SAMPLE = Sample(
    side=64,
    classes=('cat', 'dog'),
    names=(*NAMES, *VAL),
    polygons=[
        [] if name.startswith('negative') else [(i % 2, [8, 8, 40, 8, 40, 50, 8, 50])]
        for i, name in enumerate((*NAMES, *VAL))
    ],
)


def entries(content: dict, name: str) -> tuple[dict, dict]:
    """Those of a picture and of its object."""
    image = next(it for it in content['images'] if it['file_name'].startswith(f'{name}.'))
    return image, next(it for it in content['annotations'] if it['image_id'] == image['id'])


def break_pictures(folder: Path) -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    (folder / 'unreadable.png').write_text('<html>')
    whole = (folder / 'truncated.png').read_bytes()
    (folder / 'truncated.png').write_bytes(whole[:-3000])
    Image.fromarray(rgb).save(folder / 'extension.png', format='JPEG')
    Image.fromarray(np.full((64, 64), 30000, np.uint16)).save(folder / '16bit.png')
    Image.fromarray(rgb + 9).convert('CMYK').save(folder / 'cmyk.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb[:56]).save(folder / 'rotated.png', exif=exif)
    (folder / 'gone.png').unlink()


def break_annotations(content: dict) -> None:
    entries(content, 'rotated')[0].update(width=56, height=64)
    entries(content, 'outside')[1].update(bbox=[100, 8, 32, 42])
    entries(content, 'flat')[1].update(bbox=[8, 8, 0, 42])
    entries(content, 'points')[1].update(segmentation=[[8, 8, 40, 50]])
    known = entries(content, 'class')[1]
    content['annotations'].append({**known, 'id': 99, 'category_id': 7})
    image, annotation = entries(content, 'unlisted')
    content['images'].remove(image)
    content['annotations'].remove(annotation)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / 'mine'
    train = range(len(NAMES))
    for split, numbers in (('train', train), ('val', range(len(NAMES), len(SAMPLE.names)))):
        sample_folders.write_pictures(root / split, numbers, SAMPLE)
        content = sample_folders.coco_content(True, numbers, SAMPLE)
        if split == 'train':
            break_pictures(root / split)
            break_annotations(content)
        (root / f'{split}.json').write_text(json.dumps(content))
    (root / 'train' / 'twice.png').write_bytes((root / 'val' / VAL[0]).read_bytes())
    return root


def test_one_line_for_each(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r'error: 4 errors, 6 warnings, 4 notes in the data of'):
        CHECK.main([str(folder), '--out-dir', str(tmp_path / 'out'), '--number', '0'])
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(('error: ', 'warning: ', 'note: '))
    ]
    assert len(lines) == len(FAULTS)
    for name, (text, stops) in FAULTS.items():
        of_fault = [line for line in lines if text in line and (name in line or '.json' in line)]
        assert len(of_fault) == 1, name
        assert of_fault[0].startswith('error: ') == stops, name


def test_a_training_stops_before_or_goes_on_to_its_end(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, tmp_path / 'nowhere')
    argv = [config, '--data', folder, '--work-dir', tmp_path / 'run']
    argv += ['--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    with pytest.raises(SystemExit, match=r'error: 4 entries of .*; --skip-bad goes on without'):
        tiny_data.run(TRAIN, *argv)
    assert not list(tmp_path.glob('run/*.pth'))
    tiny_data.run(TRAIN, *argv, '--skip-bad')
    assert 'bad entries left out' in capsys.readouterr().out
    listed = (tmp_path / 'run' / 'data' / 'findings.txt').read_text()
    assert all(text in listed for text, _ in FAULTS.values())
    assert list(read_history(tmp_path / 'run').val) == [2 * 5]  # of 9 pictures, two at once
