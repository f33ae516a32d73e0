"""What a detector computes does not change where a CPU computes it faster."""

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import torch
from mmcv.ops import RoIAlign
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from test_configs import load, shrink
from tiny_data import quick  # noqa: F401
from torch import Tensor, nn

from mmlocalattn.adapt import cpu
from mmlocalattn.adapt.cpu import tune_for_cpu
from mmlocalattn.adapt.trial import random_batch
from mmlocalattn.training import build_runner, load_config


def build(name: str) -> tuple[Config, Any]:
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    shrink(cfg.model)
    torch.manual_seed(0)
    return cfg, revert_sync_batchnorm(MODELS.build(cfg.model))


def batch_of(cfg: Config, model: Any, training: bool) -> dict:
    torch.manual_seed(1)
    batch = random_batch(cfg, (96, 128), 2, training)
    for sample in batch['data_samples']:
        del sample.proposals  # the RPN's are taken then
    return model.data_preprocessor(batch, training=training)


def outcomes(cfg: Config, model: Any) -> tuple[list[Any], Tensor, dict[str, Tensor]]:
    """The objects on two images, the loss, and the gradient of each parameter."""
    with torch.no_grad():
        samples = model.eval()(**batch_of(cfg, model, False), mode='predict')
    torch.manual_seed(2)
    loss, _ = model.train().parse_losses(model(**batch_of(cfg, model, True), mode='loss'))
    model.zero_grad()
    loss.backward()
    return samples, loss, {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ('name', 'changed'),
    [
        ('maskrcnn_ssvit_t_1x_coco', {'RoIAlign': 8, 'channels last': 17}),
        ('cascade_maskrcnn_nat_t_3x_coco', {'RoIAlign': 24, 'channels last': 41}),
        ('retinanet_ssvit_t_1x_coco', {'RoIAlign': 0, 'channels last': 18}),
        ('maskrcnn_qna_fpn_qna_vit_t_1x_coco', {'RoIAlign': 8, 'channels last': 0}),
    ],
)
def test_same_objects_losses_and_gradients(name: str, changed: dict[str, int]) -> None:
    cfg, model = build(name)
    owner = getattr(model, 'roi_head', None) or model.bbox_head
    owner.test_cfg.score_thr = 0.0
    tuned = copy.deepcopy(model)
    assert tune_for_cpu(tuned) == changed
    expected, loss, gradients = outcomes(cfg, model)
    samples, tuned_loss, tuned_gradients = outcomes(cfg, tuned)
    for sample, other in zip(samples, expected):
        found, wanted = sample.pred_instances, other.pred_instances
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.bboxes, wanted.bboxes, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
        assert found.labels.equal(wanted.labels)
        if 'masks' in wanted:
            assert (found.masks ^ wanted.masks).float().mean() < 1e-3
    torch.testing.assert_close(tuned_loss, loss, atol=1e-5, rtol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for parameter, gradient in gradients.items():  # some are 0 but for rounding: biases before BN
        torch.testing.assert_close(
            tuned_gradients[parameter], gradient, atol=1e-5 * largest, rtol=1e-3, msg=parameter
        )


def test_what_reads_contiguous_maps_keeps_them() -> None:
    """A compiled operator that reads the maps of the FPN does not know about strides."""
    _, model = build('maskrcnn_ssvit_t_1x_coco')
    model.roi_head.bbox_roi_extractor.roi_layers[0] = RoIAlign((7, 7), 0.25, 0, pool_mode='max')
    assert tune_for_cpu(model) == {'RoIAlign': 7, 'channels last': 0}
    assert 'forward' not in vars(model.roi_head.bbox_roi_extractor.roi_layers[0])


def test_several_processes_keep_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = build('retinanet_ssvit_t_1x_coco')
    monkeypatch.setattr(MMDistributedDataParallel, '__init__', nn.Module.__init__)
    wrapped = MMDistributedDataParallel()
    wrapped.module = model
    assert tune_for_cpu(wrapped)['channels last'] == 0


def test_copies_and_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([RoIAlign((2, 2), 1.0, 0)])
    tune_for_cpu(layers)
    copied = copy.deepcopy(layers)[0]
    assert copied.forward.args == (copied,)
    rois = torch.tensor([[0, 1.0, 1.0, 4.0, 4.0]])
    maps = torch.arange(36.0).reshape(1, 1, 6, 6)
    expected = RoIAlign((2, 2), 1.0, 0)(maps, rois)
    torch.testing.assert_close(copied(maps, rois), expected)

    def never(*args: object) -> None:
        raise AssertionError('ours')

    monkeypatch.setattr(cpu, 'roi_align', never)
    with pytest.raises(AssertionError, match='ours'):
        copied(maps, rois)
    traced = torch.jit.trace(copied, (maps, rois), check_trace=False)  # mmcv's
    torch.testing.assert_close(traced(maps, rois), expected)


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(('device', 'tuned'), [('cpu', True), ('cuda', False)])
def test_runs_are_tuned_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, tuned: bool
) -> None:
    config, _ = tiny_data.write_model(tmp_path, tmp_path, 'DETECTION')
    cfg = load_config(config)
    cfg.work_dir = str(tmp_path)
    monkeypatch.setattr('mmlocalattn.training.launch.get_device', lambda: device)
    model: Any = build_runner(cfg).model
    assert ('forward' in vars(model.roi_head.bbox_roi_extractor.roi_layers[0])) == tuned
    assert model.neck.fpn_convs[0].conv.weight.is_contiguous() != tuned
