"""NAT's and DiNAT's released classifiers, detectors and segmentors.

The classifiers are those of ``classification/nat.py``. Detectors (``detection``, written by
mmdet 2.19) and segmentors (``segmentation``, written by mmseg 0.20) hold the same backbone under
``backbone.``, with a norm for each output; the names and channel orders of their necks and heads
are those of mmdet 3 and mmseg 1.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from mmlocalattn.converters.names import Renames, renamed
from mmlocalattn.converters.stages import infer_stages

MARKS = frozenset({'levels.0.blocks.0.attn.rpb'})
"""Names by which a classifier is known. NAT's and DiNAT's have the same names."""

DETECTOR_MARKS = frozenset({'backbone.levels.0.blocks.0.attn.rpb', 'rpn_head.rpn_conv.weight'})
SEGMENTOR_MARKS = frozenset({'backbone.levels.0.blocks.0.attn.rpb', 'decode_head.conv_seg.weight'})


def _behind(match: re.Match) -> str:
    """The step down ends a level there and begins the next stage here."""
    part = {'reduction': 'conv', 'norm': 'norm'}[match[2]]
    return f'stages.{int(match[1]) + 1}.downsample.{part}.'


_BLOCK = r'^levels\.(\d+)\.blocks\.(\d+)\.'
_OUR_BLOCK = r'stages.\1.blocks.\2.'
_RENAMES: Renames = (
    (r'^patch_embed\.(proj\.[01]|norm)\.', r'stem.\1.'),
    (r'^levels\.(\d+)\.downsample\.(reduction|norm)\.', _behind),
    (_BLOCK + r'(norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.', _OUR_BLOCK + r'\3.'),
    (_BLOCK + r'attn\.rpb$', _OUR_BLOCK + 'attn.rel_pos_bias'),
    (_BLOCK + r'gamma([12])$', _OUR_BLOCK + r'scale\3.weight'),
    (r'^norm([0-3])\.', r'output_norms.\1.'),
)


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a classifier.

    Args:
        state_dict: The released model's, with its head or without.

    Returns:
        Tensors under ``backbone.`` and ``head.``; what has no known name keeps its own, for the
        caller to report.
    """
    return {_classifier_name(name): tensor for name, tensor in state_dict.items()}


def convert_whole(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a detector or segmentor: those of its backbone only.

    Args:
        state_dict: The released model's.

    Returns:
        As for :func:`convert`, with neck and heads under the names of mmdet and mmseg.
    """
    converted = {}
    for name, tensor in state_dict.items():
        if name.startswith('backbone.'):
            ours = renamed(name.removeprefix('backbone.'), _RENAMES)
            name = name if ours is None else f'backbone.{ours}'
        converted[name] = tensor
    return converted


def infer_arch(state_dict: Mapping[str, Tensor]) -> dict[str, tuple]:
    """The keys of ``arch`` that a classifier shows.

    Returns:
        ``embed_dims``, ``depths`` and ``layer_scale``, which every release with factors starts at
        1e-5; all empty for another release's checkpoint.
    """
    found = infer_stages(state_dict, r'levels\.(\d+)\.blocks\.(\d+)\.norm1\.weight')
    scale = 1e-5 if 'levels.0.blocks.0.gamma1' in state_dict else None
    return {**found, 'layer_scale': (scale,) * len(found['depths'])}


def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """``kernel_size``, if the position bias of a classifier shows it."""
    bias = state_dict.get('levels.0.blocks.0.attn.rpb')
    return {} if bias is None else {'kernel_size': (bias.shape[-1] + 1) // 2}


def backbone_of(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole model's backbone by the names of a classifier."""
    return {
        name.removeprefix('backbone.'): tensor
        for name, tensor in state_dict.items()
        if name.startswith('backbone.')
    }


def _classifier_name(name: str) -> str:
    if name.startswith('head.'):
        return f'head.fc.{name.removeprefix("head.")}'
    # The last norm of the classifier is that of the output of stage 3 here.
    ours = renamed(re.sub(r'^norm\.', 'norm3.', name), _RENAMES)
    return name if ours is None else f'backbone.{ours}'
