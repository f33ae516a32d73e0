"""tools/analysis/confusion_matrix.py: counts that can be told by hand."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
import torch
from tiny_data import NUM_IMAGES, SIDE, data, quick  # noqa: F401

TOOL = tiny_data.load_tool('analysis/confusion_matrix')
pytestmark = pytest.mark.usefixtures('quick')


def count(tmp_path: Path, config: str, predictions: Path, *options: object) -> dict:
    tiny_data.run(TOOL, config, predictions, tmp_path / 'out', *options)
    assert cv2.imread(str(tmp_path / 'out' / 'confusion_matrix.png')).std() > 10
    return json.loads((tmp_path / 'out' / 'confusion_matrix.json').read_text())


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


def test_detection(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    results = boxes(data)
    results[0]['pred_instances']['labels'] += 1  # a dark square taken for a light one
    results[2]['pred_instances']['scores'] -= 0.8  # a dark square not found
    results[1]['pred_instances']['bboxes'] += 30  # a light one elsewhere
    content = count(tmp_path, config, write(tmp_path / 'p.pkl', results))
    assert content['classes'] == ['dark', 'light', 'background']
    assert content['matrix'] == [[1, 1, 2], [0, 2, 1], [0, 1, 0]]
    assert ' 25.0 % of dark taken for light\n' in capsys.readouterr().out
    everything = ('--score-thr', 0.05, '--tp-iou-thr', 0.01)
    matrix = count(tmp_path, config, tmp_path / 'p.pkl', *everything)['matrix']
    assert matrix[0] == [2, 1, 1]


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
    content = count(tmp_path, config, predictions)
    assert content['classes'] == ['background', 'dark', 'light']
    assert content['matrix'] == expected.tolist()


def test_segmentation_without_the_first_class(tmp_path: Path, data: Path) -> None:  # noqa: F811
    """As ADE20K: 0 is not a class, and the saved index maps count from 1."""
    extra = """
data.update(reduce_zero_label=True, metainfo=dict(
    classes=('dark', 'light'), palette=[[90, 90, 90], [250, 250, 250]]))
pipeline[1].update(reduce_zero_label=True)
"""
    text = tiny_data.SEGMENTATION.replace('train_dataloader', f'{extra}\ntrain_dataloader', 1)
    config = tiny_data.write_config(tmp_path / 'c.py', text, data)
    matrix = count(tmp_path, config, data / 'maps')['matrix']
    maps = [cv2.imread(str(path), 0) for path in (data / 'maps').iterdir()]
    squares = [sum(int((index_map == label).sum()) for index_map in maps) for label in (1, 2)]
    assert matrix == [[squares[0], 0], [0, squares[1]]]


def test_classification(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.CLASSIFICATION, data)
    scores = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]]
    results = [
        dict(gt_label=torch.tensor([int(i >= 3)]), pred_score=torch.tensor(score))
        for i, score in enumerate(scores)
    ]
    content = count(tmp_path, config, write(tmp_path / 'p.pkl', results))
    assert content == dict(classes=['dark', 'light'], matrix=[[2, 1], [0, 3]])


def test_many_classes_are_drawn(tmp_path: Path) -> None:
    TOOL.draw(np.eye(40, dtype=np.int64), [str(i) for i in range(40)], tmp_path / 'a.png')
    assert max(cv2.imread(str(tmp_path / 'a.png')).shape) < 5000


def test_one_line_errors(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    short = write(tmp_path / 'p.pkl', boxes(data)[1:])
    for predictions, message in (
        ('no.pkl', r'no\.pkl does not exist; tools/test\.py --out no\.pkl makes it'),
        (short, f'has predictions for 5 images and the test data {NUM_IMAGES}'),
        (data / 'maps', 'predictions are a .pkl file'),
    ):
        with pytest.raises(SystemExit, match=message):
            tiny_data.run(TOOL, config, predictions, tmp_path / 'out')
    config = tiny_data.write_config(tmp_path / 'd.py', tiny_data.SEGMENTATION, data)
    for predictions, message in (
        (data / 'images', 'has the size'),
        (data / 'classes', 'the index map of .*0.png, does not exist'),
    ):
        with pytest.raises(SystemExit, match=message):
            tiny_data.run(TOOL, config, predictions, tmp_path / 'out')
