"""Predictions on images and videos, and where the pictures go."""

from pathlib import Path

import cv2
import pytest
import tiny_data
from tiny_data import data, quick  # noqa: F401

from mmlocalattn.training import load_config
from mmlocalattn.visualisation.predictor import Predictor, plan_outputs


@pytest.mark.usefixtures('quick')
def test_classes_are_those_of_the_config(tmp_path: Path, data: Path) -> None:  # noqa: F811
    """The checkpoint names none, for which mmdet would take those of COCO."""
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION')
    predictor = Predictor(load_config(config), checkpoint)
    assert predictor.visualizer.dataset_meta['classes'] == ('dark', 'light')
    predicted = predictor.predict(cv2.imread(str(data / 'images' / '0.png')))
    assert set(predicted.pred_instances.labels.tolist()) <= {0, 1}


def test_a_predictor_needs_a_model_of_a_toolbox(tmp_path: Path) -> None:
    (tmp_path / 'c.py').write_text("default_scope = 'mmengine'")
    cfg = load_config(str(tmp_path / 'c.py'))
    with pytest.raises(ValueError, match="one of mmdet, mmseg, mmpretrain, got 'mmengine'"):
        Predictor(cfg, tmp_path / 'c.py')
    cfg.default_scope = 'mmdet'
    with pytest.raises(FileNotFoundError, match=r"checkpoint '.*no\.pth' does not exist"):
        Predictor(cfg, tmp_path / 'no.pth')


def test_outputs_have_the_names_of_the_inputs(tmp_path: Path) -> None:
    folder, film, out = tmp_path / 'folder', tmp_path / 'film.AVI', tmp_path / 'out'
    folder.mkdir()
    for path in (folder / 'b.png', folder / 'a.JPG', folder / 'notes.txt', film):
        path.touch()
    planned = plan_outputs([folder, film], out)
    assert list(planned.items()) == [
        (folder / 'a.JPG', out / 'a.JPG'),
        (folder / 'b.png', out / 'b.png'),
        (film, out / 'film.mp4'),
    ]
    assert not out.exists()
    with pytest.raises(ValueError, match=r"b\.png' would be overwritten; choose another folder"):
        plan_outputs([folder / 'b.png'], folder)
