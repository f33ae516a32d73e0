"""People's folders: each format gives the same data, splits leak nothing, nothing is written in."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sample_folders
from PIL import Image
from sample_folders import WRITERS

from mmlocalattn.data.folders import FolderData, count_table, read_folder

VOC = 'Pascal VOC'  # has boxes alone


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / 'mine'
    folder.mkdir()
    return folder


def read(root: Path, **options: object) -> FolderData:
    return read_folder(str(root), str(root.parent / 'run' / 'data'), **options)


def contents(data: FolderData) -> dict[str, dict]:
    return {
        name: json.loads(Path(split.annotations).read_bytes())
        for name, split in data.splits.items()
    }


def picture_names(data: FolderData) -> dict[str, list[str]]:
    return {
        name: [image['file_name'] for image in content['images']]
        for name, content in contents(data).items()
    }


def merged(data: FolderData, key: str) -> list[dict]:
    """The entries of all splits; which picture is where depends on how Pillow packs it."""
    entries = [entry for content in contents(data).values() for entry in content[key]]
    return sorted(entries, key=lambda entry: entry['id'])


@pytest.fixture(scope='module')
def val_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The validation pictures that are chosen in a folder in COCO's format."""
    folder = tmp_path_factory.mktemp('reference') / 'mine'
    sample_folders.write_coco(folder, masks=False)
    return picture_names(read(folder))['val']


@pytest.mark.parametrize(
    ('source', 'masks'),
    [(source, masks) for source in WRITERS for masks in (False, True) if masks <= (source != VOC)],
)
def test_each_format_gives_the_same_data(
    root: Path, source: str, masks: bool, val_names: list[str]
) -> None:
    WRITERS[source](root, masks)
    before = sample_folders.snapshot(root)
    data = read(root)
    assert sample_folders.snapshot(root) == before
    assert (data.source, data.classes) == (source, ('cat', 'dog'))
    assert data.task == ('instance segmentation' if masks else 'detection')
    assert data.masks is masks
    written = contents(data)
    whole = sample_folders.coco_content(masks)
    assert merged(data, 'images') == whole['images']
    assert merged(data, 'annotations') == whole['annotations']
    assert all(content['categories'] == whole['categories'] for content in written.values())
    # The split is by the content of the pictures, so it is the same one in each format.
    assert picture_names(data)['val'] == val_names
    assert all(
        os.path.isfile(os.path.join(split.images, '3.png')) for split in data.splits.values()
    )
    notes = [finding.kind for finding in data.findings if finding.severity != 'warning']
    assert notes == ['images without objects']
    assert data.image_size == (64, 64)


def test_what_is_said(root: Path) -> None:
    sample_folders.write_yolo(root, masks=True)
    data = read(root, val_fraction=0.5)
    assert data.summary == (
        f'{root}: YOLO, instance segmentation; 2 classes (cat, dog); pictures: 3 train, 3 val '
        '(split made here); 8 objects; converted: YOLO annotations to COCO files in '
        f'{root.parent}/run/data'
    )
    cat, dog = data.counts
    assert (cat.train + cat.val, cat.small, cat.medium, cat.large) == (4, 4, 0, 0)
    assert (dog.train + dog.val, dog.small, dog.medium, dog.large) == (4, 4, 0, 0)
    assert count_table(data).splitlines()[2] == (
        f'| cat              |     {cat.train} |   {cat.val} |             4 |              0 |'
        '     0 |'
    )


def test_class_that_is_never_annotated(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    (root / 'data.yaml').write_text('train: images\nnames: [cat, dog, horse]\n')
    lines = [finding.message for finding in read(root).findings]
    assert (
        f"{root}, class 'horse': it does not occur in train: nothing is learned about it. Add "
        'some, or take the class out'
    ) in lines


def test_second_reading_finds_the_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_folders.write_yolo(root, masks=False)
    first = read(root)
    with monkeypatch.context() as patch:
        patch.setattr('mmlocalattn.data.folders.recognise', None)
        assert read(root) == first
    (root / 'labels' / '3.txt').write_text('0 0.5 0.5 0.25 0.25')
    assert len(merged(read(root), 'annotations')) == len(merged(first, 'annotations'))
    assert read(root) != first


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


def test_yolo_list_files(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    (root / 'train.txt').write_text(''.join(f'./images/{i}.png\n' for i in range(4)))
    (root / 'val.txt').write_text('images/4.png\nimages/5.png\n')
    (root / 'data.yaml').write_text('train: train.txt\nval: val.txt\nnames: [cat, dog]\n')
    assert picture_names(read(root))['val'] == ['4.png', '5.png']


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
        dict(label='dog', shape_type='line', points=[[0, 20], [8, 20]], group_id=None),
    ]
    (root / '1.json').write_text(json.dumps(content))
    data = read(root)
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


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_split_is_the_same_on_each_call_and_by_content(
    root: Path, write: Callable[[Path, bool], None]
) -> None:
    write(root, False)
    names = picture_names(read(root, val_fraction=0.5))
    shutil.rmtree(root.parent / 'run')
    assert picture_names(read(root, val_fraction=0.5)) == names
    assert sorted(names['train'] + names['val']) == sample_folders.NAMES
    assert len(names['val']) == 3


def test_same_picture_under_two_names_is_on_one_side(root: Path) -> None:
    sample_folders.write_pictures(root)
    for i in range(6):
        (root / f'{i}.json').write_text(json.dumps(sample_folders.labelme_content(i, False)))
        content = {**sample_folders.labelme_content(i, False), 'imagePath': f'copy{i}.png'}
        shutil.copy(root / f'{i}.png', root / f'copy{i}.png')
        (root / f'copy{i}.json').write_text(json.dumps(content))
    names = picture_names(read(root, val_fraction=0.5))
    assert Counter(name.removeprefix('copy') for name in names['val']) == Counter(
        {name.removeprefix('copy'): 2 for name in names['val']}
    )
    assert len(names['val']) == len(names['train']) == 6


def test_class_folders(root: Path) -> None:
    sample_folders.write_class_folders(root)
    data = read(root)
    assert (data.task, data.classes) == ('classification', ('cat', 'dog'))
    lines = Path(data.splits['val'].annotations).read_text().splitlines()
    assert [line.split()[1] for line in lines] == ['0', '1']  # of each class a share
    assert data.splits['train'].images == str(root)
    assert (data.counts[0].train, data.counts[0].val) == (2, 1)


def test_class_folders_in_splits(root: Path) -> None:
    sample_folders.write_class_folders(root / 'train')
    sample_folders.write_pictures(root / 'val' / 'dog', [0])
    data = read(root, skip_bad=True)
    assert Path(data.splits['val'].annotations).read_text() == '0.png 1\n'
    assert data.splits['val'].images == str(root / 'val' / 'dog')
    # The same picture as one for training, which is left out of those.
    assert data.skipped == 1
    assert '0.png' not in Path(data.splits['train'].annotations).read_text()


def test_task_chooses_where_there_is_more_than_one(root: Path) -> None:
    sample_folders.write_maps(root)
    (root / 'annotations.json').write_text(json.dumps(sample_folders.coco_content(True)))
    assert read(root).task == 'instance segmentation'
    assert read(root, task='semantic segmentation').task == 'semantic segmentation'
    with pytest.raises(ValueError, match='no data set for classification that is known: a folder'):
        read(root, task='classification')


def test_nothing_recognised(root: Path) -> None:
    (root / 'notes.md').write_text('to do')
    with pytest.raises(
        ValueError, match=r'holds 1 files, 0 of them pictures, and no data set that'
    ):
        read(root)
    with pytest.raises(FileNotFoundError, match='is no folder'):
        read(root / 'missing')


def test_arguments(root: Path) -> None:
    sample_folders.write_coco(root, masks=False)
    with pytest.raises(ValueError, match='above 0 and below 1, got 1'):
        read(root, val_fraction=1)
    with pytest.raises(ValueError, match='is inside of'):
        read_folder(str(root), str(root / 'out'))
    (root.parent / 'run' / 'data').mkdir(parents=True)
    with pytest.raises(ValueError, match='exists and holds something else'):
        read(root)
    assert not list((root.parent / 'run').glob('.*'))


def test_one_picture_cannot_be_split(root: Path) -> None:
    sample_folders.write_pictures(root, [0])
    (root / '0.json').write_text(json.dumps(sample_folders.labelme_content(0, False)))
    with pytest.raises(ValueError, match='there are 1 pictures, and a split needs two'):
        read(root)


def test_orientation_is_chosen_by_the_sizes(root: Path) -> None:
    """A picture on its side: annotated as stored, or as the camera's flag turns it."""
    sample_folders.write_voc(root, masks=False)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(root / '3.png', exif=exif)
    (root / '3.xml').write_text(sample_folders.voc_xml(3, (64, 40)))
    data = read(root)
    assert data.ignore_orientation
    image = merged(data, 'images')[3]
    assert (image['width'], image['height']) == (64, 40)
    (root / '3.xml').write_text(sample_folders.voc_xml(3, (40, 64)))
    assert not read(root, skip_bad=True).ignore_orientation
