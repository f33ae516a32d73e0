"""tools/analysis/browse_dataset.py: pictures of the ground truth of the three tasks."""

from pathlib import Path

import cv2
import pytest
import tiny_data
from tiny_data import NUM_IMAGES, SIDE, data, quick  # noqa: F401

TOOL = tiny_data.load_tool('analysis/browse_dataset')
pytestmark = pytest.mark.usefixtures('quick')


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_draws_the_ground_truth(tmp_path: Path, data: Path, task: str) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', getattr(tiny_data, task), data)
    tiny_data.run(TOOL, config, '--number', 2, '--output-dir', tmp_path / 'out')
    pictures = sorted((tmp_path / 'out').iterdir())
    assert [picture.name for picture in pictures] == ['000000_0.png', '000001_1.png'] or (
        task == 'CLASSIFICATION'  # sorted by class
    )
    for picture in pictures:
        drawn = cv2.imread(str(picture))
        (source,) = data.glob(f'images/{picture.stem.partition("_")[2]}.png')
        assert drawn.shape[1:] == (SIDE, 3)
        assert (len(drawn) > SIDE) == (task == 'SEGMENTATION')  # which has a legend below
        assert cv2.norm(drawn[:SIDE], cv2.imread(str(source)), cv2.NORM_INF) > 30


def test_all_images_of_a_split(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, data)
    tiny_data.run(TOOL, config, '--split', 'val', '--number', 0)
    assert len(list(Path('work_dirs/c/browse_val').iterdir())) == NUM_IMAGES


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--cfg-options', 'train_dataloader.dataset.data_root=no/data'],
            "error: 'no/data', which",
        ),
        (['--split', 'val', '--cfg-options', 'val_dataloader=None'], 'has no val_dataloader'),
    ],
)
def test_one_line_errors(tmp_path: Path, data: Path, options: list[str], message: str) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, data)
    with pytest.raises(SystemExit, match=message):
        TOOL.main([config, *options])


def test_number_is_not_negative(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        TOOL.main(['c.py', '--number', '-1'])
    assert '--number must not be negative, got -1' in capsys.readouterr().err


def test_names_the_image_that_cannot_be_read(tmp_path: Path) -> None:
    tiny_data.make_data(tmp_path / 'data')
    (tmp_path / 'data' / 'images' / '0.png').write_text('nothing')
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, tmp_path / 'data')
    with pytest.raises(SystemExit, match=r'^error: .*images/0\.png: this image cannot be read '):
        tiny_data.run(TOOL, config, '--output-dir', tmp_path / 'out')
