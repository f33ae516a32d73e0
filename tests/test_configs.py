"""Every config parses, builds, and trains one step on the sample data as a shrunken copy with all
parameters used."""

import contextlib
import copy
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope
from torch.overrides import TorchFunctionMode

from mmlocalattn.training import adapt_to_device, load_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
FILES = sorted(CONFIGS.glob('*.py'))
PUBLISHED = [file for file in FILES if not file.name.startswith('quickstart_')]
# What file names call a model and a number of epochs, where it is not the type or the number.
METHODS = dict(
    CascadeRCNN='cascademaskrcnn',
    UPerHead='upernet',
    FPNHead='semfpn',
    Mask2FormerHead='mask2former',
    RTMDet='rtmdetins',
    ImageClassifier='',
)
SCHEDULES = {12: '1x', 36: '3x', 310: '300e'}
ITERATIONS = {368750: '50e', 737500: '100e'}  # of COCO

# Options that make each backbone tiny.
ARCH = dict(
    embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2)
)
SMALL = {
    'SSViT': dict(arch=ARCH),
    'NAT': dict(arch=ARCH),
    'SASAResNet': dict(
        depth=dict(embed_dims=(32, 48, 64, 96), depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2))
    ),
    'DiNAT': dict(arch=ARCH, dilations=((2,), (1,), (1, 2), (1,))),
    'SlideCSwin': dict(arch=dict(ARCH, num_heads=(2, 2, 2, 4), split_sizes=(1, 2, 7, None))),
    'SlideNAT': dict(arch=ARCH),
    'SlidePVT': dict(arch=dict(ARCH, sr_ratios=(8, 4, 2, 1))),
    'SlidePVTv2': dict(arch=dict(ARCH, sr_ratios=(8, 4, 2, 1))),
    'SlideSwin': dict(arch=ARCH),
    'QnAViT': dict(
        arch=dict(
            ARCH,
            depths=(1, 1, 1, 0),
            num_heads=(1, 2, 2, 4),
            kernel_sizes=(3, 3, 3, 3),
            window_depths=(0, 0, 1, 1),
            window_heads=(1, 2, 3, 4),
            window_sizes=(7, 7, 14, 7),
        )
    ),
}
# What a config of another size sets. `shrink` has values of its own for them.
OF_A_SIZE = {
    *('_base_', 'model', 'backbone', 'arch', 'depth', 'drop_path_rate', 'in_channels'),
    *('neck', 'decode_head', 'auxiliary_head', 'head', 'optim_wrapper', 'optimizer', 'lr', 'dtype'),
}
# That read the backbone where no neck does.
HEADS = {'head', 'decode_head', 'auxiliary_head', 'panoptic_head'}
TABLES = ('pos_bias', 'attention_scale')  # of position biases
NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
NUM_CLASSES = {
    'coco': 80,
    'coco_panoptic': 133,
    'ade20k': 150,
    'ade20k_instance': 100,
    'ade20k_panoptic': 150,
    'cityscapes': 19,
    'cityscapes_instance': 8,
    'cityscapes_panoptic': 19,
    'imagenet': 1000,
}


def load(name: str | Path) -> Config:
    """A copy of the config of this name (or file) that may be changed."""
    return copy.deepcopy(parse(CONFIGS / f'{Path(name).stem}.py'))


@functools.cache
def parse(file: Path) -> Config:
    return load_config(str(file))


def parameters(name: str, files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, files, ids=[file.stem for file in files])


def shrink(model: ConfigDict) -> None:
    """Give the model a tiny backbone, 16 channels wherever it has more, few layers and boxes, small
    images."""
    for key, value in SMALL[model.backbone.type.removeprefix('mmlocalattn.')].items():
        model.backbone[key] = copy.deepcopy(value)
    with shapes_alone():
        inputs = inputs_of(model, MODELS.build(model.backbone).out_channels)
    backbone = model.pop('backbone')
    # mmdet's DINO encodes boxes in a width that no config changes.
    narrow_heads(model, 256 if model.type == 'DINO' else 16)
    model.backbone = backbone
    for name, channels in inputs.items():
        model[name].in_channels = channels


def inputs_of(model: ConfigDict, channels: tuple[int, ...]) -> dict[str, int | list[int]]:
    """The in_channels of each part that reads a backbone with these out_channels."""
    readers = ['neck'] if 'in_channels' in model.get('neck', {}) else HEADS & model.keys()
    return {
        name: list(channels)
        if isinstance(model[name].in_channels, list)
        else channels[model[name].get('in_index', -1)]
        for name in readers
    }


class NoInitialisation(TorchFunctionMode):
    """Skip torch.nn.init and what it calls: on the meta device that is most of the work."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', None)
        in_init = getattr(func, '__module__', None) == 'torch.nn.init'
        if in_init or name in ('normal_', 'uniform_', 'erfinv_', 'clamp_'):
            return args[0] if args else kwargs['tensor']
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Build modules without memory and values."""
    with torch.device('meta'), NoInitialisation():
        yield


def narrow_heads(node: object, width: int) -> None:
    """The part of :func:`shrink` for nested dicts and lists."""
    if isinstance(node, list):
        for child in node:
            narrow_heads(child, width)
    if not isinstance(node, dict):
        return
    if node.get('type') in ('DeformableDETRHead', 'DINOHead'):
        node.setdefault('embed_dims', width)
    for key, value in node.items():
        if key.endswith('channels'):
            node[key] = [width] * len(value) if isinstance(value, list) else width
        elif key in ('embed_dims', 'num_feats'):  # of DETR; a position has twice num_feats
            node[key] = width if key == 'embed_dims' else width // 2
        elif key in ('num', 'nms_pre', 'max_per_img', 'num_queries'):
            node[key] = 16
        elif key in ('num_groups', 'num_layers'):  # of GroupNorm, of DETR and Mask2Former
            node[key] = 4 if key == 'num_groups' else 1
        elif key == 'num_points':  # where masks are compared, and of deformable attention
            node[key] = min(value, 64)
        elif key == 'size':
            node[key] = (64, 64)
        else:
            narrow_heads(value, width)


def build(cfg: Config) -> torch.nn.Module:
    """The model as MMEngine's Runner builds it in one process."""
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    return revert_sync_batchnorm(MODELS.build(cfg.model))


@pytest.fixture(scope='session')
def sample_batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """A batch of the sample data set for each task."""
    folder = tmp_path_factory.mktemp('sample') / 'digit_cards'
    command = [sys.executable, str(ROOT / 'tools' / 'make_sample_data.py'), '--out', str(folder)]
    subprocess.run([*command, '--num-train', '2', '--num-val', '1', '--size', '96'], check=True)
    return {task: sample_batch(task, folder) for task in ('mmdet', 'mmseg', 'mmpretrain')}


def sample_batch(task: str, folder: Path) -> dict:
    """Two images at 64x64 with the labels of the task, a scope, as its data loader packs them."""
    init_default_scope(task)
    load, resize = dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64))
    if task == 'mmdet':
        dataset = dict(
            type='CocoDataset',
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='train/'),
            metainfo=dict(classes=('0', '1', '2', '3')),
            pipeline=[
                load,
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                resize,
                dict(type='PackDetInputs'),
            ],
        )
    elif task == 'mmseg':
        dataset = dict(
            type='BaseSegDataset',
            data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
            pipeline=[load, dict(type='LoadAnnotations'), resize, dict(type='PackSegInputs')],
        )
    else:  # a class for each image: the number of the image
        pack = Compose([load, resize, dict(type='PackInputs')])
        files = sorted((folder / 'train').iterdir())
        samples = [dict(img_path=str(file), gt_label=i) for i, file in enumerate(files)]
        return pseudo_collate([pack(sample) for sample in samples])
    return pseudo_collate(list(DATASETS.build(dict(dataset, data_root=str(folder)))))


def is_like_its_sibling(file: Path) -> bool:
    """Whether :func:`shrink` makes the same model of both, but for the drop path."""
    code = re.sub(r'^#.*\n', '', file.read_text(), flags=re.MULTILINE)
    return sibling(file) is not None and {*re.findall(r'\w+(?==| =)', code)} <= OF_A_SIZE


def sibling(file: Path) -> Path | None:
    """The config that this one differs from in a few lines."""
    base = re.search(r"^_base_ = './([^/]+\.py)'$", file.read_text(), re.MULTILINE)
    return base and CONFIGS / base[1]


@parameters('file', [file for file in FILES if not is_like_its_sibling(file)])
def test_trains_one_step(file: Path, sample_batches: dict[str, dict]) -> None:
    cfg = load(file)
    shrink(cfg.model)
    model = build(cfg).train()
    if cfg.model.type in ('DeformableDETR', 'DINO'):  # have parameters without values until then
        model.init_weights()
    batch = copy.deepcopy(sample_batches[cfg.default_scope])
    data = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    # DistributedDataParallel rejects a parameter without a gradient.
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@parameters('file', FILES)
def test_builds_at_full_size(file: Path) -> None:
    cfg = load(file)
    with shapes_alone():
        model = build(cfg)
    for name, channels in inputs_of(cfg.model, model.backbone.out_channels).items():
        assert cfg.model[name].in_channels == channels
    head = next(
        module
        for name, module in model.named_modules()
        if hasattr(module, 'num_classes') and 'preprocessor' not in name and 'rpn' not in name
    )
    if file in PUBLISHED:
        assert head.num_classes == NUM_CLASSES[data_of(file)]
    else:
        assert head.num_classes == 4 + (file.stem == 'quickstart_upernet_ssvit')


@parameters('file', FILES)
def test_has_auto_scale_lr(file: Path) -> None:
    cfg = parse(file)
    assert cfg.auto_scale_lr.enable is False
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0


@parameters('file', PUBLISHED)
def test_carries_a_recipe_or_is_a_few_lines_over_one(file: Path) -> None:
    base = sibling(file)
    if base is None or data_of(base) != data_of(file):
        assert 'ur choice' in file.read_text()
    else:
        assert len(file.read_text().splitlines()) <= 10
        recipe = sibling(base)
        assert recipe is None or backbone_type(recipe) != backbone_type(base)


def data_of(file: Path) -> str:
    """The end of the name: the data and, where it has several, their kind."""
    return re.search(rf'_({"|".join(NUM_CLASSES)})$', file.stem)[1]


def backbone_type(file: Path) -> str:
    return parse(file).model.backbone.type.removeprefix('mmlocalattn.')


@parameters('file', PUBLISHED)
def test_name_says_what_it_is(file: Path) -> None:
    """<method>_<backbone>_<size>_<schedule>_<dataset>"""
    cfg = parse(file)
    model_type = cfg.model.get('decode_head', cfg.model).type
    method = METHODS.get(model_type, model_type.lower())
    backbone = backbone_type(file).lower().removesuffix('resnet')
    epochs, iterations = (cfg.train_cfg.get(key) for key in ('max_epochs', 'max_iters'))
    length = (
        ITERATIONS.get(iterations, f'{iterations // 1000}k')
        if iterations
        else SCHEDULES.get(epochs, f'{epochs}e')
    )
    dataset = cfg.train_dataloader.dataset.type.removesuffix('Dataset').lower()
    if 'cityscapes' in file.stem:  # mmdet and mmsegmentation have one type each
        dataset = data_of(file).replace('_', '')
    name = rf'{method}(qnafpn)?{backbone}\w+{length}{dataset}'
    assert re.fullmatch(name, file.stem.replace('_', ''))


def test_no_base_that_only_one_distribution_has() -> None:
    for file in CONFIGS.rglob('*.py'):
        assert 'mmseg::' not in file.read_text(), file
        assert 'mmdet.configs' not in file.read_text(), file


@pytest.mark.parametrize(
    ('name', 'lr', 'decay', 'norm_decay'),
    [
        ('maskrcnn_ssvit_t_1x_coco', 4e-4, 0.05, 0.0),
        ('maskrcnn_ssvit_l_1x_coco', 2e-4, 0.05, 0.0),
        ('maskrcnn_ssvit_b_3x_coco', 2e-4, 0.05, 0.0),
        ('cascade_maskrcnn_ssvit_s_3x_coco', 4e-4, 0.05, 0.0),
        ('retinanet_ssvit_t_1x_coco', 4e-4, 1e-4, 1e-4),
        ('semfpn_ssvit_t_80k_ade20k', 1e-4, 1e-4, 1e-4),
        ('upernet_ssvit_s_160k_ade20k', 6e-5, 0.01, 0.0),
        ('ssvit_t_300e_imagenet', 2e-3, 0.05, 0.0),
        ('maskrcnn_nat_m_3x_coco', 1e-4, 0.05, 0.0),
        ('cascade_maskrcnn_dinat_b_3x_coco', 7.5e-5, 0.05, 0.0),
        ('upernet_nat_m_160k_ade20k', 6e-5, 0.01, 0.0),
        ('dinat_m_300e_imagenet', 1e-3, 0.05, 0.0),
        ('maskrcnn_slide_swin_t_3x_coco', 1e-4, 0.05, 0.0),
        ('maskrcnn_slide_pvtv2_b1_1x_coco', 2e-4, 1e-4, 1e-4),
        ('semfpn_slide_pvt_t_80k_ade20k', 1e-4, 1e-4, 1e-4),
        ('slide_cswin_b_300e_imagenet', 1e-3, 0.1, 0.0),
        ('maskrcnn_qna_vit_t_1x_coco', 1e-4, 0.05, 0.0),
        ('retinanet_qna_vit_t_1x_coco', 1e-4, 0.05, 0.0),
        ('upernet_qna_vit_t_160k_ade20k', 6e-5, 0.01, 0.0),
    ],
)
def test_optimizer(name: str, lr: float, decay: float, norm_decay: float) -> None:
    model, rates, decays = optimized(name)
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    block = next(block for block in blocks if hasattr(block.attn, 'qkv'))
    biases = [p for name, p in model.named_parameters() if name.endswith(TABLES)]
    assert rates == {lr}
    assert decays[block.attn.qkv.weight] == decay
    assert {decays[p] for p in (block.norm1.weight, *biases)} == {norm_decay}


def test_released_qna_vit_decays_norms_but_not_tables() -> None:
    model, rates, decays = optimized('qna_vit_t_300e_imagenet')
    assert rates == {2e-3}
    for name, parameter in model.named_parameters():
        assert decays[parameter] == (0.0 if name.endswith(TABLES) else 0.05), name


@pytest.mark.parametrize(
    'name',
    [
        'mask2former_ssvit_t_50e_coco',
        'mask2former_dinat_l_100e_coco_panoptic',
        'mask2former_slide_swin_t_160k_ade20k',
    ],
)
def test_mask2former_learns_its_backbone_at_a_tenth(name: str) -> None:
    cfg = load(name)
    shrink(cfg.model)
    model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {group['params'][0]: (group['lr'], group['weight_decay']) for group in groups}
    norms = {
        f'{name}.{key}'
        for name, module in model.named_modules()
        if isinstance(module, (*NORMS, torch.nn.Embedding)) and 'level_encoding' not in name
        for key, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        is_undecayed = name in norms or name.endswith(TABLES)
        rate = 1e-5 if name.startswith('backbone.') else 1e-4
        assert found[parameter] == pytest.approx((rate, 0.0 if is_undecayed else 0.05)), name


def optimized(name: str) -> tuple[torch.nn.Module, set[float], dict[torch.Tensor, float]]:
    """A small model, its learning rates, and the weight decay of each parameter."""
    cfg = load(name)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    shrink(cfg.model)
    adapt_to_device(cfg)
    model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decays = {p: group['weight_decay'] for group in groups for p in group['params']}
    return model, {group['lr'] for group in groups}, decays


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A 120x90 photograph stand-in with an index map beside it."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'image.jpg'), noise)
    cv2.imwrite(str(tmp_path / 'map.png'), noise[..., 0] % 5)
    return tmp_path


@pytest.mark.parametrize(
    'name',
    [
        'maskrcnn_ssvit_t_1x_coco',
        'maskrcnn_ssvit_s_3x_coco',
        'upernet_ssvit_s_160k_ade20k',
        'upernet_dinat_l_160k_ade20k',
        'ssvit_t_300e_imagenet',
        'qna_vit_t_300e_imagenet',
    ],
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_pipeline(picture: Path, name: str, split: str) -> None:
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    box = dict(bbox=[20, 20, 90, 80], bbox_label=1, ignore_flag=0, mask=[[20, 20, 90, 20, 90, 80]])
    sample = dict(
        img_path=str(picture / 'image.jpg'),
        img_id=0,
        height=90,
        width=120,
        instances=[box],
        seg_map_path=str(picture / 'map.png'),
        seg_fields=[],
        label_map=None,
        reduce_zero_label=True,
        gt_label=1,
    )
    pipeline = Compose(cfg[f'{split}_dataloader'].dataset.pipeline)
    batch = pseudo_collate([pipeline(dict(sample)) for _ in range(2)])
    heights, widths = zip(*(image.shape[1:] for image in batch['inputs']), strict=True)
    if name.endswith('imagenet'):
        assert {*heights, *widths} == {224}
    elif name.startswith('upernet'):
        side = cfg.model.data_preprocessor.size[0]
        assert max(heights) <= side if split == 'train' else set(heights) == {side}
    elif name == 'maskrcnn_ssvit_s_3x_coco' and split == 'train':
        sides = range(480, 801, 32)
        assert all(min(size) in sides for size in zip(heights, widths, strict=True))
    else:
        assert set(heights) == {800}


def test_backbone_weights_from_the_command_line(tmp_path: Path) -> None:
    """The command given in _base_/models/maskrcnn_ssvit.py."""
    cfg = load('upernet_ssvit_s_160k_ade20k')
    shrink(cfg.model)
    source = build(cfg).backbone
    file = tmp_path / 'weights.pth'
    torch.save({f'backbone.{name}': value for name, value in source.state_dict().items()}, file)
    options = dict(type='Pretrained', prefix='backbone.', checkpoint=str(file))
    cfg.merge_from_dict({f'model.backbone.init_cfg.{key}': options[key] for key in options})
    model = build(cfg)
    model.init_weights()
    torch.testing.assert_close(model.backbone.state_dict(), source.state_dict())


@pytest.fixture(autouse=True)
def one_thread_and_no_default_scope() -> Iterator[None]:
    """Tiny models are slower with more threads; the default scope is global in MMEngine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    DefaultScope._instance_dict.clear()
