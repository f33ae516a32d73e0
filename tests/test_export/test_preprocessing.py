"""Pre-processing in an ONNX file, compared with pipelines and preprocessors of the toolboxes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from packaging.version import Version
from tiny_data import DETECTION, SEGMENTATION, data, quick  # noqa: F401
from torch.nn import functional

if Version(torch.__version__) < Version('2.8'):
    pytest.skip('ONNX files need torch 2.8', allow_module_level=True)

from mmlocalattn.export.file_models import use_file
from mmlocalattn.export.pipeline import pipeline_without_labels
from mmlocalattn.export.preprocessing import add_preprocessing, preprocessing_of
from mmlocalattn.export.run_file import load_file
from mmlocalattn.training import load_config

pytestmark = pytest.mark.usefixtures('quick')
META = dict(part='model', channels=3, sizes=[[64, 64], [160, 160]], classes=['dark', 'light'])


def read(folder: Path, text: str, steps: list[dict]) -> Config:
    """A config that loads, does these steps and packs."""
    cfg = load_config(tiny_data.write_config(folder / 'c.py', text, folder))
    pipeline = cfg.test_dataloader.dataset.pipeline
    packs = dict(type='PackDetInputs') if cfg.default_scope == 'mmdet' else pipeline[-1]
    cfg.test_dataloader.dataset.pipeline = [pipeline[0], *steps, packs]
    return cfg


def write_onnx(path: Path, outputs: list[str], meta: dict) -> None:
    """A file that gives its image as scores, or one box and the image as scores beside it."""
    import onnx
    from onnx import TensorProto, helper

    box = helper.make_tensor('b', TensorProto.FLOAT, (1, 1, 4), [8.0, 16.0, 32.0, 300.0])
    nodes = [helper.make_node('Identity', ['image'], ['scores'])]
    if 'boxes' in outputs:
        nodes.append(helper.make_node('Identity', ['b'], ['boxes']))
    graph = helper.make_graph(
        nodes,
        'image',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, ['b', 3, 'h', 'w'])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ['b', None, 'h', 'w'])
            if name == 'scores'
            else helper.make_tensor_value_info(name, TensorProto.FLOAT, ['b', 1, 4])
            for name in outputs
        ],
        [box],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    helper.set_model_props(model, {'mmlocalattn': json.dumps({**meta, 'outputs': outputs})})
    onnx.save(model, path)


@pytest.mark.parametrize('shape', [(101, 150), (240, 77), (64, 64)])
@pytest.mark.parametrize(
    'steps',
    [
        [dict(type='Resize', scale=(150, 100), keep_ratio=True)],
        [dict(type='Resize', scale=(96, 70))],
        [
            dict(type='Resize', scale=(120, 120), keep_ratio=True),
            dict(type='Pad', size=(140, 130), pad_val=dict(img=(114, 114, 114))),
        ],
    ],
    ids=['ratio', 'fixed', 'canvas'],
)
def test_as_the_pipeline_of_mmdet(tmp_path: Path, steps: list[dict], shape: tuple) -> None:
    cfg = read(tmp_path, DETECTION, steps)
    path, picture = tmp_path / 'model.onnx', tmp_path / 'a.png'
    rough = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    image = cv2.resize(rough, shape[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(picture), image)
    init_default_scope('mmdet')
    item = Compose(pipeline_without_labels(cfg))(dict(img_path=str(picture), img_id=0))
    batch = MODELS.build(cfg.model.data_preprocessor)(pseudo_collate([item]), False)
    write_onnx(path, ['boxes', 'scores'], META)
    assert add_preprocessing(path, preprocessing_of(cfg, [(64, 64), (160, 160)]))
    file = load_file(path)
    assert file.takes_pixels
    outputs = file(torch.from_numpy(image)[None])
    expected = batch['inputs']
    height, width = expected.shape[2:]
    assert outputs['scores'].shape[2:] == (max(height, 64), max(width, 64))
    actual = outputs['scores'][..., :height, :width]
    std = torch.tensor(cfg.model.data_preprocessor.std).view(3, 1, 1)
    grey_values = ((actual - expected) * std).abs()
    assert grey_values.max() < 1.01
    assert (grey_values > 0.01).float().mean() < 0.15  # OpenCV rounds its weights, too
    scale = batch['data_samples'][0].scale_factor
    box = torch.tensor([8.0, 16.0, 32.0, 300.0]) / torch.tensor([*scale, *scale])
    box[3] = box[3].clamp(max=shape[0])
    torch.testing.assert_close(outputs['boxes'][0, 0], box)
    with pytest.raises(ValueError, match=r'takes images \(B, H, W, 3\) of bytes, got \(1, 3, 8'):
        file(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('name', ['scores', 'labels'])
def test_maps_come_back_in_the_size_of_the_image(tmp_path: Path, name: str) -> None:
    import onnx

    cfg = read(tmp_path, SEGMENTATION, [dict(type='Resize', scale=(150, 100), keep_ratio=True)])
    path = tmp_path / 'model.onnx'
    write_onnx(path, ['scores'], META)
    if name == 'labels':  # where red is more than half
        model = onnx.load(path)
        helper, numbers = onnx.helper, onnx.TensorProto
        half = helper.make_tensor('half', numbers.FLOAT, (), [0.0])
        axes = helper.make_tensor('axes', numbers.INT64, (1,), [1])
        first = helper.make_tensor('first', numbers.INT64, (), [0])
        del model.graph.node[:]
        model.graph.initializer.extend([half, axes, first])
        model.graph.node.extend(
            [
                helper.make_node('Gather', ['image', 'first'], ['red'], axis=1),
                helper.make_node('Greater', ['red', 'half'], ['is_red']),
                helper.make_node('Cast', ['is_red'], ['labels'], to=7),
            ]
        )
        del model.graph.output[:]
        shape = ['b', 'h', 'w']
        model.graph.output.append(helper.make_tensor_value_info('labels', numbers.INT64, shape))
        meta = {**META, 'outputs': ['labels']}
        helper.set_model_props(model, {'mmlocalattn': json.dumps(meta)})
        onnx.save(model, path)
    add_preprocessing(path, preprocessing_of(cfg, [(64, 64), (160, 160)]))
    image = torch.zeros(2, 200, 260, 3, dtype=torch.uint8)
    image[:, 50:150, 130:, 2] = 255
    output = load_file(path)(image)[name]
    node = cfg.model.data_preprocessor
    if name == 'labels':
        assert output.shape == (2, 200, 260)
        wrong = output != (image[..., 2] > 127)
    else:
        assert output.shape == (2, 3, 200, 260)
        red = output[:, 0] * node.std[0] + node.mean[0]
        wrong = (red - image[..., 2]).abs() > 2
    assert wrong.float().mean() < 0.02


def test_masks_over_the_border(tmp_path: Path) -> None:
    """A box reaches into the padding: what comes back is the mask's part over the clipped box."""
    import onnx

    helper, path = onnx.helper, tmp_path / 'model.onnx'
    cfg = read(tmp_path, DETECTION, [dict(type='Resize', scale=(96, 70))])
    write_onnx(path, ['boxes', 'scores'], META)
    model = onnx.load(path)
    drawn = torch.rand(1, 2, 28, 28, generator=torch.Generator().manual_seed(0))
    found = torch.tensor([[[8.0, 16.0, 32.0, 60.0], [-4.0, 40.0, 120.0, 80.0]]])
    del model.graph.node[:], model.graph.initializer[:], model.graph.output[:]
    for name, values in (('boxes', found), ('masks', drawn)):
        shape = [*values.shape]
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.numpy(), f'c_{name}'))
        model.graph.node.append(helper.make_node('Identity', [f'c_{name}'], [name]))
        output = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        model.graph.output.append(output)
    meta = {**META, 'outputs': ['boxes', 'masks'], 'mask_frame': 'box'}
    helper.set_model_props(model, {'mmlocalattn': json.dumps(meta)})
    onnx.save(model, path)
    add_preprocessing(path, preprocessing_of(cfg, [(64, 64), (160, 160)]))
    outputs = load_file(path)(torch.zeros(1, 70, 96, 3, dtype=torch.uint8))
    boxes, masks = outputs['boxes'][0], outputs['masks'][0]
    torch.testing.assert_close(boxes[1], torch.tensor([0.0, 40.0, 96.0, 70.0]))
    torch.testing.assert_close(masks[0], drawn[0, 0])  # inside: nothing changes
    x = torch.linspace(0, 1, 29)[:-1] + 1 / 56
    x, y = (x * 96 + 4) / 124 * 2 - 1, (x * 30) / 40 * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), -1)[None]
    expected = functional.grid_sample(
        drawn[:, 1:], grid, padding_mode='border', align_corners=False
    )
    torch.testing.assert_close(masks[1], expected[0, 0])


def test_what_has_no_form(tmp_path: Path) -> None:
    for text, steps, reason in (
        (DETECTION, [dict(type='RandomFlip', prob=0.5)], 'RandomFlip'),
        (DETECTION, [dict(type='Resize', scale=(9, 9), interpolation='bicubic')], 'bicubic'),
        (DETECTION, [dict(type='Pad', size_divisor=32)], 'size_divisor'),
        (SEGMENTATION, [dict(type='Pad', size=(64, 64))], "'Pad'"),
    ):
        with pytest.raises(ValueError, match=rf'{reason}.* cannot go into the file') as raised:
            preprocessing_of(read(tmp_path, text, steps), [(64, 64)])
        assert '\n' not in str(raised.value)
    cfg = read(tmp_path, SEGMENTATION, [])
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    with pytest.raises(ValueError, match='is for detectors and segmentors of whole images'):
        preprocessing_of(cfg, [(64, 64)])
    path = tmp_path / 'masks.onnx'
    write_onnx(path, ['boxes', 'scores'], {**META, 'mask_frame': 'image'})
    rule = preprocessing_of(read(tmp_path, DETECTION, []), [(64, 64)])
    with pytest.raises(ValueError, match='its masks lie in the padded image'):
        add_preprocessing(path, rule)


def test_the_toolboxes_give_raw_images(tmp_path: Path) -> None:
    cfg = read(tmp_path, DETECTION, [dict(type='Resize', scale=(9, 9))])
    path = tmp_path / 'model.ONNX'
    write_onnx(path, ['boxes', 'scores'], {**META, 'test_scale': [9, 9]})
    add_preprocessing(path, preprocessing_of(cfg, [(64, 64)]))
    other = read(tmp_path, DETECTION, [dict(type='Resize', scale=(8, 9))])
    with pytest.raises(ValueError, match=r'images to \(9, 9\), and the test .* to \(8, 9\)'):
        use_file(other, str(path))
    use_file(cfg, str(path))
    steps = [step['type'] for step in cfg.test_dataloader.dataset.pipeline]
    assert steps == ['LoadImageFromFile', 'PackDetInputs']
    assert cfg.model.data_preprocessor == dict(type='DetDataPreprocessor', _scope_='mmdet')
