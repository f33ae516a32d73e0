"""Folders as programs for COCO, YOLO, Pascal VOC and LabelMe write them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sample_folders
from sample_folders import contents, merged, picture_names, read


def test_coco_with_splits_is_read_as_it_stands(root: Path) -> None:
    for split, numbers in (('train', [0, 1, 2, 3]), ('val', [4, 5])):
        sample_folders.write_pictures(root / split, numbers)
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(sample_folders.coco_content(True, numbers)))
    data = read(root)
    assert (data.converted, data.made_split) == ('', False)
    assert data.splits['val'].annotations == str(root / 'annotations' / 'instances_val2017.json')
    assert data.splits['val'].images == str(root / 'val')
    assert (data.splits['train'].num_images, data.splits['train'].num_objects) == (4, 4)
    assert data.summary.endswith('; 8 objects; read as it stands')


def test_roboflow_coco(root: Path) -> None:
    """Its files lie beside the pictures, and it puts a category in front that nothing is of."""
    for split, numbers in (('train', [0, 1, 2, 3]), ('valid', [4, 5])):
        sample_folders.write_pictures(root / split, numbers)
        content = sample_folders.coco_content(False, numbers)
        content['categories'] = [
            dict(id=0, name='pets', supercategory='none'),
            *({**entry, 'supercategory': 'pets'} for entry in content['categories']),
        ]
        (root / split / '_annotations.coco.json').write_text(json.dumps(content))
    data = read(root)
    assert (data.classes, data.converted) == (('cat', 'dog'), '')
    assert list(data.splits) == ['train', 'val']


def test_coco_keeps_what_it_has(root: Path) -> None:
    """Ids with gaps, crowds, run-length encodings and entries of other programs."""
    sample_folders.write_coco(root, masks=True)
    path = root / 'annotations.json'
    content = json.loads(path.read_text())
    ids = {1: 17, 2: 90}
    for entry in [*content['annotations'], *content['categories']]:
        key = 'category_id' if 'image_id' in entry else 'id'
        entry[key] = ids[entry[key]]
    rle = {'size': [64, 64], 'counts': [0, 640, 3456]}
    content['annotations'][0] |= {'iscrowd': 1, 'segmentation': rle, 'attributes': {'by': 'me'}}
    path.write_text(json.dumps(content))
    data = read(root)
    assert merged(data, 'annotations') == content['annotations']
    assert all(it['categories'] == content['categories'] for it in contents(data).values())


def test_categories_in_another_order(root: Path) -> None:
    """Labels are those of the training file in both files."""
    for split, numbers in (('train', [0, 1, 2, 3]), ('val', [4, 5])):
        sample_folders.write_pictures(root / split, numbers)
        content = sample_folders.coco_content(False, numbers)
        if split == 'val':
            content['categories'] = [dict(id=1, name='dog'), dict(id=2, name='cat')]
        (root / f'{split}.json').write_text(json.dumps(content))
    data = read(root)
    written = contents(data)
    assert data.splits['train'].annotations == str(root / 'train.json')
    assert written['val']['categories'] == written['train']['categories']
    labels = [entry['category_id'] for entry in written['val']['annotations']]
    assert labels == [2, 2, 1, 1]  # cat, cat, dog, dog by their names in the file


def test_two_coco_files_for_one_split(root: Path) -> None:
    sample_folders.write_coco(root, masks=False)
    shutil.copy(root / 'annotations.json', root / 'old.json')
    with pytest.raises(
        ValueError, match=r"has 'annotations.json' and 'old.json': which is meant\?"
    ):
        read(root)


def test_yolo_splits_of_its_yaml(root: Path) -> None:
    """As Roboflow writes them, with paths that lead out of the folder."""
    for split, numbers in (('train', [0, 1, 2]), ('valid', [3, 4]), ('test', [5])):
        sample_folders.write_pictures(root / split / 'images', numbers)
        (root / split / 'labels').mkdir()
        for i in numbers:
            text = sample_folders.yolo_lines(i, False)
            (root / split / 'labels' / f'{i}.txt').write_text(text)
    (root / 'data.yaml').write_text(
        'train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\n'
        'names: [cat, dog]\n'
    )
    data = read(root)
    assert picture_names(data) == {
        'train': ['0.png', '1.png', '2.png'],
        'val': ['3.png', '4.png'],
        'test': ['5.png'],
    }
    assert data.splits['val'].images == str(root / 'valid' / 'images')


def test_yolo_without_yaml(root: Path) -> None:
    """classes.txt and labels beside the pictures, as labelImg writes them."""
    sample_folders.write_pictures(root)
    for i in range(6):
        (root / f'{i}.txt').write_text(sample_folders.yolo_lines(i, False))
    (root / 'classes.txt').write_text('cat\ndog\n')
    assert read(root).classes == ('cat', 'dog')
    (root / 'classes.txt').unlink()
    data = read(root)
    assert data.classes == ('0', '1')
    assert 'the classes are called 0 to 1' in ' '.join(it.message for it in data.findings)


def test_yolo_numbers_of_classes(root: Path) -> None:
    """As text too; with gaps they are no numbers of classes."""
    sample_folders.write_yolo(root, masks=False)
    path = root / 'data.yaml'
    path.write_text("train: images\nnames: {'0': cat, '1': dog}\n")
    assert read(root).classes == ('cat', 'dog')
    path.write_text('train: images\nnames: {a: cat, 1: dog}\n')
    with pytest.raises(ValueError, match=r'names: names has the numbers a, 1, not 0 to 1'):
        read(root)


def test_yolo_of_key_points(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    for path in (root / 'labels').iterdir():
        text = path.read_text().replace('\n', ' 0.5 0.5 2 0.6 0.6 2\n') + ' 0.5 0.5 2 0.6 0.6 2'
        path.write_text(text)
    with (root / 'data.yaml').open('a') as file:
        file.write('kpt_shape: [2, 3]\n')
    data = read(root)
    assert data.task == 'detection'
    assert merged(data, 'annotations') == sample_folders.coco_content(False)['annotations']
    assert 'of which the boxes alone are read' in data.findings[0].message


def test_yolo_labels_of_other_folders(root: Path) -> None:
    """Pictures in a folder that is not called images."""
    sample_folders.write_yolo(root, masks=False)
    (root / 'images').rename(root / 'img')
    (root / 'data.yaml').unlink()
    assert len(merged(read(root), 'annotations')) == 8


def test_yolo_list_files(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    (root / 'train.txt').write_text(''.join(f'./images/{i}.png\n' for i in range(4)))
    (root / 'val.txt').write_text('images/4.png\nimages/5.png\n')
    (root / 'data.yaml').write_text('train: train.txt\nval: val.txt\nnames: [cat, dog]\n')
    assert picture_names(read(root))['val'] == ['4.png', '5.png']
    (root / 'val.txt').write_text('images/4.png\nimages/50.png\n')
    data = read(root, skip_bad=True)
    assert picture_names(data)['val'] == ['4.png']
    message = f"{root}/val.txt, entry 2: there is no picture 'images/50.png'. Put it there, or "
    assert f'{message}remove the line' in [finding.message for finding in data.findings]


@pytest.mark.parametrize('names', ["{'0': cat, '1': dog}", '{1: dog, 0: cat}', '[cat, dog]'])
def test_yolo_names(root: Path, names: str) -> None:
    sample_folders.write_yolo(root, masks=False)
    (root / 'data.yaml').write_text(f'train: images\nnames: {names}\n')
    assert read(root).classes == ('cat', 'dog')


def test_yolo_of_windows(root: Path) -> None:
    """Its editor puts a mark in front of the text."""
    sample_folders.write_yolo(root, masks=False)
    expected = merged(read(root), 'annotations')
    for path in (root / 'labels').iterdir():
        path.write_text(path.read_text().replace('\n', '\r\n'), encoding='utf-8-sig')
    assert merged(read(root), 'annotations') == expected


def test_voc_sizes_that_are_no_numbers(root: Path) -> None:
    sample_folders.write_voc(root, masks=False)
    for i, size in ((0, 'inf'), (1, ''), (3, 'wide'), (4, '0')):
        path = root / f'{i}.xml'
        path.write_text(path.read_text().replace('<width>64', f'<width>{size}'))
    assert len(merged(read(root), 'annotations')) == 8


def test_voc_with_image_sets(root: Path) -> None:
    sample_folders.write_pictures(root / 'JPEGImages')
    (root / 'Annotations').mkdir()
    sets = root / 'ImageSets' / 'Main'
    sets.mkdir(parents=True)
    for i in range(6):
        (root / 'Annotations' / f'{i}.xml').write_text(sample_folders.voc_xml(i))
    (sets / 'train.txt').write_text('0\n1\n2\n')
    (sets / 'val.txt').write_text('3\n4\n')
    assert picture_names(read(root)) == {
        'train': ['0.png', '1.png', '2.png'],
        'val': ['3.png', '4.png'],
    }
    (sets / 'val.txt').write_text('2\n3\n4\n7\n8\n')
    said = [finding.message for finding in read(root, skip_bad=True).findings]
    assert said[:2] == [
        f'{sets}/val.txt: 1 of its names are in another list too, and are in val alone',
        f"{root}: 2 names of ImageSets, '7' among them, are of no picture. Put them there, or take "
        'the names out',
    ]


def test_difficult_objects_and_the_challenge_s_corners(root: Path) -> None:
    """Pixels of the challenge count from 1; difficult objects are not counted in its AP."""
    sample_folders.write_voc(root, masks=False)
    path = root / '3.xml'
    text = path.read_text().replace('<difficult>0', '<difficult>1')
    database = '<source><database>The VOC2007 Database</database></source>'
    path.write_text(text.replace('<size>', f'{database}<size>'))
    entries = merged(read(root), 'annotations')
    (entry,) = (entry for entry in entries if entry['image_id'] == 4)
    assert (entry['bbox'], entry['iscrowd']) == ([-1, -1, 65, 11], 1)


def test_labelme_shapes(root: Path) -> None:
    """A group of polygons is one object; circles have a mask, and rectangles beside them too."""
    sample_folders.write_labelme(root, masks=True)
    content = sample_folders.labelme_content(1, True)
    content['shapes'] = [
        dict(label='cat', shape_type='circle', points=[[20, 20], [20, 30]], group_id=None),
        dict(label='dog', shape_type='rectangle', points=[[50, 50], [40, 44]], group_id=None),
        dict(label='dog', shape_type='polygon', points=[[0, 0], [8, 0], [8, 8]], group_id=1),
        dict(label='dog', shape_type='polygon', points=[[0, 20], [8, 20], [8, 28]], group_id=1),
        dict(label='hair', shape_type='line', points=[[0, 20], [8, 20]], group_id=None),
    ]
    (root / '1.json').write_text(json.dumps(content))
    data = read(root)
    assert data.classes == ('cat', 'dog')
    circle, rectangle, group = (
        entry for entry in merged(data, 'annotations') if entry['image_id'] == 2
    )
    assert circle['bbox'] == [10, 10, 20, 20]
    assert circle['area'] == pytest.approx(np.pi * 100, rel=0.01)
    assert rectangle['segmentation'] == [[40, 44, 50, 44, 50, 50, 40, 50]]
    assert (group['bbox'], group['area'], len(group['segmentation'])) == ([0, 0, 8, 28], 64, 2)
    assert f'{root}/1.json, shape 5: a line has no area, so it is not read' in [
        finding.message for finding in data.findings
    ]
