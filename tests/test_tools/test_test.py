"""tools/test.py: metrics, saved predictions and pictures of the three tasks."""

import json
import pickle
from pathlib import Path

import cv2
import pytest
import tiny_data
import torch
from square_detector import meta_of, write_square_detector
from tiny_data import NUM_IMAGES, data, quick  # noqa: F401

from mmlocalattn.export.metadata import write_metadata

TRAIN = tiny_data.load_tool('train')
TEST = tiny_data.load_tool('test')
pytestmark = pytest.mark.usefixtures('quick')


def train_and_test(tmp_path: Path, data: Path, text: str, out: str) -> dict:  # noqa: F811
    """Train one pass, test with every option, and return the metrics."""
    shorter = (
        'train_cfg.max_iters=3 train_cfg.val_interval=9'
        if text is tiny_data.SEGMENTATION
        else 'train_cfg.max_epochs=1 train_cfg.val_interval=9'
    )
    config = tiny_data.write_config(tmp_path / 'c.py', text, data)
    options = ['--cfg-options', *shorter.split()]
    tiny_data.run(TRAIN, config, '--work-dir', tmp_path / 'a', *options)
    checkpoint = (tmp_path / 'a' / 'last_checkpoint').read_text()
    work_dir, pictures = tmp_path / 'b', tmp_path / 'pictures'
    options = ['--work-dir', work_dir, '--out', out, '--show-dir', pictures]
    tiny_data.run(TEST, config, checkpoint, *options)
    drawn = sorted(pictures.iterdir())
    assert len(drawn) == NUM_IMAGES
    assert all(cv2.imread(str(file)) is not None for file in drawn)
    (metrics,) = work_dir.glob('*/*.json')
    return json.loads(metrics.read_text())


def test_detection(tmp_path: Path, data: Path) -> None:  # noqa: F811
    out = tmp_path / 'out.pkl'
    metrics = train_and_test(tmp_path, data, tiny_data.DETECTION, str(out))
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == NUM_IMAGES
    assert 'counts' in predictions[0]['pred_instances']['masks'][0]


def test_segmentation(tmp_path: Path, data: Path) -> None:  # noqa: F811
    out = tmp_path / 'maps'
    metrics = train_and_test(tmp_path, data, tiny_data.SEGMENTATION, str(out))
    assert 0 <= metrics['mIoU'] <= 100
    maps = sorted(out.iterdir())
    assert [file.name for file in maps] == [f'{i}.png' for i in range(NUM_IMAGES)]
    assert cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED).max() < 3


def test_classification(tmp_path: Path, data: Path) -> None:  # noqa: F811
    out = tmp_path / 'out.pkl'
    metrics = train_and_test(tmp_path, data, tiny_data.CLASSIFICATION, str(out))
    assert 0 <= metrics['accuracy/top1'] <= 100
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == NUM_IMAGES
    assert predictions[0]['pred_score'].shape == (2,)


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION'])
def test_flipped_and_scaled(tmp_path: Path, data: Path, task: str) -> None:  # noqa: F811
    config, checkpoint = tiny_data.write_model(tmp_path, data, task)
    out = tmp_path / ('out.pkl' if task == 'DETECTION' else 'maps')
    options = ['--work-dir', tmp_path / 'b', '--out', out, '--show-dir', tmp_path / 'pictures']
    tiny_data.run(TEST, config, checkpoint, '--tta', '--tta-scales', '1', '1.5', *options)
    assert len([*(tmp_path / 'pictures').iterdir()]) == NUM_IMAGES
    if task == 'SEGMENTATION':
        maps = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in out.iterdir()]
        assert [each.shape for each in maps] == [(64, 64)] * NUM_IMAGES
        return
    for prediction in pickle.loads(out.read_bytes()):
        found = prediction['pred_instances']
        assert 0 < len(found['bboxes']) <= 5
        assert 0 <= found['bboxes'].min() <= found['bboxes'].max() <= 64
        assert found['masks'][0]['size'] == [64, 64]
        assert len(found['masks']) == len(found['bboxes'])


def test_flipped_classes_are_averaged(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'CLASSIFICATION')
    mirrored = tmp_path / 'mirrored'
    for file in data.glob('classes/*/*.png'):
        (mirrored / file.parent.name).mkdir(parents=True, exist_ok=True)
        picture = cv2.imread(str(file))[:, ::-1]
        cv2.imwrite(str(mirrored / file.parent.name / file.name), picture)

    def scores(*options: object) -> torch.Tensor:
        out = tmp_path / 'out.pkl'
        tiny_data.run(
            TEST, config, checkpoint, '--work-dir', tmp_path / 'b', '--out', out, *options
        )
        return torch.stack([each['pred_score'] for each in pickle.loads(out.read_bytes())])

    plain, merged = scores(), scores('--tta')
    flipped = scores('--cfg-options', f'test_dataloader.dataset.data_root={mirrored}')
    assert not torch.equal(plain, flipped)
    torch.testing.assert_close(merged, (plain + flipped) / 2)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['no.py', 'no.pth'], "error: config 'no.py' does not exist"),
        (['CONFIG', 'no.pth'], "error: checkpoint 'no.pth' does not exist"),
        (['CONFIG', 'CONFIG'], "c.py' is no checkpoint: torch.save has not written it"),
        (['CONFIG', 'CKPT', '--out', 'a.json'], "must end with .pkl or .pickle, got 'a.json'"),
        (['CONFIG', 'CKPT', '--out', 'CONFIG/a.pkl'], "cannot be a folder: 'CONFIG' is a file"),
        (['CONFIG', 'CKPT', '--tta', '--tta-scales', '0'], 'factors from 0.1 to 10, got 0'),
        (
            ['CONFIG', 'CKPT', '--launcher', 'pytorch'],
            'error: --launcher pytorch is for processes ',
        ),
        (
            ['CONFIG', 'CKPT', '--cfg-options', 'test_dataloader=None', 'val_dataloader=None'],
            'c.py has no test_dataloader and test_evaluator, and no val_dataloader and',
        ),
        (
            ['CONFIG', 'CKPT', '--cfg-options', 'test_dataloader.dataset.data_root=no/data'],
            "error: 'no/data', which test_dataloader (CocoDataset) reads, does not exist.",
        ),
    ],
)
def test_one_line_errors(tmp_path: Path, data: Path, argv: list[str], message: str) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    checkpoint = str(tmp_path / 'model.pth')
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), checkpoint)

    def filled(text: str) -> str:
        return text.replace('CONFIG', config).replace('CKPT', checkpoint)

    with pytest.raises(SystemExit) as raised:
        TEST.main([filled(arg) for arg in argv])
    assert filled(message) in raised.value.code
    assert '\n' not in raised.value.code


def test_a_checkpoint_with_another_head(
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture,
) -> None:
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'CLASSIFICATION')
    three = ('--work-dir', tmp_path / 'run', '--cfg-options', 'model.head.num_classes=3')
    three = (*three, 'data_preprocessor.num_classes=3')
    message = (
        r'^error: checkpoint .*model\.pth. is not of this config: head\.fc\.weight has shape '
        r'\[2, 16\] in the checkpoint and \[3, 16\] in the model, and 1 more are of another shape'
    )
    with pytest.raises(SystemExit, match=message):
        tiny_data.run(TEST, config, checkpoint, *three)
    tiny_data.run(TEST, config, checkpoint, '--allow-partial', *three)
    printed = capsys.readouterr().out
    assert '| head.fc.weight | [2, 16]    | [3, 16] |' in printed
    assert 'do not match exactly' not in printed


@pytest.mark.parametrize('tool', ['test', 'image_demo', 'export'])
def test_a_checkpoint_with_its_classes_in_another_order(
    tool: str,
    tmp_path: Path,
    data: Path,  # noqa: F811
) -> None:
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'SEGMENTATION')
    out, image = tmp_path / 'out', data / 'images' / '0.png'
    options = {
        'test': ('--work-dir', out),
        'image_demo': (image, '--out-dir', out),
        'export': (
            '--format',
            'torchscript',
            '--size',
            '64x64',
            '--out',
            tmp_path / 'm.pt',
            '--verify',
            'none',
        ),
    }
    content = torch.load(checkpoint)

    def run(*classes: str) -> None:
        torch.save({**content, 'meta': dict(dataset_meta=dict(classes=classes))}, checkpoint)
        tiny_data.run(tiny_data.load_tool(tool), config, checkpoint, *options[tool])

    message = (
        rf'^error: checkpoint .{checkpoint}. has its classes in another order than the test data '
        rf"of {config}: label 0 is 'light' there and 'background' here\. Write metainfo\.classes "
        'in the order of the training$'
    )
    with pytest.raises(SystemExit, match=message):
        run('light', 'dark', 'background')
    run('background', 'dark', 'bright')  # names are the user's


def test_a_file_that_finds_the_squares(tmp_path: Path, data: Path) -> None:  # noqa: F811
    """Pictures of 64 x 64 are resized to 90 x 90 and padded to the 96 x 128 that the file takes."""
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    file = tmp_path / 'squares.pt'
    write_square_detector(file, (96, 128))
    options = ('--cfg-options', 'test_dataloader.dataset.pipeline.2.scale=(90,90)')
    out = tmp_path / 'out.pkl'
    tiny_data.run(TEST, config, file, '--work-dir', tmp_path / 'run', '--out', out, *options)
    (metrics,) = (tmp_path / 'run').glob('*/*.json')
    values = json.loads(metrics.read_text())
    assert values['coco/bbox_mAP_50'] == values['coco/segm_mAP_50'] == 1
    assert min(values['coco/bbox_mAP'], values['coco/segm_mAP']) > 0.7
    predictions = pickle.loads(out.read_bytes())
    assert [len(p['pred_instances']['scores']) for p in predictions] == [1] * NUM_IMAGES

    def error(meta: dict, *options: str) -> str:
        write_metadata(file, meta)
        with pytest.raises(SystemExit) as raised:
            tiny_data.run(TEST, config, file, '--work-dir', tmp_path / 'run', *options)
        assert '\n' not in raised.value.code
        return raised.value.code

    meta = meta_of((96, 128))
    assert '--allow-partial is for checkpoints, ' in error(meta, '--allow-partial')
    assert 'holds a neck of mmdet, which ' in error(dict(meta, part='neck'))
    three = dict(meta, classes=['dark', 'grey', 'light'])
    assert 'knows 3 classes (dark, grey, light) and the test data of' in error(three)
    assert "label 0 is 'light' there and 'dark' here" in error(
        dict(meta, classes=['light', 'dark'])
    )
    assert 'holds a model of mmseg that gives boxes, ' in error(dict(meta, scope='mmseg'))
    assert 'takes images of 64 x 64 pixels, got 96 x 96' in error(
        dict(meta, sizes=[[64, 64]]), *options
    )


def test_a_file_does_as_its_checkpoint(tmp_path: Path, data: Path) -> None:  # noqa: F811
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'CLASSIFICATION')
    file = tmp_path / 'model.pt'
    argv = (config, checkpoint, '--format', 'torchscript', '--size', '64x64', '--verify', 'none')
    tiny_data.run(tiny_data.load_tool('export'), *argv, '--out', file)
    results = []
    for name in (file, checkpoint):
        tiny_data.run(TEST, config, name, '--work-dir', tmp_path / name.suffix)
        (metrics,) = (tmp_path / name.suffix).glob('*/*.json')
        values = json.loads(metrics.read_text())
        results.append({key: v for key, v in values.items() if not key.endswith('time')})
    assert results[0] == pytest.approx(results[1], abs=0.02)
    assert results[0]
