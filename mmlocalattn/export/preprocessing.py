"""Pre-processing as a part of an ONNX file: bytes of an image in, boxes in its pixels out.

What is added stands before and after the nodes of a model in ONNX's operators: the resizing of the
config's test pipeline, its padding and normalisation, and the way back to the pixels of the image.
OpenCV resizes bytes in whole numbers, and ONNX in floating-point numbers that are rounded here, so
that pixels may differ by one grey value.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmlocalattn.export.pipeline import divisor_of, pipeline_without_labels, step_name
from mmlocalattn.training import channels_of, preprocessor_of


@dataclass(frozen=True)
class Preprocessing:
    """What a config does to an image before its model gets it.

    Attributes:
        scale: (width, height) to which it is resized; with ``keep_ratio`` the longer is the limit
            of the longer side. None where images keep their size.
        keep_ratio: Whether both sides are multiplied by the same factor.
        canvas: (height, width) up to which it is padded then, or None.
        canvas_value: Of that padding.
        reverse: Whether the channels are reversed, from BGR to RGB.
        mean: Of each channel.
        std: Of each channel.
        divisor: Of which the sides of the padded image are multiples.
        least: (height, width) that it has at least.
        value: Of that padding.
    """

    scale: tuple[int, int] | None
    keep_ratio: bool
    canvas: tuple[int, int] | None
    canvas_value: float
    reverse: bool
    mean: Sequence[float]
    std: Sequence[float]
    divisor: int
    least: tuple[int, int]
    value: float


def preprocessing_of(cfg: Config, sizes: Sequence[tuple[int, int]]) -> Preprocessing:
    """What goes into a file.

    Args:
        cfg: Of mmdet or mmsegmentation.
        sizes: That the file takes without pre-processing.

    Raises:
        ValueError: If the pipeline does something that has no form in ONNX here; says what.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg') or (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        raise ValueError(
            f'--with-preprocessing is for detectors and segmentors of whole images; {cfg.filename} '
            'resizes otherwise: export without it'
        )
    steps = [s for s in pipeline_without_labels(cfg) if not step_name(s).startswith('Pack')]
    found: dict[str, Any] = dict(scale=None, keep_ratio=False, canvas=None, canvas_value=0.0)
    order = []
    for step in steps:
        name = step_name(step)
        order.append(name)
        if name == 'Resize' and step.get('scale') and _is_bilinear(step):
            scale = step['scale']
            found['scale'] = (scale, scale) if isinstance(scale, int) else tuple(scale)
            found['keep_ratio'] = bool(step.get('keep_ratio', False))
        elif name == 'Pad' and step.get('size') and scope == 'mmdet':
            found['canvas'] = tuple(step['size'])[::-1]
            found['canvas_value'] = _grey(step.get('pad_val', 0))
        elif name != 'LoadImageFromFile':
            _refuse(cfg, step)
    if order[1:] not in _ORDERS:
        _refuse(cfg, {'type': ', '.join(order)})
    node = preprocessor_of(cfg)
    mean, std = node.get('mean'), node.get('std')
    channels = channels_of(cfg)
    heights, widths = zip(*sizes)
    return Preprocessing(
        **found,
        reverse=bool(node.get('bgr_to_rgb') or node.get('rgb_to_bgr')) and channels == 3,
        mean=mean or [0.0] * channels,
        std=std or [1.0] * channels,
        divisor=divisor_of(cfg),
        least=(min(heights), min(widths)),
        value=node.get('pad_value', node.get('pad_val', 0)) or 0,
    )


_ORDERS: tuple[list[str], ...] = ([], ['Resize'], ['Pad'], ['Resize', 'Pad'])


def _is_bilinear(step: Mapping) -> bool:
    return (
        step.get('interpolation', 'bilinear') == 'bilinear' and step.get('backend', 'cv2') == 'cv2'
    )


def _grey(value: Any) -> float:
    """The value of a ``Pad``, of the channels alike."""
    if isinstance(value, Mapping):
        value = value.get('img', 0)
    values = {*value} if isinstance(value, (list, tuple)) else {value}
    if len(values) > 1:
        raise ValueError(f'Pad fills the channels with different values, {value}: export without')
    return float(values.pop())


def _refuse(cfg: Config, step: Mapping) -> None:
    raise ValueError(
        f'the test pipeline of {cfg.filename} has {dict(step)}, which cannot go into the file: '
        'export without --with-preprocessing'
    )


class _Graph:
    """Nodes that are added to a graph, with names of their own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; gives the name of its output."""
        from onnx import helper

        name = f'{self.prefix}{len(self.nodes)}'
        self.nodes.append(helper.make_node(operator, [*inputs], [name], **attributes))
        return name

    def constant(self, value: Any, dtype: type) -> str:
        """Add a constant; gives its name."""
        from onnx import numpy_helper

        name = f'{self.prefix}constant{len(self.constants)}'
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def int64(self, *values: int) -> str:
        """Add a constant of whole numbers."""
        return self.constant(values, np.int64)

    def part(self, name: str, start: int, end: int, axis: int = 0) -> str:
        """A slice of a tensor."""
        return self('Slice', name, self.int64(start), self.int64(end), self.int64(axis))


def add_preprocessing(
    path: Path, rule: Preprocessing, align_corners: bool = False
) -> dict[str, Any]:
    """Put pre-processing into an ONNX file, in place.

    Args:
        path: Of a file that takes ``image``, (B, C, H, W) float32. It will take ``pixels``,
            (B, H, W, C) bytes.
        rule: Of :func:`preprocessing_of`.
        align_corners: How the scores of a segmentor are resized.

    Returns:
        What was added to its metadata.

    Raises:
        ValueError: If its masks lie in the padded image.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    meta = json.loads(properties['mmlocalattn'])
    if meta.get('mask_frame') == 'image':
        raise ValueError(
            'its masks lie in the padded image, not in their boxes: export without '
            '--with-preprocessing'
        )
    graph = model.graph
    before, after = _Graph('before_'), _Graph('after_')
    image, size, resized = _before(before, rule)
    names = [output.name for output in graph.output]
    _rename(graph, {'image': image, **{name: f'inner_{name}' for name in names}})
    for name in names:
        if name == 'boxes':
            whole = _boxes_after(after, size, resized)
        elif name == 'masks':
            _masks_after(after, whole, graph.output[names.index(name)])
        elif 'boxes' in names:
            after('Identity', f'inner_{name}')
        else:
            _maps_after(after, name, size, resized, align_corners)
        after.nodes[-1].output[0] = name
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value or len(rule.mean)
    shape = ['batch', 'rows', 'columns', channels]
    pixels = helper.make_tensor_value_info('pixels', TensorProto.UINT8, shape)
    del graph.input[:]
    graph.input.append(pixels)
    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    if 'boxes' not in names:  # but maps as large as the image
        for dim, side in zip(graph.output[0].type.tensor_type.shape.dim[-2:], shape[1:3]):
            dim.dim_param = str(side)
    added = {'with_preprocessing': True, 'takes': 'pixels: uint8 (B, H, W, C), BGR'}
    helper.set_model_props(model, {**properties, 'mmlocalattn': json.dumps({**meta, **added})})
    onnx.save(model, path)
    return added


def _before(add: _Graph, rule: Preprocessing) -> tuple[str, str, str]:
    """From ``pixels`` to the names of the model's input, the image's size and the resized one."""
    size = add.part(add('Shape', 'pixels'), 1, 3)
    image = add('Cast', add('Transpose', 'pixels', perm=[0, 3, 1, 2]), to=1)
    resized = size
    if rule.scale is not None:
        resized = _resized(add, rule, size)
        image = add('Resize', image, '', '', _shape(add, image, resized), **_BILINEAR)
        image = add(
            'Clip', add('Round', image), add.constant(0, np.float32), add.constant(255, np.float32)
        )
    padded = resized
    if rule.canvas is not None:
        padded = add('Max', resized, add.int64(*rule.canvas))
        image = _pad(add, image, resized, padded, rule.canvas_value)
    if rule.reverse:
        image = add('Gather', image, add.int64(2, 1, 0), axis=1)
    for operator, values in (('Sub', rule.mean), ('Div', rule.std)):
        image = add(operator, image, add.constant(np.reshape(values, (1, -1, 1, 1)), np.float32))
    divisor = add.int64(rule.divisor, rule.divisor)
    wanted = add('Max', padded, add.int64(*rule.least))
    up = add('Add', wanted, add.int64(rule.divisor - 1, rule.divisor - 1))
    target = add('Mul', add('Div', up, divisor), divisor)
    return _pad(add, image, padded, target, rule.value), size, resized


_BILINEAR: dict[str, Any] = dict(mode='linear', coordinate_transformation_mode='half_pixel')


def _resized(add: _Graph, rule: Preprocessing, size: str) -> str:
    """The size (height, width) that the rule makes of one."""
    assert rule.scale is not None
    if not rule.keep_ratio:
        return add.int64(*rule.scale[::-1])
    sides = add('Cast', size, to=11)  # to double, as Python computes it
    factors = [
        add('Div', add.constant([limit], np.float64), add(extreme, sides, keepdims=1))
        for limit, extreme in ((max(rule.scale), 'ReduceMax'), (min(rule.scale), 'ReduceMin'))
    ]
    scaled = add('Mul', sides, add('Min', *factors))
    return add('Cast', add('Floor', add('Add', scaled, add.constant([0.5], np.float64))), to=7)


def _shape(add: _Graph, tensor: str, size: str) -> str:
    """The shape of a tensor with other last dimensions."""
    return add('Concat', add.part(add('Shape', tensor), 0, 2), size, axis=0)


def _pad(add: _Graph, image: str, size: str, target: str, value: float) -> str:
    zeros = add.int64(0, 0)
    pads = add('Concat', zeros, zeros, zeros, add('Sub', target, size), axis=0)
    return add('Pad', image, pads, add.constant(value, np.float32))


def _boxes_after(add: _Graph, size: str, resized: str) -> str:
    """From ``inner_boxes`` to ``boxes`` in the pixels of the image, clipped to it.

    Returns:
        The name of those that are not clipped.
    """
    order = add.int64(1, 0, 1, 0)  # width, height, width, height
    limits = add('Gather', add('Cast', size, to=1), order)
    factor = add('Div', add('Gather', add('Cast', resized, to=1), order), limits)
    whole = add('Div', 'inner_boxes', factor)
    add('Max', add('Min', whole, limits), add.constant(0, np.float32))
    return whole


def _masks_after(add: _Graph, whole: str, output: Any) -> None:
    """From ``inner_masks``, each over its whole box, to those over the clipped ``boxes``."""
    high, wide = (dim.dim_value for dim in output.type.tensor_type.shape.dim[2:])
    near, far = (add('Gather', whole, add.int64(x, y, x, y), axis=2) for x, y in ((0, 1), (2, 3)))
    side = add('Max', add('Sub', far, near), add.constant(1e-6, np.float32))
    cells = add.constant([wide, high, wide, high], np.float32)
    regions = add('Mul', add('Div', add('Sub', 'boxes', near), side), cells)
    masks = add('Reshape', 'inner_masks', add.int64(-1, 1, high, wide))
    number = add('Squeeze', add.part(add('Shape', masks), 0, 1), add.int64(0))
    indices = add('Range', add.constant(0, np.int64), number, add.constant(1, np.int64))
    parts = add(
        'RoiAlign',
        masks,
        add('Reshape', regions, add.int64(-1, 4)),
        indices,
        output_height=high,
        output_width=wide,
        sampling_ratio=1,
    )
    add('Reshape', parts, add('Shape', 'inner_masks'))


def _maps_after(add: _Graph, name: str, size: str, resized: str, align_corners: bool) -> None:
    """From the scores or labels of the padded image to those of the image."""
    axes = add.int64(*((2, 3) if name == 'scores' else (1, 2)))
    maps = add('Slice', f'inner_{name}', add.int64(0, 0), resized, axes)
    if name == 'labels':
        maps = add('Unsqueeze', add('Cast', maps, to=1), add.int64(1))
        maps = add('Resize', maps, '', '', _shape(add, maps, size), **_NEAREST)
        add('Cast', add('Squeeze', maps, add.int64(1)), to=7)
    else:
        how = 'align_corners' if align_corners else 'half_pixel'
        options = {**_BILINEAR, 'coordinate_transformation_mode': how}
        add('Resize', maps, '', '', _shape(add, maps, size), **options)


_NEAREST: dict[str, Any] = dict(
    mode='nearest', coordinate_transformation_mode='half_pixel', nearest_mode='round_prefer_floor'
)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename values of a graph, also where its inner graphs use them; outputs keep theirs."""
    for node in graph.node:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                values[index] = names.get(value, value)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
