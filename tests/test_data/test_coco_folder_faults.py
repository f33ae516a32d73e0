"""Each fault of COCO files in a folder: the line that a user reads, and going on without it."""

import json
from pathlib import Path

import pytest
import sample_folders
from broken_folders import RGB, Break, lines, read_broken, save
from sample_folders import read


def change_coco(root: Path, key: str, index: int, **entries: object) -> None:
    path = root / 'annotations.json'
    content = json.loads(path.read_text())
    content[key][index] |= entries
    path.write_text(json.dumps(content))


COCO_FAULTS: dict[str, tuple[Break, str, int]] = {
    'image without annotation': (
        lambda root: save(root / 'images' / 'new.png', RGB),
        'note: {root}/images/new.png: 1 pictures, this one among them, belong to no annotation, '
        'class or split, and are not read',
        0,
    ),
    'image that is not there': (
        lambda root: (root / 'images' / '1.png').unlink(),
        "error: {root}/annotations.json, image '1.png': there is no such picture in the folder. "
        'Put it there, or remove its annotations',
        1,
    ),
    'size': (
        lambda root: change_coco(root, 'images', 1, width=640),
        "error: {root}/annotations.json, image '{root}/images/1.png': 640x64 (width x height) "
        'there, '
        'but the picture is 64x64 (width x height). Write the size of the pictures, and see that '
        'what is drawn fits',
        1,
    ),
    'polygon of two points': (
        lambda root: change_coco(root, 'annotations', 1, segmentation=[[1, 1, 9, 9]]),
        'error: {root}/annotations.json, annotation 2: segmentation has a polygon of 4 numbers: an '
        'even number, and at least 6, are three points. Give it a mask, or take it out; a model '
        'without masks needs none',
        1,
    ),
    'box of no area': (
        lambda root: change_coco(root, 'annotations', 1, bbox=[5, 5, 0, 9]),
        'warning: {root}/annotations.json, annotation 2: bbox [5, 5, 0, 9]: it is less than a '
        'pixel '
        'wide or high, so it is not trained on and counts as missed. Mend it, or take it out',
        1,
    ),
    'category that is not there': (
        lambda root: change_coco(root, 'annotations', 1, category_id=7),
        'warning: {root}/annotations.json, annotation 2: category_id 7 is not that of a category '
        'of '
        'the file, so it is not used. Add a category, or take the annotation out',
        0,
    ),
}


@pytest.mark.parametrize(('change', 'line', 'skipped'), COCO_FAULTS.values(), ids=COCO_FAULTS)
def test_coco(root: Path, change: Break, line: str, skipped: int) -> None:
    sample_folders.write_coco(root, masks=True)
    read_broken(root, change, line, skipped)


def test_boxes_that_are_corners(root: Path) -> None:
    sample_folders.write_coco(root, masks=False)
    path = root / 'annotations.json'
    content = json.loads(path.read_text())
    for entry in content['annotations']:
        x, y, width, height = entry['bbox']
        entry['bbox'] = [x, y, x + width, y + height]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'annotations.json: 3 of 8 boxes .*they are \(x1, y1, x2'):
        read(root, skip_bad=True)


def test_coco_that_is_cut_off(root: Path) -> None:
    sample_folders.write_coco(root, masks=True)
    path = root / 'annotations.json'
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"annotations.json': it is no JSON file: Expecting"):
        read(root)


def write_coco_splits(root: Path) -> None:
    for split, numbers in (('train', [0, 1, 2, 3]), ('val', [4, 5])):
        sample_folders.write_pictures(root / split, numbers)
        (root / f'{split}.json').write_text(json.dumps(sample_folders.coco_content(True, numbers)))


def test_coco_that_is_cut_off_before_its_categories(root: Path) -> None:
    """Else the other file would be taken for all there is."""
    write_coco_splits(root)
    path = root / 'train.json'
    path.write_text(path.read_text().partition('"categories"')[0])
    with pytest.raises(ValueError, match=r"train.json': it is no JSON file: Expecting"):
        read(root)


def test_coco_files_that_are_not_read(root: Path) -> None:
    write_coco_splits(root)
    (root / 'train.json').rename(root / 'instances_train.json')
    (root / 'person_train.json').write_text(json.dumps(sample_folders.coco_content(True)))
    content = {**sample_folders.coco_content(True), 'annotations': []}
    (root / 'test.json').write_text(json.dumps(content))
    assert lines(read(root)) == [
        f'note: {root}/test.json: no annotation of it has a box or mask, so it is not read',
        f"note: {root}/person_train.json: it is not read, as 'instances_train.json' is there",
    ]


@pytest.mark.parametrize('name', ['images', 'Annotations'])
def test_a_picture_that_two_entries_mean(root: Path, name: str) -> None:
    """That of the second is not there, and another one has its name."""
    if name == 'images':
        sample_folders.write_coco(root, masks=True)
        change_coco(root, 'images', 0, file_name='images/1.png')
        change_coco(root, 'images', 1, file_name='others/1.png')
        said = (
            f"error: {root}/annotations.json, image 'others/1.png': '{root}/images/1.png' is the "
        )
        other = 'images/1.png'
    else:
        sample_folders.write_voc(root, masks=False)
        (root / name).mkdir()
        (root / '0.xml').rename(root / name / '1.xml')
        said = f"error: {root}/{name}/1.xml: '{root}/1.png' is the "
        other = f'{root}/1.xml'
    data = read(root, skip_bad=True)
    assert [line for line in lines(data) if line.startswith('error')] == [
        f"{said}only picture it can mean, and '{other}' means it too. Put the other one there, or "
        'remove its annotations'
    ]
    assert data.skipped == 2


def test_same_picture_for_training_and_validation(root: Path) -> None:
    for split, numbers in (('train', [0, 1, 2, 3]), ('val', [3, 4, 5])):
        sample_folders.write_pictures(root / split, numbers)
        content = sample_folders.coco_content(True, numbers)
        if split == 'val':
            (root / 'val' / '3.png').rename(root / 'val' / 'other.png')
            content['images'][0]['file_name'] = 'other.png'
        (root / f'{split}.json').write_text(json.dumps(content))
    data = read(root)
    assert lines(data) == [
        f"warning: {root}/train/3.png: the same picture as '{root}/val/other.png', which is in "
        'val, '
        'this one in train: what is measured on it is no test. Remove one of them'
    ]
    assert data.converted == ''
    skipping = read(root, skip_bad=True)
    assert (skipping.skipped, skipping.splits['train'].num_images) == (1, 3)


def test_all_pictures_are_for_training_and_validation(root: Path) -> None:
    for split in ('train', 'val'):
        sample_folders.write_pictures(root / split)
        (root / f'{split}.json').write_text(json.dumps(sample_folders.coco_content(True)))
    assert len(lines(read(root))) == 6
    with pytest.raises(ValueError, match='every picture for training is one for validation too'):
        read(root, skip_bad=True)


@pytest.mark.parametrize(
    ('key', 'entries'),
    [('annotations', dict(bbox=[5, 5, 10**400, 9])), ('images', dict(width=-(10**400)))],
)
def test_whole_numbers_that_are_too_large(tmp_path: Path, key: str, entries: dict) -> None:
    sample_folders.write_coco(tmp_path, masks=False)
    change_coco(tmp_path, key, 1, **entries)
    with pytest.raises(ValueError, match=r"annotations\.json': line 1 has a number of 401 digits$"):
        read(tmp_path)
