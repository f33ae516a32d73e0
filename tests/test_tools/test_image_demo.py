"""tools/image_demo.py: pictures and videos with the predictions of the three tasks."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
from tiny_data import SIDE, data, quick  # noqa: F401

TOOL = tiny_data.load_tool('image_demo')
pytestmark = pytest.mark.usefixtures('quick')


def write_video(path: Path, data: Path) -> None:  # noqa: F811
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 5, (SIDE, SIDE))
    for i in range(3):
        writer.write(cv2.imread(str(data / 'images' / f'{i}.png')))
    writer.release()


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_draws_images_folders_and_videos(tmp_path: Path, data: Path, task: str) -> None:  # noqa: F811
    config, checkpoint = tiny_data.write_model(tmp_path, data, task)
    folder = tmp_path / 'folder'
    folder.mkdir()
    shutil.copy(data / 'images' / '1.png', folder / 'one.png')
    (folder / 'notes.txt').write_text('not an image')
    write_video(tmp_path / 'film.avi', data)
    out = tmp_path / 'out'
    inputs = (data / 'images' / '0.png', folder, tmp_path / 'film.avi')
    options = ('--device', 'cpu', '--score-thr', 0.0, '--out-dir', out)
    tiny_data.run(TOOL, config, checkpoint, *inputs, *options)
    assert {path.name for path in out.iterdir()} == {'0.png', 'one.png', 'film.mp4'}
    drawn = cv2.imread(str(out / '0.png'))
    assert drawn.shape[1:] == (SIDE, 3)
    assert (len(drawn) > SIDE) == (task == 'SEGMENTATION')  # which has a legend below
    assert cv2.norm(drawn[:SIDE], cv2.imread(str(inputs[0])), cv2.NORM_INF) > 30
    video = cv2.VideoCapture(str(out / 'film.mp4'))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 5)


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (['nowhere'], "'nowhere' does not exist"),
        (['EMPTY'], 'has no image and no video'),
        (['DATA/coco.json'], r'coco.json. is neither an image nor a video \(.bmp'),
        (['DATA/images/0.png', 'DATA/maps'], "two inputs are called '0.png'"),
        (['DATA/images', '--out-dir', 'DATA/images'], "0.png' would be overwritten"),
        (['DATA/images', '--device', 'cuda:99'], "error: device 'cuda:99' cannot be used"),
        (['DATA/images', '--device', 'abacus'], "error: device 'abacus' cannot be used"),
    ],
)
def test_one_line_errors_before_the_model_is_built(
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[str],
    message: str,
) -> None:
    monkeypatch.setattr('mmlocalattn.visualisation.predictor.get_object_from_string', None)
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    (tmp_path / 'empty').mkdir()
    words = [
        word.replace('DATA', str(data)).replace('EMPTY', str(tmp_path / 'empty')) for word in inputs
    ]
    with pytest.raises(SystemExit, match=message):
        TOOL.main([config, config, *words])


def test_says_which_image_cannot_be_read(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'SEGMENTATION')
    for name, reason in (
        ('broken.png', 'is no image that LoadImageFromFile of the config reads'),
        ('broken.mp4', 'cannot be read as a video'),
    ):
        (tmp_path / name).write_text('nothing')
        with pytest.raises(SystemExit, match=f"{name}' {reason}"):
            tiny_data.run(TOOL, config, checkpoint, tmp_path / name, '--out-dir', tmp_path / 'out')
    with pytest.raises(SystemExit, match=r"checkpoint 'no\.pth' does not exist"):
        TOOL.main([config, 'no.pth', str(tmp_path)])


KEEP_RATIO = 'pipeline[2].update(scale=(64, 64), keep_ratio=True)\n'
SHORT_EDGE = "pipeline.insert(1, dict(type='ResizeEdge', scale=200, edge='short'))\n"


@pytest.mark.parametrize(
    ('task', 'extra', 'size', 'message'),
    [
        ('SEGMENTATION', '', (1, 2000), None),
        ('DETECTION', '', (2000, 1), None),
        (
            'DETECTION',
            KEEP_RATIO,
            (1, 2000),
            r"thin\.png', 1 x 2000 pixels, does not go through the test pipeline: ",
        ),
        (
            'CLASSIFICATION',
            SHORT_EDGE,
            (1, 2000),
            r"thin\.png', 1 x 2000 pixels, is resized to 200 x 400000: limit the longer side",
        ),
        (
            'SEGMENTATION',
            '',
            (1, 5000),
            r"thin\.png' has 1 x 5000 pixels: one side is more than 4096 times the other; cut",
        ),
    ],
)
def test_long_thin_images(
    tmp_path: Path,
    data: Path,  # noqa: F811
    task: str,
    extra: str,
    size: tuple[int, int],
    message: str | None,
) -> None:
    config, checkpoint = tiny_data.write_model(tmp_path, data, task, extra)
    file, out = tmp_path / 'thin.png', tmp_path / 'out'
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    argv = (config, checkpoint, file, '--device', 'cpu', '--out-dir', out)
    if message is None:
        tiny_data.run(TOOL, *argv)
        drawn = cv2.imread(str(out / 'thin.png'))
        assert drawn.shape[1:] == (size[1], 3)
        assert (len(drawn) > size[0]) == (task == 'SEGMENTATION')  # which has a legend below
    else:
        with pytest.raises(SystemExit, match=message):
            tiny_data.run(TOOL, *argv)
    with pytest.raises(
        SystemExit, match=r"c\.py' is no checkpoint: torch\.save has not written it"
    ):
        TOOL.main([config, config, str(data / 'images')])


def test_names_in_another_order_than_the_annotations(tmp_path: Path, data: Path) -> None:  # noqa: F811
    swapped = "data['metainfo'] = dict(classes=('light', 'dark'))\n"
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION', swapped)
    argv = (config, checkpoint, data / 'images' / '0.png', '--out-dir', tmp_path / 'out')
    with pytest.raises(
        SystemExit, match=r'^error: .*coco\.json: metainfo\.classes has another ord'
    ):
        tiny_data.run(TOOL, *argv)
    export = (tiny_data.load_tool('export'), config, checkpoint, '--format', 'torchscript')
    with pytest.raises(SystemExit, match=r'coco\.json: metainfo\.classes has another order than'):
        tiny_data.run(*export, '--size', '64x64', '--out', tmp_path / 'model.pt')
    several = 'launcher=pytorch'  # in the config that a training of several processes writes
    absent = 'test_dataloader.dataset.ann_file=not_here.json'
    tiny_data.run(TOOL, *argv, '--cfg-options', absent, several)
    assert (tmp_path / 'out' / '0.png').is_file()


def test_a_checkpoint_with_another_head(
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture,
) -> None:
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'SEGMENTATION')
    four = ('--out-dir', tmp_path / 'out', '--cfg-options', 'model.decode_head.num_classes=4')
    argv = (config, checkpoint, data / 'images' / '0.png', *four)
    message = (
        r'^error: .* decode_head\.conv_seg\.weight has shape \[3, 16, 1, 1\] in the checkpoint'
    )
    with pytest.raises(SystemExit, match=message):
        tiny_data.run(TOOL, *argv)
    tiny_data.run(TOOL, *argv, '--allow-partial')
    assert '| decode_head.conv_seg.weight | [3, 16, 1, 1]' in capsys.readouterr().out
    assert (tmp_path / 'out' / '0.png').is_file()
