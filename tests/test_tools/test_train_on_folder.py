"""tools/train.py --data FOLDER [--minutes N]: from a folder to a model that other tools use."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_data
import torch
from mmengine.config import Config
from tiny_data import data, quick  # noqa: F401

from mmlocalattn.training import clock, read_checkpoint, read_history

TRAIN, TEST = tiny_data.load_tool('train'), tiny_data.load_tool('test')
BROWSE = tiny_data.load_tool('analysis/browse_dataset')
pytestmark = pytest.mark.usefixtures('quick')

FOLDERS = {
    'DETECTION': ['images', 'coco.json'],
    'SEGMENTATION': ['images', 'maps'],
    'CLASSIFICATION': ['classes'],
}
SCORES = {
    'DETECTION': 'coco/bbox_mAP',
    'SEGMENTATION': 'mIoU',
    'CLASSIFICATION': 'accuracy/top1',
}


def make_folder(task: str, data: Path, tmp_path: Path) -> Path:  # noqa: F811
    """What a user has of the tiny data for one task."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    for name in FOLDERS[task]:
        source = data / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    return folder / 'classes' if task == 'CLASSIFICATION' else folder


# Few blocks and small windows, so that a model is exported in seconds.
SMALL = """
model['backbone']['arch'].update(depths=[1, 1, 1, 1])
model['backbone'].update(scan=[dict(local_kernel=3, anchor_kernel=1)] * 4)
"""


def write_config(task: str, tmp_path: Path, extra: str = '') -> str:
    """One of the tiny configs, whose own data and classes are others."""
    text = getattr(tiny_data, task).replace("'dark', 'light'", "'a', 'b'")
    return tiny_data.write_config(tmp_path / 'c.py', text, tmp_path / 'nowhere', extra)


@pytest.mark.parametrize('task', FOLDERS)
def test_from_a_folder_to_a_model(
    task: str,
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_folder(task, data, tmp_path)
    before = sorted(folder.rglob('*'))
    config, work_dir = write_config(task, tmp_path), tmp_path / 'work'
    length = 'train_cfg.max_iters=2' if task == 'SEGMENTATION' else 'train_cfg.max_epochs=1'
    interval = ['train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    options = ['--cfg-options', length, *interval, 'default_hooks.logger.interval=1']
    tiny_data.run(TRAIN, config, '--work-dir', work_dir, '--data', folder, *options)
    assert sorted(folder.rglob('*')) == before
    out = capsys.readouterr().out
    assert str(folder) in out
    assert '+ train_dataloader.dataset.metainfo.classes' in out
    assert 'tools/test.py' in out
    assert '95 % of' in out
    assert (work_dir / 'pictures.png').is_file()
    assert (work_dir / 'curves.png').is_file()

    # The written config and the checkpoint are all that the others need.
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    tiny_data.run(TEST, work_dir / 'c.py', checkpoint, '--work-dir', tmp_path / 'test')
    (result,) = (tmp_path / 'test').glob('*/*.json')
    measured = Config.fromfile(result)
    trained = read_history(work_dir).val
    assert measured[SCORES[task]] == trained[max(trained)][SCORES[task]]
    assert f'{SCORES[task]}_low' in measured


@pytest.mark.needs_torch('2.8', 'a graph for a range of sizes')
def test_the_commands_at_the_end(
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They test, draw and export what was trained, without the config it was trained from."""
    monkeypatch.chdir(tmp_path)
    folder, config = (
        make_folder('SEGMENTATION', data, tmp_path),
        write_config('SEGMENTATION', tmp_path, SMALL),
    )
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    tiny_data.run(TRAIN, config, '--work-dir', 'work', '--data', folder, '--cfg-options', *options)
    Path(config).unlink()
    printed = re.findall(r'^(test|show|export) +python tools/(.*)$', capsys.readouterr().out, re.M)
    assert [name for name, _ in printed] == ['test', 'show', 'export']
    for _, command in printed:
        script, *argv = shlex.split(command)
        tiny_data.run(tiny_data.load_tool(script.removesuffix('.py')), *argv)
    assert list(tmp_path.rglob('*.onnx'))


def test_browse(tmp_path: Path, data: Path) -> None:  # noqa: F811
    folder = make_folder('DETECTION', data, tmp_path)
    config = write_config('DETECTION', tmp_path)
    argv = [config, '--data', folder, '--val-fraction', '0.5', '--output-dir', tmp_path / 'seen']
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        tiny_data.run(BROWSE, *argv)
    assert len(list((tmp_path / 'seen').iterdir())) == tiny_data.NUM_IMAGES // 2


def test_by_the_clock(
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each look at the clock takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr(clock, 'now', lambda: float(next(ticks)))
    monkeypatch.setattr(TRAIN, 'time', SimpleNamespace(monotonic=clock.now))
    folder, config = make_folder('DETECTION', data, tmp_path), write_config('DETECTION', tmp_path)
    argv = [config, '--work-dir', tmp_path / 'work', '--data', folder, '--minutes', '5']
    tiny_data.run(TRAIN, *argv)
    assert 0.95 * 300 < next(ticks) < 1.05 * 300
    state = read_checkpoint((tmp_path / 'work' / 'last_checkpoint').read_text())['clock']
    assert 0.9 < state['fraction'] <= 1
    assert 'mmlocalattn.ClockTrainLoop' in capsys.readouterr().out


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_what_the_config_learns_is_read(
    task: str,
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a folder with boxes and maps; there are no classes of whole pictures."""
    monkeypatch.chdir(tmp_path)
    folder, config = make_folder('SEGMENTATION', data, tmp_path), write_config(task, tmp_path)
    shutil.copy(data / 'coco.json', folder)
    args = TRAIN.parse_args([config, '--data', str(folder), '--work-dir', str(tmp_path / 'work')])
    if task == 'CLASSIFICATION':
        with pytest.raises(ValueError, match=r'learns a class for each image, and .* holds'):
            TRAIN.build_config(args)
        return
    dataset = TRAIN.build_config(args).train_dataloader.dataset
    path = dict(DETECTION='annotations/train.json', SEGMENTATION='train.txt')[task]
    assert dataset.ann_file == str(tmp_path / 'work' / 'data' / path)
    assert ('seg_map_path' in dataset.data_prefix) == (task == 'SEGMENTATION')


def test_what_cannot_be_trained(tmp_path: Path, data: Path) -> None:  # noqa: F811
    folder, config = (
        make_folder('SEGMENTATION', data, tmp_path),
        write_config('DETECTION', tmp_path),
    )
    with pytest.raises(SystemExit, match='error: the config learns boxes or masks of objects'):
        tiny_data.run(TRAIN, config, '--data', folder, '--work-dir', tmp_path / 'work')
    with pytest.raises(SystemExit, match=r"error: .*'nowhere' does not exist|error: .*nowhere"):
        tiny_data.run(TRAIN, config, '--data', tmp_path / 'nowhere')


def test_weights_of_other_classes(
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights of two classes start a model of three: all but those of the heads' last layers."""
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION')
    folder = make_folder('DETECTION', data, tmp_path)
    content = json.loads((folder / 'coco.json').read_text())
    content['categories'].append(dict(id=2, name='grey'))
    (folder / 'coco.json').write_text(json.dumps(content))
    options = ['train_cfg.max_epochs=1', 'optim_wrapper.optimizer.lr=0', f'load_from={checkpoint}']
    argv = [config, '--data', folder, '--work-dir', tmp_path / 'work', '--cfg-options', *options]
    tiny_data.run(TRAIN, *argv)
    log = capsys.readouterr().out + capsys.readouterr().err
    for name in ('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits'):
        assert f'roi_head.{name}' in log
    before = read_checkpoint(checkpoint)['state_dict']
    after = read_checkpoint((tmp_path / 'work' / 'last_checkpoint').read_text())['state_dict']
    assert before['roi_head.bbox_head.fc_cls.bias'].shape == (3,)
    assert after['roi_head.bbox_head.fc_cls.bias'].shape == (4,)
    weight = 'roi_head.bbox_head.shared_fcs.0.weight'
    assert torch.equal(before[weight], after[weight])
