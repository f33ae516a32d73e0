"""What is compared, and what is said about a file."""

from pathlib import Path

import pytest
import tiny_data
import torch
from tiny_data import data, quick  # noqa: F401

from mmlocalattn.export.agreement import Agreement, compare, match_boxes
from mmlocalattn.export.certificate import Limits, certify, check_limits
from mmlocalattn.export.run_file import load_file
from mmlocalattn.export.show import lines_of
from mmlocalattn.training import load_config

EXPORT = tiny_data.load_tool('export')
pytestmark = pytest.mark.usefixtures('quick')


def found(boxes: list, scores: list, labels: list) -> dict:
    return dict(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def test_boxes_are_matched_one_to_one() -> None:
    box, moved, far = [0, 0, 10, 10], [0, 0, 10, 10.5], [20, 0, 30, 10]
    model = found([box, box, far, box], [0.9, 0.5, 0.4, 0.3], [0, 0, 0, 1])
    file = found([far, box, moved, box], [0.4, 0.51, 0.89, 0.3], [0, 0, 0, 2])
    # The copy of nearest score first where overlaps are equal; the last have other labels.
    assert sorted(match_boxes(model, file, 0.9)) == [(0, 2), (1, 1), (2, 0)]
    assert sorted(match_boxes(model, file, 0.96)) == [(1, 1), (2, 0)]
    agreement = Agreement('boxes')
    compare(agreement, dict(pred_instances=model), dict(pred_instances=file), 0.9)
    assert (agreement.total, agreement.alike, agreement.share) == (8, 6, 0.75)
    assert agreement.largest == pytest.approx({'corner': 0.5, 'score': 0.01})
    assert agreement.ties == 0
    saturated = dict(pred_instances=found([box, far, moved], [1.0, 1.0, 0.5], [0, 0, 0]))
    compare(agreement, saturated, saturated, 0.9)
    assert agreement.ties == 4
    line, again = [10, 0, 10, 5], [9.9999, 0, 9.9999, 5]  # what the border leaves of a box
    assert match_boxes(found([line], [0.9], [0]), found([again], [0.9], [0]), 0.9) == [(0, 0)]
    squares = torch.zeros(4, 20, 20, dtype=torch.bool)
    squares[:, :10, :10] = True
    smaller = squares.clone()
    smaller[:, :1, :10] = False
    with_masks = [dict(model, masks=squares), dict(file, masks=smaller)]
    compare(agreement, *(dict(pred_instances=masks) for masks in with_masks), 0.9)
    assert agreement.largest['mask'] == pytest.approx(0.1)
    agreement.total, agreement.alike = 8, 6
    nothing = found([], [], [])
    compare(agreement, dict(pred_instances=nothing), dict(pred_instances=nothing), 0.9)
    compare(agreement, dict(pred_instances=nothing), dict(pred_instances=file), 0.9)
    assert (agreement.total, agreement.alike) == (12, 6)


def test_weak_boxes_serve_as_partners_only() -> None:
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10]]
    model = found(boxes, [0.051, 0.01], [0, 0])
    file = found(boxes, [0.049, 0.01], [0, 0])
    agreement = Agreement('boxes')
    compare(agreement, dict(pred_instances=model), dict(pred_instances=file), 0.9)
    assert (agreement.total, agreement.alike) == (1, 1)


def certificate(**changes: object) -> dict:
    metrics = {'coco/bbox_mAP': {'model': 0.4, 'file': 0.4}, 'mIoU': {'model': 50, 'file': 50}}
    matched = dict(of='boxes', number=1000, share=1.0, largest_difference={'corner': 0.1})
    return dict(metrics=metrics, matched=matched, data='images') | changes


def test_limits() -> None:
    path = Path('a.onnx')
    check_limits(certificate(), Limits(), path)
    better = {'coco/bbox_mAP': {'model': 0.4, 'file': 0.5}, 'mIoU': {'model': None, 'file': None}}
    check_limits(certificate(metrics=better), Limits(), path)
    worse = {'coco/bbox_mAP': {'model': 0.4, 'file': 0.398}, 'mIoU': {'model': 50, 'file': 49.95}}
    with pytest.raises(ValueError, match=r'there is no a\.onnx.*bbox_mAP falls from 0\.400 to 0\.'):
        check_limits(certificate(metrics=worse), Limits(), path)
    check_limits(certificate(metrics=worse), Limits(max_ap_drop=0.01), path)
    with pytest.raises(ValueError, match=r'mIoU falls from 50\.000 to 49\.800'):
        check_limits(certificate(metrics={'mIoU': {'model': 50, 'file': 49.8}}), Limits(), path)
    with pytest.raises(ValueError, match=r'bbox_mAP falls from 0\.400 to 0\.000'):
        check_limits(
            certificate(metrics={'coco/bbox_mAP': {'model': 0.4, 'file': None}}), Limits(), path
        )
    few = dict(certificate()['matched'], share=0.99)
    with pytest.raises(ValueError, match=r'of 1000 boxes 99\.00 % agree, less than --min-matched'):
        check_limits(certificate(matched=few), Limits(), path)
    with pytest.raises(ValueError, match=r'0\.995; 40 of 1000 boxes have the score of another'):
        check_limits(certificate(matched=dict(few, ties=40)), Limits(), path)
    none = dict(few, number=0)
    with pytest.raises(ValueError, match=r'finds nothing with a score from 0\.05 in images; name'):
        check_limits(certificate(matched=none), Limits(), path)


def test_a_detector(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    """Mask R-CNN as a trace, on validation data and drawn images; what differs is refused."""
    small = "model['backbone']['arch'].update(depths=[1, 1, 1, 1])\n"
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION', small)
    file = tmp_path / 'model.pt'
    argv = (config, checkpoint, '--format', 'torchscript', '--verify', 'config', '--out', file)
    tiny_data.run(EXPORT, *argv)
    printed = capsys.readouterr().out
    assert 'config c.py, part model, sizes 64x64' in printed
    assert '% of 60 boxes agree (same label, IoU from 0.9); largest difference of a corn' in printed
    meta = load_file(file).meta
    about = meta['certificate']
    assert about['matched']['share'] == 1
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} == {*about['metrics']}
    assert all(values['model'] == values['file'] for values in about['metrics'].values())
    assert about['images'] == 6
    assert about['latency_ms']['file']['median'] <= about['latency_ms']['file']['p95']
    assert {*about['sha256']} == {'config', 'config_file', 'checkpoint'}
    assert {'torch', 'mmdet', 'mmcv'} <= {*about['versions']}
    tiny_data.run(EXPORT, '--show', file)
    assert capsys.readouterr().out.strip() == '\n'.join(lines_of(meta))

    cfg = load_config(config)
    sample = certify(file, cfg, checkpoint, 'sample')
    assert sample['images'] == 24
    assert sample['metrics'] == {}
    padded = load_config(config)  # boxes that lie in the padding alone, and masks that end there
    padded.test_dataloader.dataset.pipeline[2].keep_ratio = True
    matched = certify(file, padded, checkpoint, 'sample')['matched']
    assert matched['share'] == 1
    assert matched['largest_difference']['mask'] < 0.01
    folder = certify(file, cfg, checkpoint, str(data))
    assert (folder['data'], folder['images']) == (str(data), 1)  # of six, a fifth
    assert {*folder['metrics']} == {*about['metrics']}
    named = load_config(config)
    named.test_dataloader.dataset.metainfo = dict(classes=('cat', 'dog'))
    with pytest.raises(
        ValueError, match=r'has the classes dark, light, and the model of .* cat, d'
    ):
        certify(file, named, checkpoint, str(data))
    other = dict(torch.load(checkpoint)['state_dict'])
    for name in other:
        if 'fc_cls' in name or 'fc_reg' in name:
            other[name] = other[name] + torch.randn_like(other[name])
    torch.save(dict(state_dict=other), checkpoint)
    with pytest.raises(ValueError, match=r'there is no renamed\.pt, the file differs: .*boxes'):
        certify(file, cfg, checkpoint, 'config', name=Path('renamed.pt'))


def test_a_segmentor_and_a_part_of_the_data(tmp_path: Path, data: Path) -> None:  # noqa: F811
    """Of fewer pictures, and padded to the one size that the file takes."""
    small = "model['backbone']['arch'].update(depths=[1, 1, 1, 1])\n"
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'SEGMENTATION', small)
    file = tmp_path / 'model.pt'
    argv = (config, checkpoint, '--format', 'torchscript', '--size', '64x80', '--out', file)
    tiny_data.run(EXPORT, *argv, '--verify', 'config', '--verify-images', 3)
    about = load_file(file).meta['certificate']
    assert about['images'] == 3
    assert about['data'].endswith('c.py, 3 of 6 images')
    assert about['sizes'] == {'different': 1, 'height': [64, 64], 'width': [80, 80]}
    assert about['matched']['number'] == 3 * 64 * 64
    assert about['matched']['share'] > 0.999
    assert about['metrics']['mIoU']['model'] == about['metrics']['mIoU']['file']
    tiny_data.run(EXPORT, *argv)  # whose sample images are made smaller
    assert load_file(file).meta['certificate']['images'] == 24
    cfg = load_config(config)
    cfg.val_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(96, 96)))
    with pytest.raises(ValueError, match=r"^'other\.pt' takes images of 64 x 80 pixels, got 96 x"):
        certify(file, cfg, checkpoint, 'config', name=Path('other.pt'))
    step = 'test_dataloader.dataset.pipeline.1'
    options = (
        '--verify',
        'config',
        '--cfg-options',
        f'{step}.type=Resize',
        f'{step}.scale=(96,96)',
    )
    with pytest.raises(SystemExit, match=r'makes images of 96 x 96, and with this --size the file'):
        tiny_data.run(EXPORT, *argv, *options)
    assert load_file(file).meta['certificate']['images'] == 24  # the old file is left
    meta = dict(load_file(file).meta, verified='random tensors')
    del meta['certificate']
    assert [*lines_of(meta)][1] == 'no certificate: it was verified on random tensors alone'
