"""Convert an official checkpoint to ours.

A converted classifier loads whole, and in detectors and segmentors with
``init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')`` on the backbone. A
converted detector or segmentor is complete: ``tools/test.py CONFIG DST``. Every name and shape is
checked against the model first; nothing is written unless all of them match.

A further release of classifiers needs a module in ``mmlocalattn/converters`` (``MARKS``,
``convert``, ``infer_arch``) and an entry in ``FAMILIES``.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmlocalattn import __version__
from mmlocalattn.backbones.nat import NAT, DiNAT
from mmlocalattn.backbones.qna_vit import QnAViT
from mmlocalattn.backbones.slide_transformer import SlideSwin
from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.converters import flax_tree, nat, qna_vit, slide_swin, ssvit
from mmlocalattn.heads.ssvit_neck import SSViTNeck
from mmlocalattn.training import allow_mmengine_checkpoints

CONFIGS = Path(__file__).parents[1] / 'configs'

Weights = Mapping[str, Tensor]


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('family', choices=list(FAMILIES), help='which official release')
    parser.add_argument('src', type=Path, help='official checkpoint')
    parser.add_argument('dst', type=Path, help='checkpoint to write')
    parser.add_argument(
        '--arch',
        help='of a classifier: name of an architecture or its dict as JSON; default: the one whose '
        'shapes match',
    )
    parser.add_argument(
        '--config',
        type=Path,
        help='of a detector or segmentor: configuration with the model; default: ours of the '
        'published one',
    )
    args = parser.parse_args(args)
    family = FAMILIES[args.family]
    try:
        weights = family.load(args.src)
        refuse_other_family(weights, args.family)
        state_dict, about = family.convert(weights, args)
        meta = {'source': args.src.name, **about, 'mmlocalattn_version': __version__}
        write({'state_dict': state_dict, 'meta': meta}, args.dst)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}\nNothing was written.') from error
    parts = ', '.join(sorted({name.partition('.')[0] for name in state_dict}))
    shown = ', '.join(f'{key} {value}' for key, value in about.items())
    print(f'{args.dst}: {args.family}, {shown}, {len(state_dict)} tensors in {parts}')


def load_state_dict(path: Path) -> Weights:
    """Read the weights of a checkpoint, bare or under ``model`` or ``state_dict``.

    Raises:
        ValueError: If the file holds more than tensors and plain values, or no weights.
    """
    allow_mmengine_checkpoints()  # mmcv's hold NumPy scalars, too
    try:
        # DeiT-style training scripts store their command line, a plain container, too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f'not a checkpoint that loads with weights_only=True: {error}') from error
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError("holds no weights, neither bare nor under 'model' or 'state_dict'")
    others = [str(name) for name, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f'holds values that are not tensors among its weights: {", ".join(others)}'
        )
    return dict(checkpoint)


def load_flax(path: Path) -> Weights:
    """Read the parameters of a Flax checkpoint, or of an ``.npz`` file whose names are their paths.

    Raises:
        ValueError: If the file is neither, or holds no parameters.
    """
    if path.suffix != '.npz':
        return flax_tree.parameters(flax_tree.read_msgpack(path.read_bytes()))
    try:
        with np.load(path) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        tree = flax_tree.unflatten(tensors)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f'not an .npz file of arrays: {error}') from error
    return flax_tree.parameters(tree)


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
    backbone: type[nn.Module]
    tail: Callable[[Weights, int], dict[str, nn.Module]]
    output_norm: bool = True
    infer_options: Callable[[Weights], dict] = lambda weights: {}
    load: Callable[[Path], Weights] = load_state_dict

    @property
    def marks(self) -> Set[str]:
        return self.converter.MARKS

    def convert(self, weights: Weights, args: argparse.Namespace) -> tuple[Weights, dict]:
        """Convert a classifier, or its backbone alone.

        Returns:
            Our weights and what to record about them.
        """
        if args.config is not None:
            raise ValueError(f'--config is for detectors and segmentors: {args.family} has --arch')
        arch, options = self.parse_arch(weights, args.arch), self.infer_options(weights)
        converted = self.converter.convert(weights)
        tail_names = ('neck.', 'head.', 'backbone.output_norms.')
        has_tail = any(name.startswith(tail_names) for name in converted)
        with torch.device('meta'):
            backbone = self.backbone(
                arch, out_indices=(3,), output_norm=self.output_norm and has_tail, **options
            )
            tail = self.tail(converted, backbone.out_channels[-1]) if has_tail else {}
            model = nn.ModuleDict({'backbone': backbone, **tail})
        check(converted, model.state_dict())
        return converted, {'arch': arch, **options}

    def parse_arch(self, weights: Weights, arch: str | None) -> str | dict:
        """The architecture that the user names, or the one that the weights show."""
        if arch is not None:
            try:
                return json.loads(arch) if arch.lstrip().startswith('{') else arch
            except json.JSONDecodeError as error:
                raise ValueError(f'--arch is not valid JSON: {error}') from error
        if (name := self.find_arch(weights)) is not None:
            return name
        others = [
            other
            for other, family in FAMILIES.items()
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
        convert_names: The released weights to ours.
        find_configs: Names of the configurations whose model may have the released weights.
        load: Reads the released file.
    """

    marks: Set[str]
    convert_names: Callable[[Weights], Weights]
    find_configs: Callable[[Weights], list[str]]
    load: Callable[[Path], Weights] = load_state_dict

    def convert(self, weights: Weights, args: argparse.Namespace) -> tuple[Weights, dict]:
        """Convert a model with its neck and heads.

        Returns:
            Our weights and what to record about them.
        """
        if args.arch is not None:
            raise ValueError(f'--arch is for classifiers: {args.family} has --config')
        configs = [args.config]
        if args.config is None:
            names = self.find_configs(weights)
            configs = [path for name in names if (path := CONFIGS / name).is_file()]
            if not configs:
                raise ValueError(f'no published model has these weights, {names=}: pass --config')
        config = Config.fromfile(configs[0])
        with DefaultScope.overwrite_default_scope(config.default_scope), torch.device('meta'):
            model = MODELS.build(config.model)
        converted = self.convert_names(weights)
        check(converted, model.state_dict())
        return converted, {'config': ' or '.join(path.name for path in configs)}


def refuse_other_family(weights: Weights, name: str) -> None:
    """Raise a ValueError if the weights have the marks of other families only."""
    looks_like = [other for other, family in FAMILIES.items() if family.marks <= weights.keys()]
    if looks_like and name not in looks_like:
        raise ValueError(f'not a checkpoint of {name}: it looks like {" or ".join(looks_like)}')


def ssvit_tail(weights: Weights, channels: int) -> dict[str, nn.Module]:
    width = len(weights.get('neck.proj.bias', range(1024)))
    return {'neck': SSViTNeck(channels, width), **linear_tail(weights, width)}


def linear_tail(weights: Weights, channels: int) -> dict[str, nn.Module]:
    num_classes = len(weights.get('head.fc.bias', range(1000)))
    return {'head': nn.ModuleDict({'fc': nn.Linear(channels, num_classes)})}


def nat_detectors(weights: Weights) -> list[str]:
    is_cascade = 'roi_head.bbox_head.0.fc_cls.weight' in weights
    method = 'cascade_maskrcnn' if is_cascade else 'maskrcnn'
    return [f'{method}_{backbone}_3x_coco.py' for backbone in nat_backbones(weights)]


def nat_segmentors(weights: Weights) -> list[str]:
    return [f'upernet_{backbone}_160k_ade20k.py' for backbone in nat_backbones(weights)]


def nat_backbones(weights: Weights) -> list[str]:
    """By the names of the configurations. Most sizes of NAT and DiNAT have the same shapes."""
    alone = nat.backbone_of(weights)
    archs = {family: FAMILIES[family].find_arch(alone) for family in ('nat', 'dinat')}
    return [f'{family}_{arch[0]}' for family, arch in archs.items() if arch is not None]


def check(state_dict: Weights, expected: Weights) -> None:
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


def write(checkpoint: dict, path: Path) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with partial.open('wb') as file:  # given a path, every record would carry its name
            torch.save(checkpoint, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


FAMILIES = {
    'ssvit': Classifiers(ssvit, SSViT, ssvit_tail, output_norm=False),
    'slide_swin': Classifiers(
        slide_swin, SlideSwin, linear_tail, infer_options=slide_swin.infer_options
    ),
    'nat': Classifiers(nat, NAT, linear_tail, infer_options=nat.infer_options),
    'dinat': Classifiers(nat, DiNAT, linear_tail, infer_options=nat.infer_options),
    'qna_vit': Classifiers(qna_vit, QnAViT, linear_tail, load=load_flax),
    'nat_det': WholeModels(nat.DETECTOR_MARKS, nat.convert_whole, nat_detectors),
    'nat_seg': WholeModels(nat.SEGMENTOR_MARKS, nat.convert_whole, nat_segmentors),
}

if __name__ == '__main__':
    main()
