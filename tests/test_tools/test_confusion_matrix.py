"""tools/analysis/confusion_matrix.py: what it writes, prints and refuses."""

import json
import pickle
from pathlib import Path

import cv2
import pytest
import tiny_data
import torch
from tiny_data import data, quick  # noqa: F401

TOOL = tiny_data.load_tool('analysis/confusion_matrix')
pytestmark = pytest.mark.usefixtures('quick')


def test_files(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.CLASSIFICATION, data)
    scores = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]]
    results = [
        dict(gt_label=torch.tensor([int(i >= 3)]), pred_score=torch.tensor(score))
        for i, score in enumerate(scores)
    ]
    predictions, out = tmp_path / 'p.pkl', tmp_path / 'new' / 'out'
    predictions.write_bytes(pickle.dumps(results))
    tiny_data.run(TOOL, config, predictions, out)
    content = json.loads((out / 'confusion_matrix.json').read_text())
    assert content == dict(classes=['dark', 'light'], matrix=[[2, 1], [0, 3]])
    assert cv2.imread(str(out / 'confusion_matrix.png')).std() > 10
    printed = capsys.readouterr().out
    assert printed.endswith(f' 33.3 % of dark taken for light\n{out}/confusion_matrix.png\n')


def test_one_line_errors(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.CLASSIFICATION, data)
    for predictions, message in (
        ('no.pkl', r'error: no\.pkl does not exist; tools/test\.py --out no\.pkl makes it'),
        (data / 'maps', 'error: predictions are a .pkl file'),
    ):
        with pytest.raises(SystemExit, match=message):
            tiny_data.run(TOOL, config, predictions, tmp_path / 'out')
