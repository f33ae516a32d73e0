"""Slide-Swin's released classifiers (``slide_transformer/models/slide_swin.py``)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmlocalattn.converters.names import Renames, renamed
from mmlocalattn.converters.stages import infer_stages

MARKS = frozenset({'layers.0.blocks.0.attn.dep_conv1.weight'})
"""Names by which a classifier is known."""

DERIVED = re.compile(r'layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)')
"""Buffers that follow from the architecture. Ours has none."""

SHIFT = re.compile(r'layers\.\d+\.blocks\.\d+\.attn\.dep_conv\.weight')
"""The fixed path, which ours does not store."""

_TABLE = r'layers\.(\d+)\.blocks\.0\.attn\.relative_position_bias_table'


def _behind(match: re.Match) -> str:
    """The step down ends a layer there and begins the next stage here."""
    return f'backbone.stages.{int(match[1]) + 1}.downsample.{match[2]}.'


_BLOCK = r'^layers\.(\d+)\.blocks\.(\d+)\.'
_OUR_BLOCK = r'backbone.stages.\1.blocks.\2.'
_RENAMES: Renames = (
    (r'^patch_embed\.(proj|norm)\.', r'backbone.stem.\1.'),
    (r'^layers\.(\d+)\.downsample\.(reduction|norm)\.', _behind),
    (_BLOCK + r'(norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.', _OUR_BLOCK + r'\3.'),
    (_BLOCK + r'attn\.dep_conv\.bias$', _OUR_BLOCK + 'attn.shift.bias'),
    (_BLOCK + r'attn\.dep_conv1\.', _OUR_BLOCK + 'attn.deform.'),
    (_BLOCK + r'attn\.relative_position_bias_table$', _OUR_BLOCK + 'attn.rel_pos_bias'),
    (r'^norm\.', 'backbone.output_norms.3.'),
    (r'^head\.', 'head.fc.'),
)


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape.

    Args:
        state_dict: The released model's, without derived buffers or with them.

    Returns:
        Tensors under ``backbone.`` and ``head.``; what has no known name keeps its own, for the
        caller to report.

    Raises:
        ValueError: If the fixed path of slide attention is not the shift.
    """
    converted = {}
    for name, tensor in state_dict.items():
        if SHIFT.fullmatch(name):
            _check_shift(name, tensor)
        elif not DERIVED.fullmatch(name):
            ours = renamed(name, _RENAMES) or name
            converted[ours] = _reshape(name, tensor, state_dict).contiguous()
    return converted


def infer_arch(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The keys of ``arch`` that shapes show without doubt.

    Returns:
        ``embed_dims`` and ``depths``, empty for a checkpoint that is not Slide-Swin's.
    """
    return infer_stages(state_dict, r'layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight')


def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """``num_slide_stages``, ``kernel_size`` and ``window_size``, as far as shapes show them.

    A window of the first stage behind the sliding ones that would cover the map of a 224-pixel
    image stands for 56, that of the released configurations.
    """
    kernels, windows = {}, {}
    for name, tensor in state_dict.items():
        if match := re.fullmatch(r'layers\.(\d+)\.blocks\.0\.attn\.dep_conv1\.weight', name):
            kernels[int(match[1])] = tensor.shape[-1]
        elif tensor.dim() == 2 and (match := re.fullmatch(_TABLE, name)):
            windows[int(match[1])] = (round(tensor.shape[0] ** 0.5) + 1) // 2
    options = {}
    if kernels:
        options = {'num_slide_stages': len(kernels), 'kernel_size': kernels[min(kernels)]}
    if windows:
        first = min(windows)
        options['window_size'] = 56 if windows[first] == 56 >> first else windows[first]
    return options


def _reshape(name: str, tensor: Tensor, state_dict: Mapping[str, Tensor]) -> Tensor:
    """Our layout of one tensor."""
    block, _, part = name.rpartition('.attn.')
    if part.startswith('dep_conv'):  # (head_dim * k * k, 1, k, k) or (head_dim * k * k)
        taps = state_dict[f'{block}.attn.dep_conv1.weight'].shape[-1] ** 2
        return tensor.flatten(0, min(1, tensor.dim() - 1)).unflatten(0, (-1, taps))
    if part == 'relative_position_bias_table':
        return _position_bias(tensor)
    table = state_dict.get(f'{block}.attn.relative_position_bias_table')
    if part.startswith('qkv.') and table is not None and table.dim() == 6:
        # Query, key and value of a head are neighbors there; here, the heads of all queries are.
        return tensor.unflatten(0, (table.shape[1], 3, -1)).transpose(0, 1).flatten(0, 2)
    return tensor


def _position_bias(table: Tensor) -> Tensor:
    """Of slide attention (1, heads, 1, k * k, 1, 1), of windows (offsets, heads)."""
    if table.dim() == 6:
        side = round(table.shape[3] ** 0.5)
        return table.reshape(table.shape[1], side, side)
    side = round(table.shape[0] ** 0.5)
    return table.t().unflatten(1, (side, side))


def _check_shift(name: str, weight: Tensor) -> None:
    """Compare with the one-hot kernels (head_dim * k * k, 1, k, k) that ours does not store."""
    taps = weight.shape[-1] ** 2
    shift = torch.eye(taps, dtype=weight.dtype).view(taps, 1, *weight.shape[-2:])
    if not torch.equal(weight, shift.repeat(len(weight) // taps, 1, 1, 1)):
        raise ValueError(
            f'{name} {tuple(weight.shape)} is not the fixed shift of slide attention: this '
            'checkpoint was trained with code that changes it'
        )
