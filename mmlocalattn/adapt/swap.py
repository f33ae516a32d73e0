"""Put a backbone of this package into any detection, segmentation or classification config.

:func:`swap_backbone` replaces the backbone of a config for mmdet, mmseg or mmpretrain, and of those
for mmpose, mmrotate and mmdet3d that build on images, and fits what depends on it. What a stock
config expects of its backbone is not guessed from names: the old backbone is built and run once on
a small image, and so are the necks, old and new.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmlocalattn.adapt.nodes import channels_of, dicts, preprocessor_of
from mmlocalattn.adapt.optimizer import fit_layer_decay, fit_optimizer
from mmlocalattn.adapt.type_names import with_type_names
from mmlocalattn.adapt.zoo import BACKBONES

_IMAGE_SIDE = 256  # of the image that backbones are run on: 8 positions a side at stride 32
_NOT_OF_THE_SHAPE = ('init_cfg', 'pretrained', 'dcn')  # and deformable convolutions need data
_STRIDES = (4, 8, 16, 32)
_LAST_STRIDES = (16, 32)  # of the last map of a backbone, dilated or not
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

_SINGLE_SCALE = ('VisionTransformer', 'BEiT', 'MAE')
_REACHES_INTO_BACKBONE = {
    'RFP': 'its neck RFP runs a second backbone that takes the output of the first',
    'ResLayer': 'its RoI head continues the backbone with a stage of ResNet (shared_head)',
    'TridentRoIHead': 'TridentNet has weights shared by three branches of its backbone',
    'DDRHead': 'its DDRHead takes the two maps that DDRNet returns in training',
    'PIDHead': 'its PIDHead takes the three maps that PIDNet returns in training',
    'TridentFasterRCNN': 'TridentNet has weights shared by three branches of its backbone',
}


class CannotAdapt(ValueError):
    """A config whose backbone cannot be replaced; the message says why."""


def swap_backbone(
    cfg: Config, name: str | Mapping, keep_optimizer: bool = False, **backbone_options: Any
) -> Config:
    """Replace the backbone of a config and fit what depends on it.

    Fitted are the channels that necks and heads expect, ``out_indices``, and for a backbone of this
    package the normalisation of images of three channels, and, unless ``keep_optimizer``, the
    optimizer: one that is not AdamW becomes AdamW with the learning rate of the package's own
    configs (not for SASA, a ResNet). Options of the old backbone (weights to load, frozen stages,
    ...) go with it, but for ``in_channels``.

    Args:
        cfg: Of mmdet, mmseg or mmpretrain (``default_scope``), which says the task; another scope,
            mmpose, mmrotate or mmdet3d, means detection. Not changed.
        name: A key of :data:`~mmlocalattn.adapt.zoo.BACKBONES`, or the config of any backbone that
            returns a pyramid of maps: a dict with ``type``. Its ``out_indices`` are found if it
            does not name them.
        keep_optimizer: Leave ``optim_wrapper`` as it is.
        backbone_options: More arguments of the backbone, ``arch`` among them.

    Returns:
        A new config.

    Raises:
        ValueError: If there is no backbone of this name.
        CannotAdapt: If the config has no backbone, several, one that is no pyramid, or a part that
            reaches into its backbone; or if the new one does not give the maps of the old one.
    """
    if isinstance(name, Mapping) and 'type' not in name:
        raise ValueError(f'the config of a backbone needs its type, got {dict(name)}')
    if isinstance(name, str) and name not in BACKBONES:
        raise ValueError(f'backbone must be one of {list(BACKBONES)}, got {name!r}')
    entry = BACKBONES[name] if isinstance(name, str) else None
    cfg = copy.deepcopy(with_type_names(cfg))
    model = _owner_of_backbone(cfg.get('model') or {})
    scope = cfg.get('default_scope') or 'mmengine'
    init_default_scope(scope)
    channels = model['backbone'].get('in_channels') or channels_of(cfg)
    old = _run(model['backbone'], channels)
    _refuse_one_scale(model['backbone']['type'], old)
    if 'OCRHead' in _types(model) and len(set(_strides(old))) < len(old):
        raise CannotAdapt('its OCRHead takes two maps of one size, from a dilated backbone')
    all_stages, neck = _matching_stages(old), copy.deepcopy(model.get('neck'))
    skipped = _skip_unused_maps(model, len(old))
    stages = all_stages[skipped:]
    if isinstance(name, Mapping):
        backbone = {**name, **backbone_options}
    else:
        backbone = {
            **BACKBONES[name].backbone(scope),
            **backbone_options,
            'out_indices': stages,
        }
    if channels != 3:
        backbone['in_channels'] = channels
    try:
        model['backbone'], new = _with_maps_of(backbone, stages, channels)
    except CannotAdapt as error:
        if not skipped:
            raise
        try:  # with those that the neck skips: not every backbone can leave maps out
            model['backbone'], new = _with_maps_of(backbone, all_stages, channels)
        except CannotAdapt:
            raise error from None
        model['neck'], skipped = neck, 0
    _fit_channels(model, old[skipped:], new)
    model.pop('pretrained', None)
    if entry is not None and channels == 3:  # there are no usual statistics of others
        _fit_preprocessor(cfg._cfg_dict, 'to_rgb' if scope == 'mmpretrain' else 'bgr_to_rgb')
    if entry is not None and not keep_optimizer:
        fit_optimizer(cfg, entry)
    fit_layer_decay(cfg)
    if cfg.get('load_from'):  # weights of the model with its old backbone
        cfg.load_from = None
    return cfg


def describe_changes(old: Config, new: Config) -> list[str]:
    """The difference of two configs as lines ``- key: value`` and ``+ key: value``."""
    before, after = dict(_flatten(old.to_dict())), dict(_flatten(new.to_dict()))
    lines = []
    for key in sorted({*before, *after}):
        if before.get(key, ...) == after.get(key, ...):
            continue
        lines += [f'- {key}: {before[key]!r}'] if key in before else []
        lines += [f'+ {key}: {after[key]!r}'] if key in after else []
    return lines


def _flatten(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flatten(value, f'{path}.{key}' if path else str(key))
    elif isinstance(node, (list, tuple)) and any(isinstance(item, Mapping) for item in node):
        for index, value in enumerate(node):
            yield from _flatten(value, f'{path}[{index}]')
    else:
        yield path, list(node) if isinstance(node, tuple) else node


def _owner_of_backbone(model: Mapping) -> dict:
    """The dict in ``model``, often itself, whose entry ``backbone`` is to be replaced."""
    owners = list(_owners(model))
    if not owners:
        raise CannotAdapt(f'the model ({model.get("type")}) has no backbone in its config')
    if len(owners) > 1:
        names = ', '.join(f'{key}={owner[key]["type"]}' for owner, key in owners)
        raise CannotAdapt(f'the model has more than one backbone: {names}')
    for name in _types(model):
        if name in _REACHES_INTO_BACKBONE:
            raise CannotAdapt(_REACHES_INTO_BACKBONE[name])
    owner, key = owners[0]
    if key != 'backbone':  # mmdet3d's pts_backbone and the like
        raise CannotAdapt(f'its only backbone is the {key} {owner[key]["type"]}')
    if preprocessor_of({'model': model}).get('voxel'):
        raise CannotAdapt(f'its backbone {owner[key]["type"]} takes maps of points, not images')
    return owner


def _refuse_one_scale(backbone: str, maps: Sequence[Tensor]) -> None:
    """Raise a CannotAdapt if a backbone that has one map is not one that ends with it."""
    if len(maps) > 1:
        return
    if backbone.rpartition('.')[2] in _SINGLE_SCALE:
        raise CannotAdapt(f'its backbone {backbone} has maps of one scale alone')
    if _strides(maps)[0] < _LAST_STRIDES[0]:  # HRNet: the first stage of a pyramid is no match
        raise CannotAdapt(
            f'its backbone {backbone} has one map alone, of stride {_strides(maps)[0]}: '
            'of a pyramid only the first stages would be left'
        )


def _owners(node: Any) -> Iterator[tuple[dict, str]]:
    """Every dict that has a backbone, with the key of it."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key.endswith('backbone') and isinstance(value, dict) and 'type' in value:
                yield node, key
            else:
                yield from _owners(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _owners(value)


def _types(node: Any) -> Iterator[str]:
    """All ``type`` entries without their scope."""
    for part in dicts(node):
        if isinstance(part.get('type'), str):
            yield part['type'].rpartition('.')[2]


def _run(backbone: Mapping, channels: int) -> list[Tensor]:
    """The maps of a backbone for a small image.

    Raises:
        CannotAdapt: If it cannot be built or run, or does not return maps.
    """
    config = {key: value for key, value in backbone.items() if key not in _NOT_OF_THE_SHAPE}
    maps = _run_module(config, torch.zeros(1, channels, _IMAGE_SIDE, _IMAGE_SIDE))
    if not all(isinstance(map, Tensor) and map.dim() == 4 for map in maps):
        raise CannotAdapt(f'its backbone {backbone["type"]} does not return feature maps')
    return maps


def _run_module(config: Mapping, inputs: Tensor | tuple[Tensor, ...]) -> list[Any]:
    """What a module makes of its inputs: without data where its operators allow that.

    Raises:
        CannotAdapt: If it cannot be built or run.
    """
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device), torch.no_grad():
                module = MODELS.build(copy.deepcopy(dict(config)))
                module.eval()  # of some returns None
                outputs = module(_on(inputs, device))
        except Exception as reason:
            error = reason
        else:
            return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    raise CannotAdapt(f'its {config["type"]} does not run alone: {error}') from error


def _on(inputs: Tensor | tuple[Tensor, ...], device: str) -> Tensor | tuple[Tensor, ...]:
    """Zeros of the shapes of the inputs."""
    if isinstance(inputs, Tensor):
        return torch.zeros(inputs.shape, device=device)
    return tuple(torch.zeros(map.shape, device=device) for map in inputs)


def _strides(maps: Sequence[Tensor]) -> list[int]:
    return [_IMAGE_SIDE // map.shape[-1] for map in maps]


def _matching_stages(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """The stages of ours that stand for the maps of the old backbone.

    A map of stride 4, 8, 16 or 32 becomes that of the same stride. A dilated backbone, as
    segmentors have them, has four maps of which the last ones share a stride; they become the four
    stages.

    Raises:
        CannotAdapt: If the maps are no pyramid.
    """
    strides = _strides(maps)
    if strides == sorted(set(strides)) and set(strides) <= set(_STRIDES):
        return tuple(_STRIDES.index(stride) for stride in strides)
    if len(strides) == 4 and strides[0] == 4 and strides == sorted(strides):
        return (0, 1, 2, 3)
    raise CannotAdapt(f'its backbone is no pyramid: its maps have strides {strides}')


def _with_maps_of(
    backbone: dict, stages: tuple[int, ...], channels: int
) -> tuple[dict, list[Tensor]]:
    """A backbone with the ``out_indices`` for these stages, and its maps.

    If it does not name them, tried are the numbers of the stages, those behind an output of the
    stem, as timm counts, and what the backbone does by itself.

    Raises:
        CannotAdapt: If no choice gives maps of the strides.
    """
    wanted = [_STRIDES[stage] for stage in stages]
    choices: list[dict] = [{}]
    if 'out_indices' not in backbone:
        behind_stem = tuple(stage + 1 for stage in stages)
        choices = [dict(out_indices=stages), dict(out_indices=behind_stem), {}]
    reasons = []
    for choice in choices:
        try:
            maps = _run({**backbone, **choice}, channels)
        except CannotAdapt as error:
            reasons.append(str(error))
            continue
        if _strides(maps) == wanted:
            return {**backbone, **choice}, maps
        reasons.append(f'{choice or "as it is"}: its maps have strides {_strides(maps)}')
    raise CannotAdapt(
        f'{backbone["type"]} gives no maps of the strides {wanted}; '
        + '; '.join(dict.fromkeys(reasons))
    )


def _skip_unused_maps(model: dict, num_maps: int) -> int:
    """Let a neck that starts behind the first maps, as RetinaNet's, start with its first one.

    A map that nobody takes would leave its output norm without a gradient, which
    DistributedDataParallel rejects.

    Returns:
        The number of maps that the backbone need not return.
    """
    neck = model.get('neck')
    neck = neck[0] if isinstance(neck, (list, tuple)) else neck or {}
    start, channels = neck.get('start_level', 0), neck.get('in_channels')
    if start <= 0 or not isinstance(channels, (list, tuple)) or len(channels) != num_maps:
        return 0
    neck['in_channels'], neck['start_level'] = channels[start:], 0
    if neck.get('end_level', -1) > 0:
        neck['end_level'] -= start
    return start


def _fit_channels(model: dict, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Change the channels that the parts behind the backbone expect.

    Args:
        model: The dict that holds backbone, neck and heads. Changed in place.
        old: Maps of the old backbone.
        new: Maps of the new one.
    """
    neck = model.get('neck')
    for part in neck if isinstance(neck, (list, tuple)) else [neck] if neck else []:
        before = copy.deepcopy(part)
        _fit_part(part, _channels(old), _channels(new))
        old, new = _run_module(before, tuple(old)), _run_module(part, tuple(new))
    for key, part in model.items():
        if key not in ('backbone', 'neck'):
            _fit_heads(part, _channels(old), _channels(new))


def _channels(maps: Sequence[Tensor]) -> list[int]:
    return [map.shape[1] for map in maps]


def _fit_part(part: dict, old: list[int], new: list[int]) -> None:
    """Change ``in_channels`` of a part that takes all maps, or the last one."""
    expected = part.get('in_channels')
    if expected is None or old == new:
        return
    if isinstance(expected, int) and expected == old[-1]:
        part['in_channels'] = new[-1]
    elif isinstance(expected, int) or sorted(expected) != sorted(old):
        raise CannotAdapt(
            f'its {part["type"]} has in_channels={expected}, but gets maps of {old} channels'
        )
    else:
        is_reversed = list(expected) != old
        part['in_channels'] = type(expected)(new[::-1] if is_reversed else new)


def _fit_heads(node: Any, old: list[int], new: list[int]) -> None:
    """Change the channels of the inputs of heads, which name the maps they take by ``in_index``."""
    if isinstance(node, (list, tuple)):
        for child in node:
            _fit_heads(child, old, new)
    if not isinstance(node, dict) or old == new:
        return
    expected, index = node.get('in_channels'), node.get('in_index', -1)
    if isinstance(expected, int) and isinstance(index, int) and expected == old[index]:
        node['in_channels'] = new[index]
        groups = (node.get('deconv_num_groups') or [1])[0]
        if new[index] % groups:  # ViPNAS, whose groups are the channels of its own backbone
            raise CannotAdapt(
                f'its {node["type"]} deconvolves in {groups} groups, which {new[index]} channels '
                'do not divide into'
            )
        halves = [new[-1] / 2, new[-1]]
        if node['type'] in ('RTMWHead', 'mmpose.RTMWHead') and new[-2:] != halves:
            raise CannotAdapt(
                f'its {node["type"]} joins the last two maps, of which the last must have twice '
                f'the channels, and gets maps of {new[-2:]}'
            )
    elif isinstance(expected, (list, tuple)):
        indices = list(range(len(old))) if isinstance(index, int) else list(index)
        if list(expected) == [old[i] for i in indices]:
            node['in_channels'] = type(expected)(new[i] for i in indices)
    if node.get('c1_in_channels') == old[0]:  # DeepLabv3+: the map of the highest resolution
        node['c1_in_channels'] = new[0]
    for key, child in node.items():
        if key == 'bbox_roi_extractor' and child.get('out_channels') == old[-1]:
            child['out_channels'] = new[-1]
        _fit_heads(child, old, new)


def _fit_preprocessor(node: Any, to_rgb: str) -> None:
    """Normalise images as the package's backbones are trained: RGB with ImageNet's statistics.

    Args:
        node: A config or a part of it. Changed in place.
        to_rgb: The key by which the toolbox swaps the channels of its BGR images.
    """
    for part in dicts(node):
        child = part.get('data_preprocessor')
        if isinstance(child, dict) and 'data_preprocessor' not in child:
            child.pop('rgb_to_bgr', None)
            child.update({'mean': list(_MEAN), 'std': list(_STD), to_rgb: True})
