"""Predictions on images and videos, and where the pictures go."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny_data
from tiny_data import data, quick  # noqa: F401

from mmlocalattn.training import load_config
from mmlocalattn.visualisation import predictor as module
from mmlocalattn.visualisation.predictor import Predictor, draw_video, plan_outputs


@pytest.mark.usefixtures('quick')
def test_classes_are_those_of_the_config(tmp_path: Path, data: Path) -> None:  # noqa: F811
    """The checkpoint names none, for which mmdet would take those of COCO."""
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION')
    predictor = Predictor(load_config(config), checkpoint)
    assert predictor.visualizer.dataset_meta['classes'] == ('dark', 'light')
    predicted = predictor.predict(cv2.imread(str(data / 'images' / '0.png')))
    assert set(predicted.pred_instances.labels.tolist()) <= {0, 1}


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_a_batch_draws_what_single_images_draw(tmp_path: Path, data: Path, task: str) -> None:  # noqa: F811
    extra = "\nmodel['backbone'].update(scan='fixed')\n"
    if task == 'DETECTION':  # which would bring all images to one size
        extra += 'pipeline[2].update(keep_ratio=True)\n'
    config, checkpoint = tiny_data.write_model(tmp_path, data, task, extra)
    predictor = Predictor(load_config(config), checkpoint, score_thr=0.0)
    small = [cv2.imread(str(data / 'images' / f'{i}.png')) for i in range(3)]
    images = {'a': small[0], 'b': cv2.resize(small[1], (96, 64)), 'c': small[1], 'd': small[2]}
    sizes = []
    forward = predictor.inferencer.forward
    predictor.inferencer.forward = lambda data: sizes.append(len(data['inputs'])) or forward(data)
    drawn = dict(predictor.draw_all(images.items(), batch_size=2))
    assert sizes == [2, 1, 1]
    assert list(drawn) == ['a', 'c', 'b', 'd']
    for name, image in images.items():
        assert cv2.norm(drawn[name], predictor.draw(image), cv2.NORM_INF) <= 1, name


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


def test_a_video_has_frames_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*'MJPG'), 5, (48, 32))
    writer.write(np.zeros((32, 48, 3), np.uint8))
    writer.release()
    frames = [np.zeros((32, 48, 3), np.uint8)] * 2
    predictor = SimpleNamespace(channels=3, draw_all=lambda images, batch_size: images)
    monkeypatch.setattr(module, '_frames', lambda video, source, channels: iter(frames))
    draw_video(predictor, film, tmp_path / 'a.mp4')
    written = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    assert [written.read()[0] for _ in range(3)] == [True, True, False]
    frames[1] = np.zeros((48, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"film\.avi' has frames of several sizes: cut it apart$"):
        draw_video(predictor, film, tmp_path / 'b.mp4')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.mp4', 'film.avi']
