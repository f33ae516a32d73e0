"""Sizes of images and the length of a training, from the data."""

from dataclasses import replace

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from users_data import BOXES, LABELS, MAPS

from mmlocalattn.adapt import fit_to_data
from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.sizes import fit_length, fit_sizes
from mmlocalattn.data.folders import FolderData
from mmlocalattn.training import load_config
from mmlocalattn.training.batch import fit_batch, largest_side

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture(autouse=True)
def no_default_scope() -> None:
    yield
    DefaultScope._instance_dict.clear()


def fitted(path: str, data: FolderData) -> Config:
    cfg = fit_to_data(load_config(path), data)
    fit_sizes(cfg, data)
    return cfg


def scales(cfg: Config) -> list:
    steps = cfg.train_dataloader.dataset.pipeline
    return [step[key] for step in steps for key in ('scale', 'scales', 'crop_size') if key in step]


@pytest.mark.parametrize(
    ('object_size', 'expected'),
    [
        (40, (608, 352)),  # 400 x 300 pixels become 469 x 352: 48 of an object's 40 pixels
        (12, (992, 608)),  # twofold
        (200, (416, 256)),  # the shortest side
        (0, (992, 608)),
    ],
)
def test_the_median_object_gets_48_pixels(object_size: float, expected: tuple) -> None:
    data = replace(BOXES, object_size=object_size)
    cfg = fitted(RETINANET, data)
    assert scales(cfg) == [expected]
    assert cfg.test_dataloader.dataset.pipeline[1].scale == expected


def test_all_sizes_of_an_augmentation() -> None:
    cfg = fitted('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', replace(BOXES, object_size=60))
    steps = cfg.train_dataloader.dataset.pipeline
    sizes = [step[key] for step in steps for key in ('img_scale', 'scale', 'size') if key in step]
    assert sizes == [(352, 352), (672, 672), (352, 352), (352, 352)]
    switched = next(hook.switch_pipeline for hook in cfg.custom_hooks if 'switch_epoch' in hook)
    assert switched[2].scale == switched[3].crop_size == (352, 352)
    assert largest_side(cfg) == 352
    cfg = fitted('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', replace(BOXES, object_size=96))
    mosaic, affine = cfg.train_dataloader.dataset.pipeline[:2]
    assert (mosaic.img_scale, affine.border) == ((512, 512), (-256, -256))
    assert cfg.model.data_preprocessor.batch_augments[0].random_size_range == (256, 512)


@pytest.mark.parametrize(
    ('path', 'least'),
    [
        ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', 224),
        ('mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py', 256),
        ('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 128),
    ],
    ids=['dino', 'ddq', 'queries of its own'],
)
def test_maps_have_a_place_for_each_query(path: str, least: int) -> None:
    cfg = fitted(path, replace(BOXES, object_size=200))
    resizes = [step for step in dicts(cfg.train_dataloader.to_dict()) if 'scales' in step]
    assert min(side for step in resizes for scale in step['scales'] for side in scale) == least
    queries = cfg.model.num_queries * cfg.model.get('dense_topk_ratio', 1)
    places = sum((least // stride) ** 2 for stride in (8, 16, 32, 64))
    assert places >= queries or not cfg.model.as_two_stage


@pytest.mark.parametrize(
    'path', ['mmdet::ssd/ssd300_coco.py', 'mmpretrain::resnet/resnet18_8xb32_in1k.py']
)
def test_models_of_one_size(path: str) -> None:
    data = LABELS if 'mmpretrain' in path else replace(BOXES, object_size=200)
    cfg = fit_to_data(load_config(path), data)
    before = cfg.to_dict()
    fit_sizes(cfg, data)
    assert cfg.to_dict() == before


def test_small_maps_are_not_enlarged() -> None:
    cfg = fitted('mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', MAPS)
    scale, crop = scales(cfg)
    assert scale == (1216, 288)  # 300 x 300 pixels fit into it as they are
    assert crop == (320, 320)
    assert cfg.model.data_preprocessor['size'] == (320, 320)


@pytest.mark.parametrize(
    ('images', 'epochs', 'milestones', 'warm_up'),
    [(117266, 12, [8, 11], 500), (500, 16, [11, 15], 200), (20, 300, [200, 275], 200)],
)
def test_epochs(images: int, epochs: int, milestones: list[int], warm_up: int) -> None:
    cfg = load_config(RETINANET)
    cfg.train_dataloader.batch_size = 4
    fit_length(cfg, images)
    assert cfg.train_cfg.max_epochs == epochs
    warm, steps = cfg.param_scheduler
    assert steps.milestones == milestones
    assert warm.end == min(warm_up, -(-images // 4) * epochs // 10)
    assert steps.end == epochs
    assert cfg.train_cfg.val_interval == epochs // 12


@pytest.mark.parametrize(('images', 'iterations'), [(20210, 160000), (40, 6000), (4, 2000)])
def test_iterations(images: int, iterations: int) -> None:
    cfg = load_config('mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py')
    fit_length(cfg, images)
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.param_scheduler[1].end == iterations
    assert cfg.train_cfg.val_interval == iterations // 12


def test_late_changes_move_with_the_end() -> None:
    cfg = load_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    cfg.train_cfg.max_epochs = 30
    cfg.train_cfg.dynamic_intervals = [(28, 1)]
    hook = next(hook for hook in cfg.custom_hooks if 'switch_epoch' in hook)
    hook.switch_epoch = 28
    fit_length(cfg, 640)
    assert cfg.train_cfg.max_epochs == 100
    assert hook.switch_epoch == 93
    assert cfg.train_cfg.dynamic_intervals == [(93, 1)]


def test_batch_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmlocalattn.training import batch

    tried = []
    memory = {'MemAvailable': 100.0, 'VmHWM': 10.0}

    def step(cfg: Config, size: tuple[int, int], number: int, device: str) -> None:
        tried.append((size, number, device))
        memory['VmHWM'] += 20.0 * number

    monkeypatch.setattr(batch, '_step', step)
    monkeypatch.setattr(batch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(batch, '_kilobytes', lambda file, name: memory[name])
    cfg = load_config(RETINANET)
    cfg.train_dataloader.batch_size = 8
    fit_batch(cfg, 1000)
    assert cfg.train_dataloader.batch_size == 3  # of 70 kB, at 20 each
    assert tried == [((1333, 1333), 2, 'cpu')]
    assert cfg.auto_scale_lr.enable is True


@pytest.mark.parametrize(('seconds', 'expected'), [(None, 8), (900, 4), (60, 2)])
def test_batch_of_a_training_by_the_clock(
    seconds: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred steps have to fit, of two images at least."""
    from mmlocalattn.training import batch

    monkeypatch.setattr(batch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(batch, '_try_on_cpu', lambda cfg, size: (100.0, 2.0))
    cfg = load_config(RETINANET)
    cfg.train_dataloader.batch_size = 8
    fit_batch(cfg, 1000, seconds)
    assert cfg.train_dataloader.batch_size == expected


def test_batch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmlocalattn.training import batch

    monkeypatch.setattr(batch, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(batch, '_fits_on_gpu', lambda cfg, size, number: number <= 5)
    for images, expected in ((1000, 4), (3, 3)):
        cfg = load_config(RETINANET)  # whose learning rate is for 16 images
        fit_batch(cfg, images)
        assert cfg.train_dataloader.batch_size == expected


def test_a_step_is_one_that_runs() -> None:
    from mmlocalattn.training import batch

    cfg = load_config('mmlocalattn::quickstart_fasterrcnn_ssvit.py')
    batch._step(cfg, (64, 64), 2, 'cpu')
    assert batch._kilobytes('/proc/self/status', 'VmHWM') > 1000
    assert batch._kilobytes('/proc/self/nothing', 'VmHWM') is None
