"""From a config to what is exported."""

from pathlib import Path

import pytest
import tiny_data
import torch
from mmengine.config import Config
from tiny_data import CLASSIFICATION, DETECTION, SEGMENTATION, quick  # noqa: F401

from mmlocalattn.export import build_exportable, default_sizes, describe, exportable
from mmlocalattn.training import load_config

pytestmark = pytest.mark.usefixtures('quick')


def read(folder: Path, text: str) -> Config:
    return load_config(tiny_data.write_config(folder / 'config.py', text, folder))


def test_checkpoint_must_hold_the_exported_weights(tmp_path: Path) -> None:
    cfg, checkpoint = read(tmp_path, DETECTION), tmp_path / 'weights.pth'
    module = build_exportable(cfg, part='backbone')
    weights = {f'backbone.{name}': v + 1 for name, v in module.extract.state_dict().items()}
    torch.save({'state_dict': {**weights, 'rpn_head.bias': torch.ones(1)}}, checkpoint)
    loaded = build_exportable(cfg, checkpoint, 'backbone').extract.state_dict()
    torch.testing.assert_close(loaded, {name[9:]: value for name, value in weights.items()})
    with pytest.raises(ValueError, match=r': 16 missing, the first neck\.'):
        build_exportable(cfg, checkpoint, 'neck')


def test_a_config_is_built_twice() -> None:
    """The file is compared with a second model; DETRHead writes into the config that it gets."""
    cfg = load_config('mmdet::detr/detr_r50_8xb2-150e_coco.py')
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.in_channels = [512]
    before = cfg.pretty_text
    assert len({type(build_exportable(cfg, None, 'model')) for _ in range(2)}) == 1
    assert cfg.pretty_text == before


def test_a_classifier_is_loaded_whole(tmp_path: Path) -> None:
    cfg, checkpoint = read(tmp_path, CLASSIFICATION), tmp_path / 'weights.pth'
    state = build_exportable(cfg).model.state_dict()
    torch.save({'state_dict': state}, checkpoint)
    torch.testing.assert_close(build_exportable(cfg, checkpoint).model.state_dict(), state)
    del state['head.fc.bias']
    torch.save({'state_dict': state}, checkpoint)
    with pytest.raises(ValueError, match=r'1 missing, that is head\.fc\.bias'):
        build_exportable(cfg, checkpoint)


def test_description(tmp_path: Path) -> None:
    cfg = read(tmp_path, CLASSIFICATION)
    sizes = default_sizes(cfg, 'torchscript')
    assert sizes == default_sizes(cfg, 'onnx')[:1] == [(224, 224)]
    cfg_of_boxes = read(tmp_path, DETECTION)
    assert default_sizes(cfg_of_boxes, 'pt2') == [(64, 64)]
    resize = cfg_of_boxes.test_dataloader.dataset.pipeline[2]
    resize.update(scale=(1333, 800), keep_ratio=True)
    assert default_sizes(cfg_of_boxes, 'pt2') == [(800, 800), (672, 1344), (1344, 672)]
    assert default_sizes(cfg_of_boxes, 'torchscript') == [(1344, 1344)]
    assert default_sizes(read(tmp_path, SEGMENTATION), 'pt2')[0] == (512, 512)  # of any size
    about = describe(cfg, 'model', sizes, 'pt2')
    assert about['config'] == 'config.py'
    assert about['sizes'] == [[224, 224]]
    assert about['preprocessing']['mean'] == [123.675, 116.28, 103.53]
    assert about['requires'] == ['import mmlocalattn.ops']
    assert describe(cfg, 'model', sizes, 'onnx')['requires'] == []


def test_description_of_a_detector(tmp_path: Path) -> None:
    cfg = read(tmp_path, DETECTION)
    module = build_exportable(cfg)
    about = describe(cfg, 'model', [(64, 96)], 'pt2', module)
    assert about['outputs'] == ['boxes', 'scores', 'labels', 'masks']
    assert about['classes'] == ['dark', 'light']
    assert about['test_scale'] == [64, 64]
    assert (about['mask_frame'], about['mask_threshold']) == ('box', 0.5)
    assert about['requires'] == ['import mmlocalattn.ops', 'import torchvision']
    assert 'outputs' not in describe(cfg, 'neck', [], 'pt2', build_exportable(cfg, part='neck'))
    cfg.test_dataloader.dataset.pop('metainfo')
    assert len(describe(cfg, 'model', [], 'onnx', module)['classes']) == 80  # those of the class


def test_labels_of_a_segmentor(tmp_path: Path) -> None:
    cfg = read(tmp_path, SEGMENTATION)
    module, image = build_exportable(cfg), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (scores,) = module(image)
        (labels,) = exportable(module.model, 'mmseg', 'model', labels=True)(image)
    assert module.output_names == ('scores',)
    assert (labels == scores.argmax(1)).all()
    assert labels.unique().numel() > 1
    with pytest.raises(ValueError, match='labels are of whole segmentors, got the neck of mmseg'):
        exportable(module.model, 'mmseg', 'neck', labels=True)
