"""Folders for semantic segmentation: classes from names, values and colours; what is converted."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sample_folders
from PIL import Image
from sample_folders import read

from mmlocalattn.data.folders import FolderData

COLOURS = [(0, 0, 0), (0, 128, 0), (9, 9, 200)]


def maps(data: FolderData) -> dict[str, np.ndarray]:
    """Each map by the name of its picture, as mmsegmentation's BaseSegDataset finds it."""
    found = {}
    for split in data.splits.values():
        for name in Path(split.annotations).read_text().splitlines():
            assert Path(split.images, name + data.img_suffix).is_file()
            with Image.open(Path(split.maps, name + data.seg_map_suffix)) as image:
                found[name] = np.array(image)
    return found


def assert_maps(data: FolderData) -> None:
    found = maps(data)
    assert len(found) == 6
    for name, labels in found.items():
        number = int(Path(name).stem)
        np.testing.assert_array_equal(labels, np.array(sample_folders.index_map(number)))


def change_maps(root: Path, change: dict[int, int]) -> None:
    for path in (root / 'masks').iterdir():
        with Image.open(path) as image:
            labels = np.array(image)
        Image.fromarray(
            np.vectorize(lambda value: change.get(value, value))(labels).astype(np.uint8)
        ).save(path)


def test_index_maps_are_read_as_they_stand(root: Path) -> None:
    sample_folders.write_maps(root)
    (root / 'classes.txt').write_text('nothing\ncat\ndog\n')
    before = sample_folders.snapshot(root)
    data = read(root)
    assert sample_folders.snapshot(root) == before
    assert (data.task, data.converted) == ('semantic segmentation', '')
    assert data.classes == ('nothing', 'cat', 'dog')
    assert (data.img_suffix, data.seg_map_suffix) == ('.png', '.png')
    assert data.splits['train'].maps == str(root / 'masks')
    assert_maps(data)


def test_colour_masks_are_converted(root: Path) -> None:
    sample_folders.write_maps(root, COLOURS)
    (root / 'classes.txt').write_text('nothing 0 0 0\ncat 0 128 0\ndog 9 9 200\n')
    data = read(root)
    assert (data.classes, data.palette) == (('nothing', 'cat', 'dog'), tuple(COLOURS))
    assert data.converted == f'colour masks to index maps in {root.parent}/run/data'
    assert_maps(data)


def test_labelmap_of_cvat(root: Path) -> None:
    sample_folders.write_maps(root, COLOURS)
    (root / 'labelmap.txt').write_text(
        '# label:color_rgb:parts:actions\ndog:9,9,200::\nbackground:0,0,0::\ncat:0,128,0::\n'
    )
    data = read(root)
    assert data.classes == ('dog', 'background', 'cat')
    assert data.palette[0] == (9, 9, 200)


def test_colours_that_are_found(root: Path) -> None:
    sample_folders.write_maps(root, COLOURS)
    data = read(root)
    assert data.classes == ('#000000', '#008000', '#0909c8')
    assert_maps(data)


def test_masks_of_0_and_255(root: Path) -> None:
    sample_folders.write_maps(root)
    change_maps(root, {1: 255, 2: 255})
    data = read(root)
    assert data.classes == ('background', 'foreground')
    assert set(np.unique(list(maps(data).values()))) == {0, 1}
    (root / 'classes.txt').write_text('crack\n')
    assert read(root).classes == ('background', 'crack')


def test_values_with_gaps(root: Path) -> None:
    sample_folders.write_maps(root)
    change_maps(root, {1: 38, 2: 75})
    data = read(root)
    assert data.classes == ('0', '38', '75')
    assert_maps(data)


def test_background_that_is_not_named(root: Path) -> None:
    sample_folders.write_maps(root)
    (root / 'classes.txt').write_text('cat\ndog\n')
    data = read(root)
    assert data.classes == ('background', 'cat', 'dog')
    assert 'label 0 of the maps is not among the names' in data.findings[0].message


def test_labels_that_count_from_1(root: Path) -> None:
    sample_folders.write_maps(root)
    change_maps(root, {0: 255})
    for path in (root / 'masks').iterdir():  # 2.png alone would be ignored everywhere
        with Image.open(path) as image:
            labels = np.array(image)
        labels[0, :2] = 1, 2
        Image.fromarray(labels).save(path)
    (root / 'classes.txt').write_text('cat\ndog\n')
    data = read(root)
    assert (data.reduce_zero_label, data.converted) == (True, '')
    assert data.classes == ('cat', 'dog')


def test_splits_suffixes_and_pictures_of_two_kinds(root: Path) -> None:
    """Maps called NAME_mask.png, in folders of splits; one picture is a JPEG file."""
    sample_folders.write_maps(root)
    for i in range(6):
        split = 'train' if i < 4 else 'val'
        (root / split / 'images').mkdir(parents=True, exist_ok=True)
        (root / split / 'masks').mkdir(exist_ok=True)
        (root / 'images' / f'{i}.png').rename(root / split / 'images' / f'{i}.png')
        (root / 'masks' / f'{i}.png').rename(root / split / 'masks' / f'{i}_mask.png')
    data = read(root)
    assert (data.img_suffix, data.seg_map_suffix) == ('.png', '_mask.png')
    assert (data.made_split, data.converted) == (False, '')
    assert data.splits['val'].maps == str(root / 'val' / 'masks')
    assert_maps(data)
    picture = root / 'train' / 'images' / '0.png'
    Image.open(picture).save(picture.with_suffix('.jpg'))
    picture.unlink()
    data = read(root)
    assert (data.img_suffix, data.converted != '') == ('', True)
    assert '0.jpg' in maps(data)
    assert_maps(data)


def test_palettes_that_differ_are_colours(root: Path) -> None:
    """Indices of a file whose program chose its palette by itself mean nothing."""
    sample_folders.write_maps(root, COLOURS)
    for i, path in enumerate(sorted((root / 'masks').iterdir())):
        with Image.open(path) as image:
            colours = np.array(image.convert('RGB'))
        order = COLOURS if i % 2 else COLOURS[::-1]
        indices = sum((colours == colour).all(-1) * k for k, colour in enumerate(order))
        indexed = Image.fromarray(np.asarray(indices, np.uint8), 'P')
        indexed.putpalette([channel for colour in order for channel in colour])
        indexed.save(path)
    data = read(root)
    assert data.classes == ('#000000', '#008000', '#0909c8')
    assert_maps(data)


def test_one_palette_is_that_of_the_classes(root: Path) -> None:
    sample_folders.write_maps(root)
    for path in (root / 'masks').iterdir():
        with Image.open(path) as image:
            indexed = Image.fromarray(np.array(image), 'P')
        indexed.putpalette([channel for colour in COLOURS for channel in colour])
        indexed.save(path)
    data = read(root)
    assert (data.palette, data.converted) == (tuple(COLOURS), '')


def test_pascal_voc_s_maps(root: Path) -> None:
    """Few of its pictures have one, and those of objects lie beside those of classes."""
    sample_folders.write_maps(root)
    (root / 'images').rename(root / 'JPEGImages')
    (root / 'masks').rename(root / 'SegmentationClass')
    shutil.copytree(root / 'SegmentationClass', root / 'SegmentationObject')
    for i in range(10):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / 'JPEGImages' / f'more{i}.png')
    data = read(root)
    assert data.splits['train'].maps == str(root / 'SegmentationClass')
    assert_maps(data)
    said = ' '.join(finding.message for finding in data.findings)
    assert '10 pictures, this one among them, have no map' in said


def test_pictures_whose_names_end_as_those_of_maps(root: Path) -> None:
    sample_folders.write_maps(root)
    for folder in ('images', 'masks'):
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(f'{path.stem}_l.png'))
    data = read(root)
    assert (data.task, len(maps(data))) == ('semantic segmentation', 6)


def test_photographs_of_faces_are_no_masks(root: Path) -> None:
    """Folders of classes whose names sound like maps."""
    sample_folders.write_pictures(root / 'with_mask', [0, 1, 2])
    sample_folders.write_pictures(root / 'bare', [3, 4, 5])
    for i in range(3):
        shutil.move(root / 'bare' / f'{i + 3}.png', root / 'bare' / f'{i}.png')
    data = read(root)
    assert (data.task, data.classes) == ('classification', ('bare', 'with_mask'))


def test_faults(root: Path) -> None:
    sample_folders.write_maps(root)
    (root / 'classes.txt').write_text('nothing\ncat\ndog\n')
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(root / 'masks' / '0.png')
    Image.fromarray(np.zeros((20, 64), np.uint8)).save(root / 'masks' / '1.png')
    (root / 'masks' / '2.png').write_bytes(b'no picture')
    (root / 'masks' / '3.png').unlink()
    data = read(root, skip_bad=True)
    lines = [finding.message for finding in data.findings if finding.severity != 'note']
    assert lines == [
        f'{root}/masks/0.png: 1 of its values, 7, are of no class. Mend the map, or name the class '
        'in classes.txt',
        f'{root}/masks/2.png: this index map cannot be read (cannot identify image file). Copy it '
        'again, or take it out of the data set',
        f'{root}/masks/1.png: 64x20 (width x height) there, but the picture is 64x64 (width x '
        'height). Write the size of the pictures, and see that what is drawn fits',
        f'{root}/images/3.png: 1 pictures, this one among them, have no map and are left out',
        *[line for line in lines if 'does not occur' in line],
    ]
    assert sorted(maps(data)) == ['4', '5']
    with pytest.raises(ValueError, match=r'3 entries of .* cannot be used; --skip-bad goes on'):
        read(root)


@pytest.mark.parametrize('kind', ['RGB', 'RGBA', 'LA', 'JPEG'])
def test_indices_that_no_loader_reads_are_converted(root: Path, kind: str) -> None:
    """MMSegmentation takes maps of one channel, and no JPEG files."""
    sample_folders.write_maps(root)
    (root / 'classes.txt').write_text('nothing\ncat\ndog\n')
    path = root / 'masks' / '2.png'
    with Image.open(path) as image:  # nothing is in it
        if kind == 'JPEG':
            image.save(path, format='JPEG')
        else:
            image.convert(kind).save(path)
    data = read(root)
    assert data.converted == f'maps to index maps in {root.parent}/run/data'
    assert_maps(data)


@pytest.mark.parametrize('step', [1, 0.5])
def test_maps_of_floats(root: Path, step: float) -> None:
    sample_folders.write_maps(root)
    for path in (root / 'masks').iterdir():
        with Image.open(path) as image:
            labels = np.array(image)
        Image.fromarray(labels.astype(np.float32) * step).save(path.with_suffix('.tif'))
        path.unlink()
    if step == 1:
        assert_maps(read(root))
    else:
        message = 'this index map cannot be read (it has numbers that are not whole)'
        with pytest.raises(ValueError, match=re.escape(f'{root}/masks/0.tif: {message}')):
            read(root)


def test_one_bit_masks_beside_colour_masks(root: Path) -> None:
    """Their 1 is a colour of its own, (1, 1, 1), in what is found and in what is written."""
    sample_folders.write_maps(root, COLOURS)
    Image.new('1', (64, 64), 1).save(root / 'masks' / '2.png')
    data = read(root)
    assert data.classes == ('#000000', '#008000', '#010101', '#0909c8')
    assert (maps(data)['2'] == 2).all()


def test_maps_too_large_to_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_folders.write_maps(root)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    message = f'{root}/masks/0.png: this index map cannot be read (Image size (4096 pixels) exceeds'
    with pytest.raises(ValueError, match=re.escape(message)):
        read(root)
