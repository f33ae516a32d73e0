"""The sample data: what is drawn is what is annotated, and the folder is whole or not there."""

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from mmlocalattn.data import digit_cards
from mmlocalattn.data.digit_cards import split_scans, write_digit_cards

SIZE, NUM_TRAIN, NUM_VAL, DIGITS = 128, 12, 8, [1, 7, 4]


def write(out: Path, **changes: object) -> None:
    options = dict(num_train=NUM_TRAIN, num_val=NUM_VAL, size=SIZE, digits=DIGITS)
    write_digit_cards(out, **(options | changes))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digit_cards'
    write(out)
    return out


def annotations(folder: Path, split: str) -> COCO:
    return COCO(str(folder / 'annotations' / f'instances_{split}.json'))


@pytest.mark.parametrize(('split', 'num_images'), [('train', NUM_TRAIN), ('val', NUM_VAL)])
def test_files_and_categories(cards: Path, split: str, num_images: int) -> None:
    coco = annotations(cards, split)
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == ['1', '7', '4']
    assert coco.getCatIds() == [1, 2, 3]
    images = coco.loadImgs(coco.getImgIds())
    assert len(images) == num_images
    assert len(list((cards / split).iterdir())) == num_images
    assert len(list((cards / 'semantic' / split).iterdir())) == num_images
    for image in images:
        pixels = cv2.imread(str(cards / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3) == (SIZE, SIZE, 3)
        assert 1 <= len(coco.getAnnIds(imgIds=image['id'])) <= 5


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_are_what_is_drawn(cards: Path, split: str) -> None:
    """Polygons, boxes and areas agree with the index map, whose cards do not touch each other."""
    coco = annotations(cards, split)
    for image in coco.loadImgs(coco.getImgIds()):
        map_path = cards / 'semantic' / split / f'{Path(image["file_name"]).stem}.png'
        index_map = cv2.imread(str(map_path), cv2.IMREAD_UNCHANGED)
        assert index_map.dtype == np.uint8
        assert index_map.shape == (SIZE, SIZE)
        anns = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
        num_islands, islands = cv2.connectedComponents((index_map > 0).astype(np.uint8))
        assert num_islands - 1 == len(anns)
        for ann in anns:
            polygon = coco.annToMask(ann) > 0
            island = np.bincount(islands[polygon]).argmax()
            drawn = islands == island
            assert set(index_map[drawn]) == {ann['category_id']}
            assert (polygon & drawn).sum() / (polygon | drawn).sum() > 0.94
            assert drawn.sum() == pytest.approx(ann['area'], rel=0.02)
            y, x = np.nonzero(drawn)
            left, top, width, height = ann['bbox']
            edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_allclose(edges, [left, top, left + width, top + height], atol=1.5)


def test_card_shows_its_scan(cards: Path) -> None:
    """Straightened and shrunk to 8x8, every card correlates with the handwriting it names."""
    handwriting = load_digits()
    coco = annotations(cards, 'val')
    for ann in coco.loadAnns(coco.getAnnIds()):
        digit = int(coco.loadCats(ann['category_id'])[0]['name'])
        assert handwriting.target[ann['scan']] == digit
        path = cards / 'val' / coco.loadImgs(ann['image_id'])[0]['file_name']
        corners = np.array(ann['segmentation'][0], np.float32).reshape(4, 2) - 0.5
        flat = np.array([[0, 0], [64, 0], [64, 80], [0, 80]], np.float32) - 0.5
        matrix = cv2.getPerspectiveTransform(corners, flat)
        card = cv2.warpPerspective(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), matrix, (64, 80))
        seen = cv2.resize(card[14:65, 6:57], (8, 8), interpolation=cv2.INTER_AREA)
        scan = handwriting.images[ann['scan']]
        assert np.corrcoef(-seen.ravel().astype(float), scan.ravel())[0, 1] > 0.75


def test_train_and_val_share_no_handwriting() -> None:
    targets = load_digits().target
    digits = range(10)
    train = split_scans(targets, digits, 'train')
    val = split_scans(targets, digits, 'val')
    for digit in digits:
        assert set(targets[train[digit]]) == set(targets[val[digit]]) == {digit}
    train_scans, val_scans = np.concatenate(train), np.concatenate(val)
    assert not set(train_scans) & set(val_scans)
    assert len(train_scans) + len(val_scans) == len(targets)


def test_written_scans_are_of_their_split(cards: Path) -> None:
    targets = load_digits().target
    for split in ('train', 'val'):
        allowed = set(np.concatenate(split_scans(targets, DIGITS, split)))
        coco = annotations(cards, split)
        assert {ann['scan'] for ann in coco.loadAnns(coco.getAnnIds())} <= allowed


def test_same_seed_same_bytes_other_seed_other_images(cards: Path, tmp_path: Path) -> None:
    write(tmp_path / 'again')
    assert digests(tmp_path / 'again') == digests(cards)
    write(tmp_path / 'other', seed=1)
    assert not set(digests(tmp_path / 'other').values()) & set(digests(cards).values())


def test_same_bytes_as_ever(tmp_path: Path) -> None:
    """Published results on the cards are of these; index maps do not depend on OpenCV's codecs,
    but on how it warps."""
    write_digit_cards(tmp_path / 'cards', 1, 1)
    index_map = cv2.imread(str(tmp_path / 'cards/semantic/train/00001.png'), cv2.IMREAD_UNCHANGED)
    annotation = (tmp_path / 'cards/annotations/instances_train.json').read_bytes()
    digest = {'4': 'e831a9f33c1be3f2', '5': 'a37d75db16b28889'}[cv2.__version__[0]]
    assert hashlib.sha256(index_map.tobytes()).hexdigest()[:16] == digest
    assert hashlib.sha256(annotation).hexdigest()[:16] == '2bf43c106d010981'


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    out = tmp_path / 'cards'
    write(out, num_train=1, num_val=1)
    before = digests(out)
    with pytest.raises(ValueError, match='cards exists; replace=True or --force replaces it'):
        write(out)
    assert digests(out) == before
    write(out, num_train=2, num_val=1, replace=True)
    assert len(list((out / 'train').iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['cards']


def test_replaces_only_sample_data(tmp_path: Path) -> None:
    (tmp_path / 'precious.txt').write_text('keep')
    with pytest.raises(ValueError, match='holds no sample data, and is not replaced'):
        write(tmp_path, replace=True)
    assert (tmp_path / 'precious.txt').read_text() == 'keep'


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_interrupted_run_leaves_nothing_new(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Neither a first run nor a --force run that stops half-way changes what is seen."""
    out = tmp_path / 'deep' / 'cards'
    original = digit_cards.write_image

    def stop_at_val(path: Path, image: np.ndarray) -> None:
        if path.parent.name == 'val':
            raise error
        original(path, image)

    monkeypatch.setattr(digit_cards, 'write_image', stop_at_val)
    with pytest.raises(error):
        write(out)
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()
    write(out)
    monkeypatch.setattr(digit_cards, 'write_image', stop_at_val)
    with pytest.raises(error):
        write(out, seed=1, replace=True)
    assert list(out.parent.iterdir()) == [out]
    assert digests(out) == digests(cards)


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        (dict(num_train=0), 'num_train must be at least 1, got 0'),
        (dict(num_val=-3), 'num_val must be at least 1, got -3'),
        (dict(size=40), 'size must be at least 96, got 40'),
        (dict(seed=-1), 'seed must be at least 0, got -1'),
        (dict(digits=[3, 12]), 'digits must be different numbers from 0 to 9, got [3, 12]'),
        (dict(digits=[3, 3]), 'digits must be different numbers from 0 to 9, got [3, 3]'),
    ],
)
def test_bad_arguments(tmp_path: Path, argument: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write(tmp_path / 'cards', **argument)
    assert not (tmp_path / 'cards').exists()
