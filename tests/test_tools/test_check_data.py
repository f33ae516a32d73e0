"""tools/analysis/check_data.py, and how train.py, test.py and browse_dataset.py use its checks."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import sample_folders
import tiny_data
import torch
from tiny_data import data, quick  # noqa: F401

TOOL = tiny_data.load_tool('analysis/check_data')
BROWSE = tiny_data.load_tool('analysis/browse_dataset')
TRAIN = tiny_data.load_tool('train')
TEST = tiny_data.load_tool('test')
pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def own(tmp_path: Path, data: Path) -> Path:  # noqa: F811
    """A copy of the data to break."""
    return shutil.copytree(data, tmp_path / 'own')


def config(folder: Path, task: str, extra: str = '') -> str:
    return tiny_data.write_config(folder.parent / 'c.py', getattr(tiny_data, task), folder, extra)


def change(folder: Path, **entries: object) -> None:
    """Change the first annotation; None takes an entry out."""
    file = folder / 'coco.json'
    content = json.loads(file.read_text())
    first = {**content['annotations'][0], **entries}
    content['annotations'][0] = {key: it for key, it in first.items() if it is not None}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_good_data(own: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(own, task)
    TOOL.main([path])
    printed = capsys.readouterr().out
    assert printed.endswith(f'in the data of {path}\n')
    assert '0 errors, 0 warnings, ' in printed


def test_all_findings(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(own, segmentation=[])
    (own / 'images' / '3.png').unlink()
    path = config(own, 'DETECTION')
    with pytest.raises(SystemExit) as stopped:
        TOOL.main([path, '--splits', 'train'])
    assert stopped.value.code == f'error: 2 errors, 0 warnings, 1 note in the data of {path}'
    printed = capsys.readouterr().out
    assert 'annotations of train_dataloader ━' in printed  # of the progress bar
    assert (
        f'error: {own}/images/3.png: this image does not exist. Put it there, or take it out of '
        'the data set\n'
        f'error: {own}/coco.json, annotation 1: segmentation is missing or empty. Give it a mask, '
        'or take it out; a model without masks needs none\n'
    ) in printed


def test_number_of_findings(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (own / 'images').iterdir():
        file.unlink()
    path = config(own, 'DETECTION')
    for number, lines in (('2', 3), ('0', 6)):
        with pytest.raises(SystemExit):
            TOOL.main([path, '--splits', 'train', '--number', number])
        printed = capsys.readouterr().out.splitlines()
        assert sum(line.startswith('error: ') for line in printed) == lines
    with pytest.raises(SystemExit):
        TOOL.main([path, '--number', '-1'])
    assert '--number must not be negative, got -1' in capsys.readouterr().err


def test_missing_data_is_one_line(own: Path) -> None:
    path = config(own, 'DETECTION')
    shutil.rmtree(own / 'images')
    with pytest.raises(SystemExit, match=r"^error: '.*/own/images/', which train_dataloader"):
        TOOL.main([path])


def test_no_model_is_built_for_wrong_data(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(own, segmentation=[])
    path = config(own, 'DETECTION')
    checkpoint = tmp_path / 'c.pth'
    torch.save({'state_dict': {'weight': torch.ones(1)}}, checkpoint)
    line = (
        f'error: {own}/coco.json, annotation 1: segmentation is missing or empty. Give it a mask, '
        'or take it out; a model without masks needs none'
    )
    more = f' (1 more: python tools/analysis/check_data.py {path})'  # that of val_dataloader
    monkeypatch.setattr('mmlocalattn.training.build_runner', None)
    for tool, argv, expected in (
        (TRAIN, [path], line + more),
        (TEST, [path, str(checkpoint)], line),
        (BROWSE, [path], line),
    ):
        with pytest.raises(SystemExit) as stopped:
            tool.main(argv)
        assert stopped.value.code == expected


def test_trains_and_evaluates_without_area_and_iscrowd(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(own, area=None, iscrowd=None)
    path = config(own, 'DETECTION', 'train_cfg = dict(max_epochs=1, val_interval=1)')
    tiny_data.run(TRAIN, path, '--work-dir', tmp_path / 'run')
    printed = capsys.readouterr().out
    assert (
        f'note: {own}/coco.json, annotation 1: 1 of 6 annotations have no area or no iscrowd: '
        'width * height of the box and 0 are taken\n'
    ) in printed
    assert 'coco/segm_mAP' in printed
    (whole,) = (tmp_path / 'run' / 'data').iterdir()
    tiny_data.run(TEST, path, tmp_path / 'run' / 'epoch_1.pth', '--work-dir', tmp_path / 'test')
    assert [file.name for file in (tmp_path / 'test' / 'data').iterdir()] == [whole.name]
    assert 'area' not in json.loads((own / 'coco.json').read_text())['annotations'][0]


def test_browse_names_the_map_that_is_no_index_map(own: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(own / 'maps' / '4.png'), np.zeros((64, 64, 3), np.uint8))
    path = config(own, 'SEGMENTATION')
    for number in ('5', '0'):
        with pytest.raises(SystemExit) as stopped:
            BROWSE.main([path, '--number', number])
        assert stopped.value.code == (
            f'error: {own}/maps/4.png: 3 channels where one of class indices is meant (its '
            'channels are equal, so keep one). Write the index of its class for each pixel'
        )
    tiny_data.run(BROWSE, path, '--number', 3, '--output-dir', tmp_path / 'out')
    assert len(list((tmp_path / 'out').iterdir())) == 3


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (np.full((64, 64), 7), '7 is of no class: there are 3, and 255 is ignored'),
        (np.zeros((32, 64)), r'it is 64x32 \(width x height\), its picture .*/4\.png. 64x64'),
    ],
)
def test_browse_names_a_map_of_other_labels_or_size(
    own: Path, labels: np.ndarray, message: str
) -> None:
    cv2.imwrite(str(own / 'maps' / '4.png'), labels.astype(np.uint8))
    path = config(own, 'SEGMENTATION')
    with pytest.raises(SystemExit, match=rf'^error: .*/own/maps/4\.png: {message}\. '):
        BROWSE.main([path])


def test_loaders_without_workers_train(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = 'loader.update(persistent_workers=True)\n'
    path = config(own, 'CLASSIFICATION', extra)
    tiny_data.run(TRAIN, path, '--work-dir', tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if 'num_workers=0' in line]
    assert len(said) >= 1
    assert 'without train_dataloader.persistent_workers, val_dataloader' in said[0]


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'mine'
    folder.mkdir()
    sample_folders.write_yolo(folder, masks=True)
    before = sample_folders.snapshot(folder)
    out = tmp_path / 'out'
    TOOL.main([str(folder), '--out-dir', str(out), '--val-fraction', '0.5'])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f'{folder}: YOLO, instance segmentation; 2 classes (cat, dog); ')
    assert printed[1].startswith('| objects of class | train | val |')
    assert printed[5] == f'pictures with what is drawn on them: {out}/contact_sheet.png'
    assert printed[-1].endswith(f'in the data of {folder}')
    assert cv2.imread(str(out / 'contact_sheet.png')) is not None
    assert sample_folders.snapshot(folder) == before
    (folder / 'images' / '1.png').write_bytes(b'')
    with pytest.raises(
        SystemExit, match=rf'error: 1 error, .* in the data of {folder}; .*--skip-bad'
    ):
        TOOL.main([str(folder), '--out-dir', str(out)])
    assert f'error: {folder}/images/1.png: this image cannot be read' in capsys.readouterr().out


def test_folder_that_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r'error: .* holds 0 files, .* See docs/your_data.md'):
        TOOL.main([str(tmp_path), '--out-dir', str(tmp_path.parent / 'out')])


def test_folder_for_a_config(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the config would learn of a folder with objects and maps, and whether it can."""
    folder = tmp_path / 'mine'
    sample_folders.write_maps(folder)
    (folder / 'annotations.json').write_text(json.dumps(sample_folders.coco_content(True)))
    options = ['--data', str(folder), '--out-dir', str(tmp_path / 'out')]
    for task, learned in (
        ('DETECTION', 'COCO, instance segmentation; 2 classes (cat, dog); '),
        ('SEGMENTATION', 'pictures and index maps, semantic segmentation; 3 classes (0, 1, 2); '),
    ):
        TOOL.main([config(own, task), *options])
        printed = capsys.readouterr().out
        assert f'{folder}: {learned}' in printed
        assert printed.endswith(f'in the data of {folder}\n')
    with pytest.raises(SystemExit, match='error: the config learns a class for each image, and'):
        TOOL.main([config(own, 'CLASSIFICATION'), *options])
    with pytest.raises(SystemExit):
        TOOL.main([str(folder), *options])
    assert 'is a folder, as --data is: give a config, or no --data' in capsys.readouterr().err
