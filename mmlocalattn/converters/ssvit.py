"""SSViT's released classifiers (``CDFormer`` in ``classfication_release/SSViT.py``)."""

import re
from collections.abc import Mapping

from torch import Tensor

from mmlocalattn.converters.names import Renames, renamed
from mmlocalattn.converters.stages import infer_stages

MARKS = frozenset({'layers.0.blocks.0.attn.lepe.weight'})
"""Names by which a checkpoint is known."""

DERIVED = re.compile(r'layers\.\d+\.RoPE\.angle')
"""Buffers that follow from the architecture. Ours recomputes them."""

_BLOCK = r'^layers\.(\d+)\.blocks\.(\d+)\.'
_OUR_BLOCK = r'backbone.stages.\1.blocks.\2.'


def _behind(match: re.Match) -> str:
    """The step down ends a stage there and begins the next one here."""
    part = {'reduction': 'conv', 'norm': 'norm'}[match[2]]
    return f'backbone.stages.{int(match[1]) + 1}.downsample.{part}.'


_RENAMES: Renames = (
    (r'^patch_embed\.proj\.', 'backbone.stem.'),
    (r'^layers\.(\d+)\.downsample\.(reduction|norm)\.', _behind),
    (_BLOCK + r'norm([12])\.norm\.', _OUR_BLOCK + r'norm\3.'),
    (_BLOCK + r'attn\.out_proj\.', _OUR_BLOCK + 'attn.proj.'),
    (_BLOCK + r'(attn\.(?:qkv|lepe)|ffn\.(?:fc1|fc2|dwconv))\.', _OUR_BLOCK + r'\3.'),
    (_BLOCK + r'pos\.', _OUR_BLOCK + 'pos_conv.'),
    (_BLOCK + r'gamma_([12])$', _OUR_BLOCK + r'scale\3.weight'),
    (r'^(proj|norm)\.', r'neck.\1.'),
    (r'^head\.', 'head.fc.'),
)
_LINEAR = re.compile(r'.+\.(qkv|proj|fc1|fc2|fc)\.weight')
"""1x1 convolutions there, linear layers here. The neck's projection is a convolution in both."""


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape.

    Args:
        state_dict: The released model's, without derived buffers or with them.

    Returns:
        Tensors under ``backbone.``, ``neck.`` and ``head.``; what has no known name keeps its
        own, for the caller to report.
    """
    return dict(
        _convert(name, tensor) for name, tensor in state_dict.items() if not DERIVED.fullmatch(name)
    )


def infer_arch(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The keys of ``arch`` that shapes show without doubt.

    Returns:
        ``embed_dims`` and ``depths``, empty for a checkpoint that is not SSViT's.
    """
    return infer_stages(state_dict, r'layers\.(\d+)\.blocks\.(\d+)\.norm1\.norm\.weight')


def _convert(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    name = renamed(name, _RENAMES) or name
    if _LINEAR.fullmatch(name) and name != 'neck.proj.weight' and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    elif re.fullmatch(r'.+\.scale[12]\.weight', name) and tensor.shape[2:] == (1, 1):
        tensor = tensor[0, :, 0, 0]
    return name, tensor.contiguous()
