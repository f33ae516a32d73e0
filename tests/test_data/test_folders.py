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
from sample_folders import SIX, WRITERS, contents, merged, picture_names, read

from mmlocalattn.data.folders import NotRecognised, count_table, read_folder

VOC = 'Pascal VOC'  # has boxes alone


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


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_split_is_the_same_on_each_call_and_by_content(
    root: Path, write: Callable[[Path, bool], None]
) -> None:
    write(root, False)
    names = picture_names(read(root, val_fraction=0.5))
    shutil.rmtree(root.parent / 'run')
    assert picture_names(read(root, val_fraction=0.5)) == names
    assert sorted(names['train'] + names['val']) == list(SIX.names)
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


def test_rare_classes_stay_in_training(root: Path) -> None:
    """With half of the pictures for validation, one of them alone having a horse."""
    for rare in range(6):
        folder = root / str(rare)
        sample_folders.write_yolo(folder, masks=False)
        (folder / 'data.yaml').write_text('train: images\nnames: [cat, dog, horse]\n')
        with (folder / 'labels' / f'{rare}.txt').open('a') as file:
            file.write('\n2 0.5 0.5 0.25 0.25\n')
        data = read_folder(str(folder), str(root.parent / str(rare)), val_fraction=0.5)
        horse = data.counts[2]
        assert (horse.train, horse.val) == (1, 0)
        assert data.splits['val'].num_images == 3


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


def test_class_folders_with_splits_below(root: Path) -> None:
    for number, name in enumerate(('cat', 'dog')):
        sample_folders.write_pictures(root / name / 'train', [3 * number, 3 * number + 1])
        sample_folders.write_pictures(root / name / 'val', [3 * number + 2])
    data = read(root)
    assert not data.made_split
    assert Path(data.splits['val'].annotations).read_text() == 'cat/val/2.png 0\ndog/val/5.png 1\n'


def test_class_folders_beside_splits_are_not_read(root: Path) -> None:
    """'unsorted' would become a class otherwise."""
    sample_folders.write_class_folders(root / 'train')
    for i in range(4):
        sample_folders.write_class_folders(root / 'train' / f'more{i}')
    sample_folders.write_pictures(root / 'val' / 'dog', [5])
    sample_folders.write_pictures(root / 'unsorted' / 'dog', [0])
    data = read(root)
    assert 'unsorted' not in data.classes
    assert data.findings[0].message.startswith(f'{root}/unsorted/dog/0.png: 1 pictures, this one')


def test_folders_of_splits_are_no_classes(root: Path) -> None:
    sample_folders.write_pictures(root / 'train', [0, 1, 2])
    sample_folders.write_pictures(root / 'val', [3, 4])
    with pytest.raises(ValueError, match='and no data set that is known'):
        read(root)
    sample_folders.write_pictures(root / 'bus', [5])
    assert read(root).classes == ('bus', 'train', 'val')


def test_pictures_beside_those_for_validation_are_for_training(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    (root / 'data.yaml').unlink()
    for folder, suffix in (('images', 'png'), ('labels', 'txt')):
        (root / folder / 'val').mkdir()
        (root / folder / f'5.{suffix}').rename(root / folder / 'val' / f'5.{suffix}')
    data = read(root)
    assert not data.made_split
    assert sample_folders.picture_names(data) == {
        'train': [f'{i}.png' for i in range(5)],
        'val': ['5.png'],
    }


def test_classes_of_one_picture_cannot_be_split(root: Path) -> None:
    sample_folders.write_pictures(root / 'cat', [0])
    sample_folders.write_pictures(root / 'dog', [1])
    with pytest.raises(ValueError, match='no class has two different pictures, one of the 2 for'):
        read(root)


def test_folders_that_are_no_classes(root: Path) -> None:
    """Splits, and pictures that are annotated each."""
    for name in ('train', 'val'):
        sample_folders.write_pictures(root / name)
    with pytest.raises(NotRecognised):
        read(root, task='classification')
    (root / 'train').rename(root / 'monday')
    (root / 'val').rename(root / 'tuesday')
    assert read(root, task='classification').classes == ('monday', 'tuesday')
    (root / 'monday' / '1.xml').write_text(sample_folders.voc_xml(1))
    with pytest.raises(NotRecognised):
        read(root, task='classification')


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


def test_a_description_of_other_programs_is_left_alone(root: Path) -> None:
    """Others call theirs dataset.json too."""
    sample_folders.write_coco(root, masks=False)
    other = root.parent / 'run' / 'data' / 'dataset.json'
    other.parent.mkdir(parents=True)
    for text in ('{"labels": {}}', '[1]', 'no JSON'):
        other.write_text(text)
        with pytest.raises(ValueError, match='exists and holds something else'):
            read(root)
        assert other.read_text() == text


def test_pictures_that_are_not_read(root: Path) -> None:
    sample_folders.write_yolo(root, masks=False)
    sample_folders.write_pictures(root / 'more', [0, 1])
    (root / 'more' / 'a.heic').touch()
    (root / 'more' / 'b.GIF').touch()
    assert [finding.message for finding in read(root).findings[:2]] == [
        f'{root}/more/0.png: 2 pictures, this one among them, belong to no annotation, class or '
        'split, and are not read',
        f'{root}/more/a.heic: 2 files, this one among them, are pictures of formats that are not '
        'read. Save them as JPEG',
    ]


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
