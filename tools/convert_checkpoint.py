"""Convert an official checkpoint to ours.

The result loads whole in classifiers, and in detectors and segmentors with
``init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')`` on the backbone. Every name
and shape is checked against the model first; nothing is written unless all of them match.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmlocalattn import __version__
from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.converters import ssvit
from mmlocalattn.heads.ssvit_neck import SSViTNeck


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('family', choices=list(FAMILIES), help='which official release')
    parser.add_argument('src', type=Path, help='official checkpoint')
    parser.add_argument('dst', type=Path, help='checkpoint to write')
    parser.add_argument(
        '--arch',
        help='name of an architecture or its dict as JSON; default: the one whose shapes match',
    )
    args = parser.parse_args(args)
    try:
        state_dict, meta = FAMILIES[args.family](load_state_dict(args.src), args.arch)
        write({'state_dict': state_dict, 'meta': {'source': args.src.name, **meta}}, args.dst)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{args.src}: {error}\nNothing was written.') from error
    parts = ', '.join(sorted({name.partition('.')[0] for name in state_dict}))
    print(f'{args.dst}: {args.family} {meta["arch"]}, {len(state_dict)} tensors in {parts}')


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, bare or under ``model`` or ``state_dict``.

    Raises:
        ValueError: If the file holds more than tensors and plain values, or no weights.
    """
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


def convert_ssvit(
    state_dict: Mapping[str, Tensor], arch: str | None
) -> tuple[dict[str, Tensor], dict]:
    """Convert an SSViT classifier, or its backbone alone.

    Returns:
        The weights and what to record about them.
    """
    architecture = ssvit_arch(state_dict, arch)
    converted = ssvit.convert(state_dict)
    with torch.device('meta'):
        backbone = SSViT(architecture, out_indices=(3,), output_norm=False)
        model = nn.ModuleDict({'backbone': backbone})
        if any(name.startswith(('neck.', 'head.')) for name in converted):
            width = len(converted.get('neck.proj.bias', range(1024)))
            num_classes = len(converted.get('head.fc.bias', range(1000)))
            model['neck'] = SSViTNeck(backbone.out_channels[-1], width)
            model['head'] = nn.ModuleDict({'fc': nn.Linear(width, num_classes)})
    check(converted, model.state_dict())
    return converted, {'arch': architecture, 'mmlocalattn_version': __version__}


def ssvit_arch(state_dict: Mapping[str, Tensor], arch: str | None) -> str | dict:
    """The architecture that the user names, or the one with the checkpoint's widths and depths."""
    if arch is not None:
        try:
            return json.loads(arch) if arch.lstrip().startswith('{') else arch
        except json.JSONDecodeError as error:
            raise ValueError(f'--arch is not valid JSON: {error}') from error
    found = ssvit.infer_arch(state_dict)
    for name, settings in SSViT.arch_settings.items():
        if all(settings[key] == value for key, value in found.items()):
            return name
    raise ValueError(f'no architecture of {list(SSViT.arch_settings)} has {found}: pass --arch')


def check(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
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
        torch.save(checkpoint, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


FAMILIES = {'ssvit': convert_ssvit}

if __name__ == '__main__':
    main()
