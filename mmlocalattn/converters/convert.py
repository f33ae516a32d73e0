"""Converting an official checkpoint to ours.

A converted classifier loads whole, and in detectors and segmentors with
``init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')`` on the backbone. A
converted detector or segmentor is complete: ``tools/test.py CONFIG DST``.

A further release of classifiers needs a module beside this one (``MARKS``, ``convert``,
``infer_arch``), an entry in :data:`FAMILIES`, and its name in
:mod:`~mmlocalattn.converters.families`.
"""

import argparse
import zipfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmlocalattn import __version__
from mmlocalattn.backbones.nat import NAT, DiNAT
from mmlocalattn.backbones.qna_vit import QnAViT
from mmlocalattn.backbones.slide_transformer import SlideSwin
from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.converters import flax_tree, mask2former, nat, qna_vit, slide_swin, ssvit
from mmlocalattn.converters.marks import families_of
from mmlocalattn.files import check_file
from mmlocalattn.heads.ssvit_neck import SSViTNeck
from mmlocalattn.training import find_config, load_config, read_checkpoint, save_checkpoint
from mmlocalattn.untrusted import check_archive, check_weights

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """A model by our names.

    Attributes:
        weights: Of the model.
        about: What is known about them: ``arch`` and other arguments of the backbone, or the name
            of the ``config``.
    """

    weights: Weights
    about: dict[str, Any]

    @property
    def parts(self) -> list[str]:
        """What the weights are of: ``['backbone', 'head']``."""
        return sorted({name.partition('.')[0] for name in self.weights})


def convert_checkpoint(
    family: str,
    src: str | Path,
    dst: str | Path,
    arch: str | dict | None = None,
    config: str | Path | None = None,
) -> Converted:
    """Convert an official checkpoint; nothing is written unless all names and shapes match.

    Args:
        family: Which official release, a key of :data:`FAMILIES`.
        src: The official checkpoint.
        dst: Checkpoint to write, with the weights as ``state_dict``.
        arch: Of a classifier, a name or a dict; default the one whose shapes match.
        config: Of a detector or segmentor, with the model; default ours of the published one.

    Returns:
        What was written.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If there is no such family, ``src`` is not of it or does not match the model;
            lists every difference.
    """
    check_file(dst)
    converted = convert_file(family, src, arch, config)
    save_converted(converted, Path(src).name, dst)
    return converted


def save_converted(converted: Converted, source: str, dst: str | Path) -> None:
    """Write a converted model as a checkpoint that says where it is from."""
    meta = {'source': source, **converted.about, 'mmlocalattn_version': __version__}
    save_checkpoint({'state_dict': converted.weights, 'meta': meta}, Path(dst))


def convert_file(
    family: str,
    src: str | Path,
    arch: str | dict | None = None,
    config: str | Path | None = None,
) -> Converted:
    """Read an official checkpoint as :func:`convert_checkpoint` does, and write nothing."""
    if family not in FAMILIES:
        raise ValueError(f'family must be one of {", ".join(FAMILIES)}, got {family!r}')
    release, src = FAMILIES[family], Path(src)
    if isinstance(release, Classifiers) and config is not None:
        raise ValueError(f'--config is for detectors and segmentors: {family} has --arch')
    if isinstance(release, WholeModels) and arch is not None:
        raise ValueError(f'--arch is for classifiers: {family} has --config')
    weights = release.load(src)
    try:
        _refuse_other_family(weights, family)
        if isinstance(release, Classifiers):
            return release.convert(weights, arch)
        return release.convert(weights, config)
    except ValueError as error:
        raise ValueError(f'{src}: {error}') from error


def load_state_dict(path: Path) -> Weights:
    """Read the weights of a checkpoint, bare or under ``model`` or ``state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds more than tensors and plain values, or no weights.
    """
    # DeiT-style training scripts store their command line, a plain container, too.
    checkpoint = read_checkpoint(path, also=[argparse.Namespace])
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not checkpoint:
        raise ValueError(
            f"{str(path)!r} holds no weights, neither bare nor under 'model' or 'state_dict'"
        )
    check_weights(checkpoint, path)
    others = [str(name) for name, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f'{str(path)!r} holds values that are not tensors among its weights: '
            + ', '.join(others)
        )
    return dict(checkpoint)


def load_flax(path: Path) -> Weights:
    """Read the parameters of a Flax checkpoint, or of an ``.npz`` file whose names are their paths.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is neither, or holds no parameters.
    """
    try:
        tree = (
            _read_npz(path)
            if path.suffix == '.npz' or zipfile.is_zipfile(path)
            else flax_tree.read_msgpack(path.read_bytes())
        )
        return flax_tree.parameters(tree)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def _read_npz(path: Path) -> dict:
    check_archive(path)
    try:
        with np.load(path) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return flax_tree.unflatten(tensors)
    except OSError:
        raise
    except Exception as error:  # NumPy and zipfile have several
        raise ValueError(f'not an .npz file of arrays: {error}') from error


@dataclass(frozen=True)
class Classifiers:
    """A release of classifiers.

    Attributes:
        converter: Module with ``MARKS`` (names that are in every checkpoint of the release and in
            none of another), ``convert`` (the released weights to ours) and ``infer_arch`` (the
            keys of ``arch`` that the released weights show).
        backbone: Class whose ``arch_settings`` the release has.
        tail: From our weights and the channels of the last map to what follows the backbone, as
            parts of mmpretrain's ``ImageClassifier``.
        output_norm: Whether the last norm of the release is the output norm of our backbone.
        infer_options: Arguments of the backbone beside ``arch`` that the released weights show.
        load: Reads the released file.
    """

    converter: ModuleType
    backbone: type[SSViT | SlideSwin | NAT | QnAViT]
    tail: Callable[[Weights, int], dict[str, nn.Module]]
    output_norm: bool = True
    infer_options: Callable[[Weights], dict] = lambda weights: {}
    load: Callable[[Path], Weights] = load_state_dict

    @property
    def marks(self) -> Set[str]:
        """Names by which a checkpoint of the release is known."""
        return self.converter.MARKS

    def convert(self, weights: Weights, arch: str | dict | None = None) -> Converted:
        """Convert a classifier, or its backbone alone."""
        arch = self.choose_arch(weights) if arch is None else arch
        options = self.infer_options(weights)
        converted = self.converter.convert(weights)
        tail_names = ('neck.', 'head.', 'backbone.output_norms.')
        has_tail = any(name.startswith(tail_names) for name in converted)
        with torch.device('meta'):
            backbone: Any = self.backbone(
                arch, out_indices=(3,), output_norm=self.output_norm and has_tail, **options
            )
            tail = self.tail(converted, backbone.out_channels[-1]) if has_tail else {}
            model = nn.ModuleDict({'backbone': backbone, **tail})
        check_names(converted, model.state_dict())
        return Converted(converted, {'arch': arch, **options})

    def choose_arch(self, weights: Weights) -> str:
        """The architecture that the weights show.

        Raises:
            ValueError: If none of ``arch_settings`` has their shapes.
        """
        if (name := self.find_arch(weights)) is not None:
            return name
        others = [
            other
            for other, family in _CLASSIFIERS.items()
            if family.marks == self.marks and family.find_arch(weights) is not None
        ]
        raise ValueError(
            f'no architecture of {list(self.backbone.arch_settings)} has '
            f'{self.converter.infer_arch(weights)}: '
            + (f'it looks like {" or ".join(others)}' if others else 'pass --arch')
        )

    def find_arch(self, weights: Weights) -> str | None:
        """The name in ``arch_settings`` of what the weights show."""
        found = self.converter.infer_arch(weights)
        for name, settings in self.backbone.arch_settings.items():
            if all(settings[key] == value for key, value in found.items()):
                return name
        return None


@dataclass(frozen=True)
class WholeModels:
    """A release of detectors or segmentors that configurations of ours describe.

    Attributes:
        marks: Names that are in every checkpoint of the release and in none of another.
        convert_names: The released weights to ours, of a model of this config.
        find_configs: Names of the configurations whose model may have the released weights.
        load: Reads the released file.
    """

    marks: Set[str]
    convert_names: Callable[[Weights, Mapping], Weights]
    find_configs: Callable[[Weights], list[str]]
    load: Callable[[Path], Weights] = load_state_dict

    def convert(self, weights: Weights, config: str | Path | None = None) -> Converted:
        """Convert a model with its neck and heads."""
        configs = [str(config)] if config is not None else self.published_configs(weights)
        cfg = load_config(configs[0])
        with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
            model = MODELS.build(cfg.model)
        converted = self.convert_names(weights, cfg.model)
        check_names(converted, model.state_dict())
        names = [path.rpartition('::')[2].rpartition('/')[2] for path in configs]
        return Converted(converted, {'config': ' or '.join(names)})

    def published_configs(self, weights: Weights) -> list[str]:
        """Those of ours whose model may have the released weights.

        Raises:
            ValueError: If there is none.
        """
        names = self.find_configs(weights)
        if found := [f'mmlocalattn::{name}' for name in names if _is_shipped(name)]:
            return found
        raise ValueError(f'no published model has these weights, {names=}: pass --config')


def _is_shipped(name: str) -> bool:
    try:
        return find_config(f'mmlocalattn::{name}').is_file()
    except FileNotFoundError:
        return False


def _refuse_other_family(weights: Weights, name: str) -> None:
    """Raise a ValueError if the weights are ours, or have the marks of other families only."""
    if any(weight.startswith('backbone.stages.') for weight in weights):
        raise ValueError('its weights have our names: it needs no conversion')
    looks_like = families_of(weights)
    if looks_like and name not in looks_like:
        raise ValueError(f'not a checkpoint of {name}: it looks like {" or ".join(looks_like)}')


def _ssvit_tail(weights: Weights, channels: int) -> dict[str, nn.Module]:
    width = len(weights.get('neck.proj.bias', range(1024)))
    return {'neck': SSViTNeck(channels, width), **_linear_tail(weights, width)}


def _linear_tail(weights: Weights, channels: int) -> dict[str, nn.Module]:
    num_classes = len(weights.get('head.fc.bias', range(1000)))
    return {'head': nn.ModuleDict({'fc': nn.Linear(channels, num_classes)})}


def _nat_whole(weights: Weights, model: Mapping) -> Weights:
    return nat.convert_whole(weights)


def _nat_detectors(weights: Weights) -> list[str]:
    is_cascade = 'roi_head.bbox_head.0.fc_cls.weight' in weights
    method = 'cascade_maskrcnn' if is_cascade else 'maskrcnn'
    return [f'{method}_{backbone}_3x_coco.py' for backbone in _nat_backbones(weights)]


def _nat_segmentors(weights: Weights) -> list[str]:
    return [f'upernet_{backbone}_160k_ade20k.py' for backbone in _nat_backbones(weights)]


def _nat_backbones(weights: Weights) -> list[str]:
    """By the names of the configurations. Most sizes of NAT and DiNAT have the same shapes."""
    alone = nat.backbone_of(weights)
    archs = {name: _CLASSIFIERS[name].find_arch(alone) for name in ('nat', 'dinat')}
    return [f'{family}_{arch[0]}' for family, arch in archs.items() if arch is not None]


def check_names(state_dict: Weights, expected: Weights) -> None:
    """Compare names and shapes.

    Raises:
        ValueError: If they differ; lists every difference.
    """
    problems = [
        f'missing     {name} {tuple(expected[name].shape)}'
        for name in expected
        if name not in state_dict
    ]
    for name, tensor in state_dict.items():
        if name not in expected:
            problems.append(f'unexpected  {name} {tuple(tensor.shape)}')
        elif tensor.shape != expected[name].shape:
            problems.append(
                f'shape       {name} {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}'
            )
    if problems:
        raise ValueError('\n  '.join(['does not match the model, by our names:', *problems]))


_CLASSIFIERS = {
    'ssvit': Classifiers(ssvit, SSViT, _ssvit_tail, output_norm=False),
    'slide_swin': Classifiers(
        slide_swin, SlideSwin, _linear_tail, infer_options=slide_swin.infer_options
    ),
    'nat': Classifiers(nat, NAT, _linear_tail, infer_options=nat.infer_options),
    'dinat': Classifiers(nat, DiNAT, _linear_tail, infer_options=nat.infer_options),
    'qna_vit': Classifiers(qna_vit, QnAViT, _linear_tail, load=load_flax),
}
FAMILIES: dict[str, Classifiers | WholeModels] = {
    **_CLASSIFIERS,
    'nat_det': WholeModels(nat.DETECTOR_MARKS, _nat_whole, _nat_detectors),
    'nat_seg': WholeModels(nat.SEGMENTOR_MARKS, _nat_whole, _nat_segmentors),
    'dinat_mask2former': WholeModels(
        mask2former.MARKS,
        mask2former.convert,
        lambda weights: mask2former.find_configs(weights, _nat_backbones(weights)),
    ),
}
"""The official releases, by the names that :func:`convert_checkpoint` takes."""
