"""The released Mask2Former models with DiNAT (``mask2former`` of NAT's repository).

They are of detectron2 and Mask2Former's own code; here they become mmdet's Mask2Former, or
mmsegmentation's for semantic maps, whose modules compute the same. The projections of queries, keys
and values, the levels (from stride 32 to 8) and the offsets of deformable attention have one order
in both, and the last class is "no object". Panoptic models of mmdet have the classes of things
before those of stuff; so the classes of ADE20K and Cityscapes change places.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mmlocalattn.converters.names import Renames, renamed
from mmlocalattn.converters.nat import convert_whole

_CLASSES = 'sem_seg_head.predictor.class_embed.weight'
_QUERIES = 'sem_seg_head.predictor.query_feat.weight'
MARKS = frozenset({'backbone.levels.0.blocks.0.attn.rpb', _CLASSES, _QUERIES})
"""Names that are in every checkpoint of the release and in none of another."""

_LENGTHS = {
    (80, 200): '100e_coco',
    (133, 200): '100e_coco_panoptic',
    (100, 200): '160k_ade20k_instance',
    (150, 200): '160k_ade20k_panoptic',
    (150, 100): '160k_ade20k',
    (8, 200): '90k_cityscapes_instance',
    (19, 200): '90k_cityscapes_panoptic',
    (19, 100): '90k_cityscapes',
}
"""How the config of a released model with so many classes and queries is called."""

_ENCODER = r'^pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.'
_OUR_ENCODER = r'pixel_decoder.encoder.layers.\1.'
_OUR_DECODER = r'transformer_decoder.layers.\1.'
_RENAMES: Renames = (
    (r'^pixel_decoder\.input_proj\.(\d+)\.0\.', r'pixel_decoder.input_convs.\1.conv.'),
    (r'^pixel_decoder\.input_proj\.(\d+)\.1\.', r'pixel_decoder.input_convs.\1.gn.'),
    (r'^pixel_decoder\.transformer\.level_embed$', 'pixel_decoder.level_encoding.weight'),
    (_ENCODER + r'self_attn\.', _OUR_ENCODER + 'self_attn.'),
    (_ENCODER + r'norm1\.', _OUR_ENCODER + 'norms.0.'),
    (_ENCODER + r'norm2\.', _OUR_ENCODER + 'norms.1.'),
    (_ENCODER + r'linear1\.', _OUR_ENCODER + 'ffn.layers.0.0.'),
    (_ENCODER + r'linear2\.', _OUR_ENCODER + 'ffn.layers.1.'),
    # One map, that of stride 4, is not in the encoder.
    (r'^pixel_decoder\.adapter_1\.weight$', 'pixel_decoder.lateral_convs.0.conv.weight'),
    (r'^pixel_decoder\.adapter_1\.norm\.', 'pixel_decoder.lateral_convs.0.gn.'),
    (r'^pixel_decoder\.layer_1\.weight$', 'pixel_decoder.output_convs.0.conv.weight'),
    (r'^pixel_decoder\.layer_1\.norm\.', 'pixel_decoder.output_convs.0.gn.'),
    (r'^pixel_decoder\.mask_features\.', 'pixel_decoder.mask_feature.'),
    (
        r'^predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.',
        _OUR_DECODER + 'cross_attn.attn.',
    ),
    (
        r'^predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.',
        _OUR_DECODER + 'self_attn.attn.',
    ),
    (r'^predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.', _OUR_DECODER + 'norms.0.'),
    (r'^predictor\.transformer_self_attention_layers\.(\d+)\.norm\.', _OUR_DECODER + 'norms.1.'),
    (r'^predictor\.transformer_ffn_layers\.(\d+)\.norm\.', _OUR_DECODER + 'norms.2.'),
    (r'^predictor\.transformer_ffn_layers\.(\d+)\.linear1\.', _OUR_DECODER + 'ffn.layers.0.0.'),
    (r'^predictor\.transformer_ffn_layers\.(\d+)\.linear2\.', _OUR_DECODER + 'ffn.layers.1.'),
    (r'^predictor\.decoder_norm\.', 'transformer_decoder.post_norm.'),
    (r'^predictor\.(query_feat|query_embed|level_embed)\.', r'\1.'),
    (r'^predictor\.class_embed\.', 'cls_embed.'),
    # Activations stand between the layers.
    (r'^predictor\.mask_embed\.layers\.(\d)\.', lambda match: f'mask_embed.{2 * int(match[1])}.'),
)

_ADE20K_STUFF = (
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59),
    *(60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128),
    *(131, 140, 141, 145),
)
_STUFF = {(100, 50): _ADE20K_STUFF, (8, 11): tuple(range(11))}
"""Of a panoptic model with so many classes of things and of stuff, which are stuff."""


def convert(state_dict: Mapping[str, Tensor], model: Mapping) -> dict[str, Tensor]:
    """Rename the tensors of a model, and order its classes.

    Args:
        state_dict: The released model's.
        model: The config of ours, of mmdet or mmsegmentation.

    Returns:
        Tensors under ``backbone.`` and the name of the head; what has no known name keeps its own,
        for the caller to report.
    """
    head = 'panoptic_head' if 'panoptic_head' in model else 'decode_head'
    converted = {}
    for name, tensor in convert_whole(state_dict).items():
        if name == 'criterion.empty_weight':  # of the classes in the loss, not learnt
            continue
        if name.startswith('sem_seg_head.'):
            ours = renamed(name.removeprefix('sem_seg_head.'), _RENAMES)
            name = name if ours is None else f'{head}.{ours}'
        converted[name] = tensor
    options = model.get(head, {})
    kinds = options.get('num_things_classes'), options.get('num_stuff_classes')
    for name in (f'{head}.cls_embed.weight', f'{head}.cls_embed.bias'):
        if kinds in _STUFF and len(converted.get(name, ())) == sum(kinds) + 1:
            converted[name] = _things_first(converted[name], _STUFF[kinds])
    return converted


def find_configs(state_dict: Mapping[str, Tensor], backbones: Iterable[str]) -> list[str]:
    """The configs of ours that may have the weights, with one of these backbones."""
    shape = (len(state_dict[_CLASSES]) - 1, len(state_dict[_QUERIES]))
    lengths = [_LENGTHS[shape]] if shape in _LENGTHS else []
    return [f'mask2former_{name}_{length}.py' for name in backbones for length in lengths]


def _things_first(rows: Tensor, stuff: tuple[int, ...]) -> Tensor:
    """The rows of classes in mmdet's order. The last one, no object, stays."""
    classes = range(len(rows) - 1)
    order = [*(i for i in classes if i not in stuff), *stuff, len(rows) - 1]
    return rows[torch.tensor(order)]
