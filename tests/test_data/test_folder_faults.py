"""Each fault of a folder: the line that a user reads, and that --skip-bad goes on without it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sample_folders
from broken_folders import RGB, Break, assert_like, lines, read_broken, save
from PIL import Image
from sample_folders import read


def append(root: Path, line: str) -> None:
    path = root / 'labels' / '0.txt'
    path.write_text(f'{path.read_text()}\n{line}\n')


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


# What breaks the folder, and the line about it; bad entries that are left out.
YOLO_FAULTS: dict[str, tuple[Break, str, int]] = {
    'truncated': (
        lambda root: truncate(root / 'images' / '1.png'),
        'error: {root}/images/1.png: this image cannot be read (...truncated...). Copy it again, '
        'or take it out of the data set',
        1,
    ),
    'empty file': (
        lambda root: (root / 'images' / '1.png').write_bytes(b''),
        'error: {root}/images/1.png: this image cannot be read (the file is empty). Copy it '
        'again, or take it out of the data set',
        1,
    ),
    'no picture': (
        lambda root: (root / 'images' / '1.png').write_text('<html>'),
        'error: {root}/images/1.png: this image cannot be read (cannot identify image file). '
        'Copy it again, or take it out of the data set',
        1,
    ),
    'wrong extension': (
        lambda root: save(root / 'images' / '1.png', RGB, format='JPEG'),
        'note: {root}/images/1.png: it is called .png and is a JPEG file',
        0,
    ),
    '16 bits': (
        lambda root: save(root / 'images' / '1.png', np.zeros((64, 64), np.uint16)),
        'warning: {root}/images/1.png: it has 16 bits per channel, of which the upper 8 are read: '
        'a '
        'picture that does not use them is black. Scale it to 8 bits',
        0,
    ),
    'outside': (
        lambda root: append(root, '0 1.2 0.2 1.4 0.2 1.4 0.4'),
        r'warning: {root}/labels/0.txt, line 2: bbox [76.8, 12.8, 12.8, 12.8]: it is outside of '
        'its picture, 64x64, so it is not trained on. Mend it, or take it out',
        1,
    ),
    'no area': (
        lambda root: append(root, '0 0.2 0.2 0.4 0.2 0.6 0.2'),
        'error: {root}/labels/0.txt, line 2: the polygons of segmentation have no area. Give it a '
        'mask, or take it out; a model without masks needs none',
        1,
    ),
    'box among polygons': (
        lambda root: append(root, '0 0.5 0.5 0.25 0.25'),
        'error: {root}/labels/0.txt, line 2: segmentation is missing or empty. Give it a mask, or '
        'take it out; a model without masks needs none',
        1,
    ),
    'two points and a half': (
        lambda root: append(root, '0 0.2 0.2 0.4'),
        "error: {root}/labels/0.txt, line 2: '0 0.2 0.2 0.4' is no class with a box (4 numbers) "
        'or a '
        'polygon (6 and more). Mend or remove it',
        0,
    ),
    'no numbers': (
        lambda root: append(root, 'cat 0.2 0.2 0.4 0.4'),
        "error: {root}/labels/0.txt, line 2: 'cat 0.2 0.2 0.4 0.4' is no class with a box (4 "
        'numbers) or a polygon (6 and more). Mend or remove it',
        0,
    ),
    'not finite': (
        lambda root: append(root, '0 nan 0.2 1.4 0.2 1.4 0.4'),
        'error: {root}/labels/0.txt, line 2: ...not a finite number: the loss becomes NaN. Write '
        'it '
        'anew, or take it out',
        1,
    ),
    'unknown class': (
        lambda root: append(root, '2 0.2 0.2 0.4 0.2 0.4 0.4'),
        'error: {root}/labels/0.txt, line 2: class 2 is not one of the 2 that are named. Name it, '
        'or '
        'remove the object',
        1,
    ),
    'annotations without image': (
        lambda root: (root / 'labels' / 'gone.txt').write_text('0 0.5 0.5 0.2 0.2'),
        'error: {root}/labels/gone.txt: there is no picture of this name. Add it, or remove the '
        'file',
        0,
    ),
    'two files of classes': (
        lambda root: (root / 'other.yaml').write_text('train: images\nnames: [a, b, c]'),
        "warning: {root}/other.yaml: it is not read, as 'data.yaml' is there too",
        0,
    ),
    'empty folder of the yaml': (
        lambda root: [
            (root / 'other').mkdir(),
            (root / 'data.yaml').write_text('train: images\nval: [other]\nnames: [a, b]'),
        ],
        "error: {root}/data.yaml, val: 'other' has no picture. Mend the path",
        0,
    ),
    'number in place of a folder': (
        lambda root: (root / 'data.yaml').write_text('train: images\nval: 5\nnames: [a, b]'),
        'error: {root}/data.yaml, val: 5 does not exist. Mend the path',
        0,
    ),
    'numbers of classes': (
        lambda root: (root / 'data.yaml').write_text('train: images\nnames: {1: dog, x: cat}'),
        'error: {root}/data.yaml, names: names has the numbers 1, x, not 0 to 1',
        0,
    ),
    'labels elsewhere': (
        lambda root: [
            (root / 'more').mkdir(),
            (root / 'more' / '0.txt').write_text('0 0.5 0.5 0.2 0.2'),
        ],
        'note: {root}/more/0.txt: 1 label files, this one among them, belong to no picture that '
        'is read',
        0,
    ),
    'folder of the yaml': (
        lambda root: (root / 'data.yaml').write_text('train: images\nval: other\nnames: [a, b]'),
        "error: {root}/data.yaml, val: 'other' does not exist. Mend the path",
        0,
    ),
}


@pytest.mark.parametrize(('change', 'line', 'skipped'), YOLO_FAULTS.values(), ids=YOLO_FAULTS)
def test_yolo(root: Path, change: Break, line: str, skipped: int) -> None:
    sample_folders.write_yolo(root, masks=True)
    data = read_broken(root, change, line, skipped)
    if line.startswith('error'):
        with pytest.raises(ValueError, match=r'1 entries of .* cannot be used; --skip-bad goes on'):
            read(root)
    written = json.loads(Path(data.splits['train'].annotations).read_text())
    known = {image['id'] for image in written['images']}
    assert all(entry['image_id'] in known for entry in written['annotations'])


def test_cmyk(root: Path) -> None:
    sample_folders.write_pictures(root)
    for i in range(6):
        content = {**sample_folders.labelme_content(i, False), 'imagePath': f'{i}.jpg'}
        (root / f'{i}.json').write_text(json.dumps(content))
        Image.open(root / f'{i}.png').convert('CMYK').save(root / f'{i}.jpg')
        (root / f'{i}.png').unlink()
    said = lines(read(root))
    assert said[0] == (
        f'warning: {root}/0.jpg: its colours are CMYK, which programs turn into RGB each in its '
        'own '
        'way. Save it as RGB'
    )
    assert len(said) == 6


def test_one_of_each_fault(root: Path) -> None:
    """Each has its line; without them a data set is left."""
    sample_folders.write_yolo(root, masks=True)
    for fault in ('truncated', 'outside', 'no area', 'no numbers', 'unknown class'):
        YOLO_FAULTS[fault][0](root)
    YOLO_FAULTS['annotations without image'][0](root)
    save(root / 'images' / '3.png', RGB, format='JPEG')
    save(root / 'images' / '4.png', np.zeros((64, 64), np.uint16))
    save(root / 'images' / '5.png', RGB, format='JPEG', quality=10)
    data = read(root, skip_bad=True)
    assert Counter(line.partition(':')[0] for line in lines(data)) == dict(
        error=5, warning=2, note=2
    )
    assert [split.num_images for split in data.splits.values()] == [4, 1]
    with pytest.raises(ValueError, match=r'^5 entries of '):
        read(root)


def test_what_a_training_says(root: Path) -> None:
    """The first findings of each kind; a file has all of them."""
    sample_folders.write_yolo(root, masks=True)
    for i in range(6):
        (root / 'labels' / f'gone{i}.txt').write_text('0 0.5 0.5 0.2 0.2')
    data = read(root, skip_bad=True)
    assert data.report[0] == data.summary
    said = [line for line in data.report if 'no picture of this name' in line]
    assert len(said) == 3
    assert 'error: and 3 more like it (missing image)' in data.report
    path = root.parent / 'run' / 'data' / 'findings.txt'
    assert data.report[-1] == f'all that was found, and left out: {path}'
    listed = path.read_text().splitlines()
    assert len(listed) == len(data.findings)
    assert sum('no picture of this name' in line for line in listed) == 6
    with pytest.raises(ValueError, match=r'entries of') as stopped:
        read(root)
    assert str(stopped.value).count('\n') == 4


@pytest.mark.parametrize(
    ('old', 'new', 'line'),
    [
        (
            '</annotation>',
            '',
            'error: {root}/0.xml: it is no XML file (no element found...). Mend it, or remove it '
            'with its picture',
        ),
        (
            '<xmin>4</xmin>',
            '<xmin></xmin>',
            'error: {root}/0.xml, object 1: its bndbox is no four numbers. Mend or remove it',
        ),
        (
            '<name>cat',
            '<name>horse',
            "error: {root}/0.xml, object 1 ('horse'): its class is none of the 2 that are named. "
            'Name it, or remove the object',
        ),
    ],
)
def test_voc(root: Path, old: str, new: str, line: str) -> None:
    sample_folders.write_voc(root, masks=False)
    (root / 'classes.txt').write_text('cat\ndog\n')
    path = root / '0.xml'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    (said,) = lines(read(root, skip_bad=True))
    assert_like(said, line, root)


def test_labelme(root: Path) -> None:
    sample_folders.write_labelme(root, masks=True)
    content = sample_folders.labelme_content(0, True)
    content['shapes'] += [
        dict(label='cat', shape_type='polygon', points=[[1, 1], [9, 9]], group_id=None),
        dict(label='cat', shape_type='circle', points=[[1, 1]], group_id=None),
    ]
    (root / '0.json').write_text(json.dumps(content))
    (root / '1.json').write_text('{"shapes": [')
    (root / '3.json').write_text('{"shapes": null}')
    said = sorted(lines(read(root, skip_bad=True)))
    assert said.pop() == (
        f'error: {root}/3.json: it has no list of shapes. Mend it, or remove it with its picture'
    )
    assert len(said) == 3
    assert said[1] == (
        f'error: {root}/0.json, shape 3: its circle cannot be read (not enough values to unpack '
        '(expected 2, got 1)). Draw it anew, or remove it'
    )
    assert said[2].startswith(f'error: {root}/1.json: it is no JSON file (Expecting value')
    assert said[0].startswith(f'error: {root}/0.json, shape 2: segmentation has a polygon of 4')


def test_shapes_without_label_or_of_another_program(root: Path) -> None:
    sample_folders.write_labelme(root, masks=True)
    content = sample_folders.labelme_content(0, True)
    corners = [[1, 1], [9, 1], [9, 9]]
    content['shapes'] += [
        dict(label=None, shape_type='polygon', points=corners, group_id=None),
        dict(label='cat', shape_type='rotation', points=corners, group_id=None),
    ]
    content['shapes'][0]['group_id'] = [1]  # of a program that nests them
    (root / '0.json').write_text(json.dumps(content))
    data = read(root, skip_bad=True)
    assert data.classes == ('cat', 'dog')
    assert lines(data) == [
        f'error: {root}/0.json, shape 3: its rotation cannot be read (known are polygon, '
        'rectangle, circle, mask). Draw it anew, or remove it',
        f"error: {root}/0.json, shape 2 ('None'): its class is none of the 2 that are named. Name "
        'it, or remove the object',
    ]


def test_key_points_that_are_cut_off(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    with (root / 'data.yaml').open('a') as file:
        file.write('kpt_shape: [2, 3]\n')
    append(root, '0 0.5 0.5 0.2')
    assert lines(read(root, skip_bad=True))[1] == (
        f"error: {root}/labels/0.txt, line 2: '0 0.5 0.5 0.2' is no class with a box (4 numbers) "
        'or a polygon (6 and more). Mend or remove it'
    )


def test_orientation_that_nothing_tells(root: Path) -> None:
    """YOLO gives no sizes, and a square picture has one size either way."""
    sample_folders.write_yolo(root, masks=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    save(root / 'images' / '1.png', RGB, exif=exif)
    data = read(root)
    assert not data.ignore_orientation
    assert lines(data) == [
        f'warning: {root}/images/1.png: 1 pictures, this one among them, have an EXIF orientation, '
        'and nothing says whether they are annotated with it; it is obeyed. Look at them in the '
        'contact sheet'
    ]


def test_orientations_that_differ(root: Path) -> None:
    """Most pictures are annotated as their flag turns them, one as it is stored."""
    sample_folders.write_voc(root, masks=False)
    exif = Image.Exif()
    exif[0x0112] = 8
    for i, size in ((0, (40, 64)), (1, (40, 64)), (3, (64, 40))):
        save(root / f'{i}.png', RGB[:40], exif=exif)
        (root / f'{i}.xml').write_text(sample_folders.voc_xml(i, size))
    said = [line for line in lines(read(root, skip_bad=True)) if not line.startswith('warning')]
    assert said == [
        f'note: {root}/0.png: 2 pictures, this one among them, are annotated as its EXIF turns it',
        f"error: {root}/3.xml, image '{root}/3.png': 64x40 (width x height) there, but the picture "
        'is 40x64 (width x height) with its EXIF orientation obeyed, as others need it. Turn this '
        'picture, or annotate it anew',
    ]


def test_nothing_is_left(root: Path) -> None:
    sample_folders.write_yolo(root, masks=True)
    for path in (root / 'labels').iterdir():
        path.write_text('5 0.5 0.5 0.2 0.2')
    with pytest.raises(ValueError, match=r'\(YOLO\) has no object that can be used'):
        read(root, skip_bad=True)
