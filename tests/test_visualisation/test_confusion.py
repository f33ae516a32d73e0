"""Which class is taken for which: counts that can be told by hand."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
import torch
from tiny_data import NUM_IMAGES, SIDE, data, quick  # noqa: F401

from mmlocalattn.training import load_config
from mmlocalattn.visualisation.confusion import Confusion, count_confusion, draw_confusion

pytestmark = pytest.mark.usefixtures('quick')


def count(config: str, predictions: Path, *thresholds: float) -> Confusion:
    return count_confusion(load_config(config), predictions, *thresholds)


def write(path: Path, results: list[dict]) -> Path:
    path.write_bytes(pickle.dumps(results))
    return path


def boxes(data: Path) -> list[dict]:  # noqa: F811
    """The ground truth as perfect detections, in the order of the images."""
    annotations = json.loads((data / 'coco.json').read_text())['annotations']
    results = []
    for annotation in annotations:
        x, y, width, height = annotation['bbox']
        instances = dict(
            bboxes=torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32),
            scores=torch.tensor([0.9]),
            labels=torch.tensor([annotation['category_id']]),
        )
        results.append(dict(pred_instances=instances))
    return results


def test_detection(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    results = boxes(data)
    results[0]['pred_instances']['labels'] += 1  # a dark square taken for a light one
    results[2]['pred_instances']['scores'] -= 0.8  # a dark square not found
    results[1]['pred_instances']['bboxes'] += 30  # a light one elsewhere
    predictions = write(tmp_path / 'p.pkl', results)
    confusion = count(config, predictions)
    assert confusion.classes == ['dark', 'light', 'background']
    assert confusion.matrix.tolist() == [[1, 1, 2], [0, 2, 1], [0, 1, 0]]
    assert ' 25.0 % of dark taken for light' in confusion.largest()
    assert count(config, predictions, 0.05, 0.01).matrix[0].tolist() == [2, 1, 1]


def test_segmentation(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, data)
    predictions = tmp_path / 'maps'
    predictions.mkdir()
    expected = np.zeros((3, 3), int)
    for i in range(NUM_IMAGES):
        index_map = cv2.imread(str(data / 'maps' / f'{i}.png'), cv2.IMREAD_UNCHANGED)
        (row,) = np.unique(index_map)[1:]
        predicted = index_map.copy()
        predicted[:, : SIDE // 2] = 0
        cv2.imwrite(str(predictions / f'{i}.png'), predicted)
        expected[0, 0] += (index_map == 0).sum()
        expected[row, 0] += (index_map[:, : SIDE // 2] == row).sum()
        expected[row, row] += (index_map[:, SIDE // 2 :] == row).sum()
    confusion = count(config, predictions)
    assert confusion.classes == ['background', 'dark', 'light']
    assert confusion.matrix.tolist() == expected.tolist()


def test_segmentation_without_the_first_class(tmp_path: Path, data: Path) -> None:  # noqa: F811
    """As ADE20K: 0 is not a class, and the saved index maps count from 1."""
    extra = """
data.update(reduce_zero_label=True, metainfo=dict(
    classes=('dark', 'light'), palette=[[90, 90, 90], [250, 250, 250]]))
pipeline[1].update(reduce_zero_label=True)
"""
    text = tiny_data.SEGMENTATION.replace('train_dataloader', f'{extra}\ntrain_dataloader', 1)
    config = tiny_data.write_config(tmp_path / 'c.py', text, data)
    matrix = count(config, data / 'maps').matrix.tolist()
    maps = [cv2.imread(str(path), 0) for path in (data / 'maps').iterdir()]
    squares = [sum(int((index_map == label).sum()) for index_map in maps) for label in (1, 2)]
    assert matrix == [[squares[0], 0], [0, squares[1]]]
    copy = shutil.copytree(data / 'maps', tmp_path / 'maps')
    cv2.imwrite(str(next(copy.iterdir())), np.zeros_like(maps[0]))  # no class of theirs
    with pytest.raises(ValueError, match='has a class outside 0 to 1'):
        count(config, copy)


def test_classification(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.CLASSIFICATION, data)
    scores = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]]
    results = [
        dict(gt_label=torch.tensor([int(i >= 3)]), pred_score=torch.tensor(score))
        for i, score in enumerate(scores)
    ]
    confusion = count(config, write(tmp_path / 'p.pkl', results))
    assert confusion.classes == ['dark', 'light']
    assert confusion.matrix.tolist() == [[2, 1], [0, 3]]


@pytest.mark.parametrize('number', [3, 40])
def test_picture(tmp_path: Path, number: int) -> None:
    confusion = Confusion(np.eye(number, dtype=np.int64), [str(i) for i in range(number)])
    draw_confusion(confusion, tmp_path / 'a.png')
    picture = cv2.imread(str(tmp_path / 'a.png'))
    assert picture.std() > 10
    assert max(picture.shape) < 5000


def test_largest_confusions_first() -> None:
    confusion = Confusion(np.array([[8, 2, 0], [5, 5, 0], [0, 0, 0]]), ['a', 'b', 'c'])
    assert confusion.largest() == [' 50.0 % of b taken for a', ' 20.0 % of a taken for b']


def test_predictions_that_do_not_fit(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    short = write(tmp_path / 'p.pkl', boxes(data)[1:])
    with pytest.raises(FileNotFoundError, match=r'tools/test\.py --out no\.pkl makes it'):
        count(config, Path('no.pkl'))
    message = f'has predictions for 5 images and the test data {NUM_IMAGES}'
    with pytest.raises(ValueError, match=message):
        count(config, short)
    with pytest.raises(ValueError, match=r'predictions are a \.pkl file'):
        count(config, data / 'maps')
    config = tiny_data.write_config(tmp_path / 'd.py', tiny_data.SEGMENTATION, data)
    with pytest.raises(ValueError, match='has the size'):
        count(config, data / 'images')
    with pytest.raises(FileNotFoundError, match=r'the index map of .*0\.png, does not exist'):
        count(config, data / 'classes')
    cfg = load_config(config)
    cfg.default_scope = 'mmengine'
    with pytest.raises(ValueError, match="must be mmdet, mmseg or mmpretrain, got 'mmengine'"):
        count_confusion(cfg, data / 'maps')
