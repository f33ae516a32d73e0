"""The report at the end of a training: scores with their interval, files, commands."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from run_log import write_log

from mmlocalattn.visualisation import training_report
from mmlocalattn.visualisation.training_report import ReportHook, report_training

METRICS = {
    'mIoU': 61.5,
    'mAcc': 70.25,
    'aAcc': 95.0,
    'mIoU_low': 60.0,
    'mIoU_high': 63.0,
}


class Data(list):
    """Two images."""

    def __getitem__(self, index: int) -> dict:
        return dict(data_samples=SimpleNamespace(img_path=f'my photos/{index}.jpg'))


@pytest.fixture
def runner(tmp_path: Path) -> SimpleNamespace:
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    cv2.imwrite(str(pictures / '0.png'), np.zeros((20, 40, 3), np.uint8))
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/iter_9.pth')
    return SimpleNamespace(
        rank=0,
        iter=9,
        work_dir=str(tmp_path),
        cfg=SimpleNamespace(filename='configs/mine.py'),
        val_dataloader=SimpleNamespace(dataset=Data([0, 1])),
    )


def test_report(runner: SimpleNamespace, tmp_path: Path) -> None:
    write_log(tmp_path / '20260101_000000', range(10, 60, 10), METRICS)
    text = '\n'.join(report_training(runner, METRICS))
    assert '61.500' in text
    assert '60.000 to 63.000' in text
    assert 'on 2 images, after 9 iterations; of 100 draws' in text
    assert (tmp_path / 'pictures.png').is_file()
    assert (tmp_path / 'curves.png').is_file()
    model = f'{tmp_path}/mine.py {tmp_path}/iter_9.pth'
    for command in (
        f'python tools/test.py {model}',
        f"python tools/image_demo.py {model} 'my photos/0.jpg'",
        f'python tools/export.py {model} --format onnx',
    ):
        assert command in text


def test_report_of_a_short_run(runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    hook = ReportHook()
    hook.after_val_epoch(runner, {name: METRICS[name] for name in ('mIoU', 'mAcc', 'aAcc')})
    hook.after_train(runner)
    out = capsys.readouterr().out
    assert '61.500' in out
    assert '100 draws' not in out
    assert 'fewer iterations than are logged' in out


def test_no_report_without_a_validation(
    runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = ReportHook()
    hook.after_train(runner)
    assert not capsys.readouterr().out
    hook.after_val_epoch(runner, {})
    hook.after_train(runner)
    assert 'The model has found nothing at all' in capsys.readouterr().out


def test_report_of_a_model_that_finds_nothing(runner: SimpleNamespace, tmp_path: Path) -> None:
    write_log(tmp_path / '20260101_000000', range(10, 60, 10), {})
    text = '\n'.join(report_training(runner, {}))
    assert text.startswith('\nThe model has found nothing at all, which is an AP of 0: train it ')
    assert 'python tools/test.py' in text
    assert (tmp_path / 'pictures.png').is_file()
    assert (tmp_path / 'curves.png').is_file()


def test_nothing_is_lost_without_a_report(
    runner: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(training_report, 'print_log', lambda text, logger: said.append(text))
    hook = ReportHook()
    hook.after_val_epoch(runner, {'of others': 1.0})
    hook.after_train(runner)
    assert said[0].startswith('No report: ')
