"""QnA-ViT's released classifiers: Flax parameters of ``models/qna_vit.py``.

Flax multiplies with ``kernel`` from the right, packs queries, keys and values of window attention
head by head, and has taps before queries and heads in the tables of QnA.
"""

import math
import re
from collections.abc import Callable, Mapping

from torch import Tensor

MARKS = {'StemBlock_0/conv_1x1/kernel', 'QnAStage_0/QnA_Block_1/FusedKQnA_0/query'}
"""Names that are in every checkpoint of the release and in none of another."""

_BLOCK = re.compile(r'((?:QnA|LSA)Stage_(\d+)/(QnA|MSA)_Block_(\d+)(_stride_2)?)/(.+)')
_TABLES = (
    'FusedKQnA_0/rpe_bias',
    'MultiHeadSelfAttention_0/RelativePositionalEmbedding_0/rpe_bias',
)


def convert(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, transpose, and reorder.

    Args:
        parameters: By Flax's path, as :func:`~mmlocalattn.converters.flax_tree.parameters` returns
            them.

    Returns:
        Tensors under ``backbone.`` and ``head.``; what has no known name keeps its own, for the
        caller to report.

    Raises:
        ValueError: If a tensor has too few or too many values for its name.
    """
    window_depths = dict(enumerate(infer_arch(parameters)['window_depths']))
    converted = {}
    for name, tensor in parameters.items():
        ours, reorder = _rename(name, window_depths)
        try:
            converted[ours] = reorder(tensor, _num_heads(name, parameters)).contiguous()
        except (IndexError, RuntimeError) as error:
            raise ValueError(f'{name} has the shape {tuple(tensor.shape)}: {error}') from error
    return converted


def infer_arch(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The keys of ``arch`` that shapes show.

    Returns:
        ``embed_dims``, ``depths``, ``window_depths`` and ``kernel_sizes`` (a stage without QnA has
        that of the stage before), empty for a checkpoint that is not QnA-ViT's.
    """
    dims: dict[int, int] = {}
    kernels: dict[int, int] = {}
    blocks: dict[str, list[int]] = {'QnA': [], 'MSA': []}  # the stage of each
    for name, tensor in parameters.items():
        if not (match := _BLOCK.fullmatch(name)):
            continue
        stage, kind, step_down, part = int(match[2]), match[3], match[5], match[6]
        if part == 'LayerNorm_0/scale':
            dims[stage] = len(tensor)
            blocks[kind] += [] if step_down else [stage]
        elif part == 'FusedKQnA_0/rpe_bias':
            kernels[stage] = math.isqrt(len(tensor))
    stages = sorted(dims)
    return {
        'embed_dims': tuple(dims[stage] for stage in stages),
        'depths': tuple(blocks['QnA'].count(stage) for stage in stages),
        'window_depths': tuple(blocks['MSA'].count(stage) for stage in stages),
        'kernel_sizes': tuple(
            kernels.get(stage, kernels.get(stage - 1, 0)) for stage in stages if kernels
        ),
    }


Reorder = Callable[[Tensor, int], Tensor]
"""A parameter of Flax and the number of heads of its block to ours."""


def _same(tensor: Tensor, _: int) -> Tensor:
    return tensor


def _matrix(tensor: Tensor, _: int) -> Tensor:
    """(in, out) or, of a 1x1 convolution, (1, 1, in, out) to (out, in)."""
    return tensor.flatten(0, -2).transpose(0, 1)


def _convolution(tensor: Tensor, _: int) -> Tensor:
    """(k, k, in, out) to (out, in, k, k)."""
    return tensor.permute(3, 2, 0, 1)


def _query(tensor: Tensor, num_heads: int) -> Tensor:
    """(queries, heads * d) to (queries, heads, d)."""
    return tensor.unflatten(1, (num_heads, -1))


def _taps(tensor: Tensor, num_heads: int) -> Tensor:
    """(..., k * k, queries * heads) to (queries, heads, k, k)."""
    side = math.isqrt(tensor.shape[-2])
    return tensor.reshape(side, side, -1, num_heads).permute(2, 3, 0, 1)


def _packed(tensor: Tensor, num_heads: int) -> Tensor:
    """(in, heads * 3 * d) to (3 * heads * d, in)."""
    return tensor.t().unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def _offsets(tensor: Tensor, num_heads: int) -> Tensor:
    """((2 * w - 1) ** 2, heads) to (heads, 2 * w - 1, 2 * w - 1)."""
    side = math.isqrt(len(tensor))
    return tensor.t().reshape(num_heads, side, side)


_BLOCK_PARTS: dict[str, tuple[str, Reorder]] = {
    'Conv_0/kernel': ('skip.weight', _matrix),
    'FusedKQnA_0/query': ('attn.query', _query),
    'FusedKQnA_0/Wk': ('attn.key.weight', _matrix),
    'FusedKQnA_0/to_v/kernel': ('attn.value.weight', _matrix),
    'FusedKQnA_0/to_out/kernel': ('attn.proj.weight', _matrix),
    'FusedKQnA_0/rpe_bias': ('attn.pos_bias', _taps),
    'FusedKQnA_0/attn_scale_weights': ('attn.attention_scale', _taps),
    'MultiHeadSelfAttention_0/to_qkv/kernel': ('attn.qkv.weight', _packed),
    'MultiHeadSelfAttention_0/to_out/kernel': ('attn.proj.weight', _matrix),
    'MultiHeadSelfAttention_0/RelativePositionalEmbedding_0/rpe_bias': (
        'attn.rel_pos_bias',
        _offsets,
    ),
    'LayerNorm_0/scale': ('norm1.weight', _same),
    'LayerNorm_0/bias': ('norm1.bias', _same),
    'LayerNorm_1/scale': ('norm2.weight', _same),
    'LayerNorm_1/bias': ('norm2.bias', _same),
    'MlpBlock_0/Dense_0/kernel': ('mlp.fc1.weight', _matrix),
    'MlpBlock_0/Dense_0/bias': ('mlp.fc1.bias', _same),
    'MlpBlock_0/Dense_1/kernel': ('mlp.fc2.weight', _matrix),
    'MlpBlock_0/Dense_1/bias': ('mlp.fc2.bias', _same),
}
_OTHERS: dict[str, tuple[str, Reorder]] = {
    'StemBlock_0/conv_1x1/kernel': ('backbone.stem.weight', _convolution),
    'ClassificationHead_0/LayerNorm_0/scale': ('backbone.output_norms.{last}.weight', _same),
    'ClassificationHead_0/LayerNorm_0/bias': ('backbone.output_norms.{last}.bias', _same),
    'ClassificationHead_0/head_logits/kernel': ('head.fc.weight', _matrix),
    'ClassificationHead_0/head_logits/bias': ('head.fc.bias', _same),
}


def _rename(name: str, window_depths: Mapping[int, int]) -> tuple[str, Reorder]:
    """Our name of a parameter, and how to reorder it."""
    match = _BLOCK.fullmatch(name)
    if match is None or match[6] not in _BLOCK_PARTS:
        ours, reorder = _OTHERS.get(name, (name, _same))
        return ours.format(last=len(window_depths) - 1), reorder
    stage, block = int(match[2]), int(match[4]) - 1
    part, reorder = _BLOCK_PARTS[match[6]]
    if match[5]:  # the step down ends a stage there and begins the next one here
        return f'backbone.stages.{stage + 1}.downsample.{part}', reorder
    if match[3] == 'QnA':
        block += window_depths.get(stage, 0)
    return f'backbone.stages.{stage}.blocks.{block}.{part}', reorder


def _num_heads(name: str, parameters: Mapping[str, Tensor]) -> int:
    """Heads of the block of a parameter, by the table of its attention; 1 where there is none."""
    if not (match := _BLOCK.fullmatch(name)):
        return 1
    queries = parameters.get(f'{match[1]}/FusedKQnA_0/query', ())
    tables = (parameters.get(f'{match[1]}/{table}') for table in _TABLES)
    table = next((table for table in tables if table is not None), None)
    return 1 if table is None else table.shape[-1] // max(len(queries), 1)
