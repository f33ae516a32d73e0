"""The sample data: what is drawn is what is annotated, and the folder is whole or not there."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

SCRIPT = Path(__file__).parents[2] / 'tools' / 'make_sample_data.py'
SIZE, NUM_TRAIN, NUM_VAL, DIGITS = 128, 12, 8, [1, 7, 4]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location('make_sample_data', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_sample_data = load_script()


def run(out: Path, *args: str) -> None:
    numbers = ['--num-train', str(NUM_TRAIN), '--num-val', str(NUM_VAL), '--size', str(SIZE)]
    digits = ['--digits', *map(str, DIGITS)]
    make_sample_data.main(['--out', str(out), *numbers, *digits, *args])


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digit_cards'
    run(out)
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
    handwriting = make_sample_data.load_digits()
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
    targets = make_sample_data.load_digits().target
    digits = range(10)
    train = make_sample_data.split_scans(targets, digits, 'train')
    val = make_sample_data.split_scans(targets, digits, 'val')
    for digit in digits:
        assert set(targets[train[digit]]) == set(targets[val[digit]]) == {digit}
    train_scans, val_scans = np.concatenate(train), np.concatenate(val)
    assert not set(train_scans) & set(val_scans)
    assert len(train_scans) + len(val_scans) == len(targets)


def test_written_scans_are_of_their_split(cards: Path) -> None:
    targets = make_sample_data.load_digits().target
    for split in ('train', 'val'):
        allowed = set(np.concatenate(make_sample_data.split_scans(targets, DIGITS, split)))
        coco = annotations(cards, split)
        assert {ann['scan'] for ann in coco.loadAnns(coco.getAnnIds())} <= allowed


def test_same_seed_same_bytes_other_seed_other_images(cards: Path, tmp_path: Path) -> None:
    run(tmp_path / 'again')
    assert digests(tmp_path / 'again') == digests(cards)
    run(tmp_path / 'other', '--seed', '1')
    assert not set(digests(tmp_path / 'other').values()) & set(digests(cards).values())


def test_refuses_to_overwrite_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'cards'
    run(out, '--num-train', '1', '--num-val', '1')
    before = digests(out)
    with pytest.raises(SystemExit):
        run(out)
    assert f'{out} exists; add --force to replace it' in capsys.readouterr().err
    assert digests(out) == before
    run(out, '--num-train', '2', '--num-val', '1', '--force')
    assert len(list((out / 'train').iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['cards']


def test_force_replaces_only_sample_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'precious.txt').write_text('keep')
    with pytest.raises(SystemExit):
        run(tmp_path, '--force')
    assert 'holds no sample data; --force does not replace it' in capsys.readouterr().err
    assert (tmp_path / 'precious.txt').read_text() == 'keep'


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_interrupted_run_leaves_nothing_new(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Neither a first run nor a --force run that stops half-way changes what is seen."""
    out = tmp_path / 'deep' / 'cards'
    original = make_sample_data._write_image

    def stop_at_val(path: Path, image: np.ndarray) -> None:
        if path.parent.name == 'val':
            raise error
        original(path, image)

    monkeypatch.setattr(make_sample_data, '_write_image', stop_at_val)
    with pytest.raises(error):
        run(out)
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()
    run(out)
    monkeypatch.setattr(make_sample_data, '_write_image', stop_at_val)
    with pytest.raises(error):
        run(out, '--seed', '1', '--force')
    assert list(out.parent.iterdir()) == [out]
    assert digests(out) == digests(cards)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--num-train', '0'], '--num-train must be at least 1, got 0'),
        (['--num-val', '-3'], '--num-val must be at least 1, got -3'),
        (['--size', '40'], '--size must be at least 96 to be legible, got 40'),
        (['--seed', '-1'], '--seed must not be negative, got -1'),
        (['--digits', '3', '12'], '--digits must be different numbers from 0 to 9, got [3, 12]'),
        (['--digits', '3', '3'], '--digits must be different numbers from 0 to 9, got [3, 3]'),
    ],
)
def test_bad_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / 'cards', *args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'cards').exists()


def test_command_line(tmp_path: Path) -> None:
    """The script runs on its own, with the default digits."""
    args = [sys.executable, str(SCRIPT), '--num-train', '1', '--num-val', '1', '--out', 'cards']
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'cards: 1 training and 1 validation images' in done.stdout
    coco = json.loads((tmp_path / 'cards' / 'annotations' / 'instances_train.json').read_text())
    assert [category['name'] for category in coco['categories']] == ['0', '1', '2', '3']
