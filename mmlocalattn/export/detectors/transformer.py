"""DETR, Deformable DETR and DINO: a constant number of queries, and no suppression."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from mmdet.models import detectors as mmdet_models
from mmdet.models.layers import DeformableDetrTransformerEncoder
from torch import Tensor, nn

from mmlocalattn.export.detectors.detector import Detector, clipped, sides
from mmlocalattn.export.modules import Exportable

Shapes = Sequence[tuple[int, int]]


class _Sample(NamedTuple):
    """What mmdet's ``DETR`` asks of a data sample."""

    batch_input_shape: tuple[int, int]
    img_shape: tuple[int, int]


class DETR(Detector):
    """mmdet's ``DETR``.

    No part of the image is masked as padding, which mmdet does where images of a batch differ in
    size: then the numbers differ, also those of the larger ones.
    """

    requires = Exportable.requires

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        head = self.model.bbox_head
        self.number = head.test_cfg.get('max_per_img', self.model.num_queries)
        attentions = [m for m in self.model.modules() if isinstance(m, nn.MultiheadAttention)]
        for module in attentions:
            if module.in_proj_weight is not None:
                # PyTorch's branches on whether the batch is one image.
                vars(module)['forward'] = functools.partial(multihead_attention, module)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`Detector`."""
        logits, boxes = self.predict(self.model.extract_feat(image), image)
        scores, labels, places = self._best(logits)
        center, size = boxes.gather(1, places[..., None].expand(-1, -1, 4)).split(2, 2)
        corners = torch.cat((center - 0.5 * size, center + 0.5 * size), 2)
        height, width = sides(image)
        x, y = corners[..., 0::2] * width, corners[..., 1::2] * height
        return clipped(torch.stack((x, y), -1).flatten(2), image), scores, labels

    def predict(self, maps: Sequence[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, queries, classes) and boxes (B, queries, 4) from 0 to 1, as (x, y, w, h)."""
        shape = sides(image)
        states = self.model.forward_transformer(maps, [_Sample(shape, shape)])['hidden_states']
        logits, boxes = self.model.bbox_head(states[-1:])
        return logits[-1], boxes[-1]

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and queries (B, K)."""
        head = self.model.bbox_head
        if head.loss_cls.use_sigmoid:
            scores, pairs = logits.sigmoid().flatten(1).topk(self.number)
            return scores, pairs % head.num_classes, pairs // head.num_classes
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, places = scores.topk(self.number)
        return scores, labels.gather(1, places), places


class DeformableDETR(DETR):
    """mmdet's ``DeformableDETR``, of one stage or two, and its ``DINO``; for padding see DETR.

    A file takes images whose maps have at least as many places as there are queries, if those are
    chosen from them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # The methods of mmdet and mmcv read the sizes of maps from tensors, which a graph for a
        # range of sizes may not do. These take numbers, and for tensors call the originals.
        self.model.gen_encoder_output_proposals = functools.partial(proposals, self.model)
        self.model.encoder.get_encoder_reference_points = reference_points
        for module in self.model.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.forward = functools.partial(deformable_attention, module)

    def predict(self, maps: Sequence[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """As for :class:`DETR`."""
        model = self.model
        shared = dict(
            spatial_shapes=[sides(level) for level in maps],
            level_start_index=None,
            valid_ratios=maps[0].new_ones(maps[0].shape[0], len(maps), 2),
            key_padding_mask=None,
        )
        features, positions = self._flat(maps)
        memory = model.encoder(query=features, query_pos=positions, **shared)
        inputs, _ = model.pre_decoder(memory, None, shared['spatial_shapes'])
        inputs['value'] = inputs.pop('memory')
        # DINO transposes them, and the next layer would branch on whether the batch is one image.
        inputs['query'] = inputs['query'].clone(memory_format=torch.contiguous_format)
        if 'dn_mask' in inputs:
            inputs['self_attn_mask'] = inputs.pop('dn_mask')
        branches = model.bbox_head.reg_branches if model.with_box_refine else None
        states, references = model.decoder(**inputs, **shared, reg_branches=branches)
        if 'query_pos' in inputs:  # that of DINO has the first one among them
            references = [inputs['reference_points'], *references]
        logits, boxes = model.bbox_head(states, references)
        return logits[-1], boxes[-1]

    def _flat(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features and positions (B, places of all maps, D)."""
        model = self.model
        features = [level.flatten(2).transpose(1, 2) for level in maps]
        positions = [
            model.positional_encoding(None, input=level).flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(maps, model.level_embed)
        ]
        return torch.cat(features, 1), torch.cat(positions, 1)


def multihead_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, **others: Any
) -> tuple[Tensor, Tensor | None]:
    """The ``forward`` of PyTorch's attention where nothing is masked.

    Args:
        module: That of PyTorch.
        query: (Q, B, D), or (B, Q, D) if that is ``batch_first``.
        key: (K, B, D), or (B, K, D).
        value: As the key.
        others: For PyTorch's, if there is a mask.

    Returns:
        As the query, and None.
    """
    if others.get('key_padding_mask') is not None or others.get('attn_mask') is not None:
        return nn.MultiheadAttention.forward(module, query, key, value, **others)
    inputs = [query, key, value]
    if not module.batch_first:
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    weights, biases = module.in_proj_weight.chunk(3), [None] * 3
    if module.in_proj_bias is not None:
        biases = module.in_proj_bias.chunk(3)
    heads = (module.num_heads, module.head_dim)
    q, k, v = (
        nn.functional.linear(tensor, weight, bias).unflatten(2, heads).transpose(1, 2)
        for tensor, weight, bias in zip(inputs, weights, biases)
    )
    attention = (q * module.head_dim**-0.5 @ k.transpose(2, 3)).softmax(-1)
    output = module.out_proj((attention @ v).transpose(1, 2).flatten(2))
    return (output if module.batch_first else output.transpose(0, 1)), None


def centers(spatial_shapes: Shapes, like: Tensor) -> list[Tensor]:
    """The centers (h * w, 2) of the places of each map, as (x, y) from 0 to 1."""
    grids = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, device=like.device).to(like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device).to(like.dtype) + 0.5) / width
        y, x = torch.meshgrid(y, x, indexing='ij')
        grids.append(torch.stack((x, y), -1).flatten(0, 1))
    return grids


def reference_points(
    spatial_shapes: Shapes | Tensor, valid_ratios: Tensor, device: torch.device
) -> Tensor:
    """``get_encoder_reference_points`` of mmdet for sizes that are numbers, without padding.

    Args:
        spatial_shapes: (height, width) of each map.
        valid_ratios: (B, maps, 2), ones.
        device: Of the points.

    Returns:
        (B, places of all maps, maps, 2).
    """
    if isinstance(spatial_shapes, Tensor):
        return DeformableDetrTransformerEncoder.get_encoder_reference_points(
            spatial_shapes, valid_ratios, device
        )
    points = torch.cat(centers(spatial_shapes, valid_ratios))
    return points[:, None] * valid_ratios[:, None]


def proposals(
    model: Any, memory: Tensor, memory_mask: Tensor | None, spatial_shapes: Shapes | Tensor
) -> tuple[Tensor, Tensor]:
    """``gen_encoder_output_proposals`` of mmdet for sizes that are numbers, without padding.

    Args:
        model: The detector.
        memory: (B, places of all maps, D).
        memory_mask: None.
        spatial_shapes: (height, width) of each map.

    Returns:
        The memory as the heads take it (B, places, D), and logits of boxes (B, places, 4) that are
        infinite at the border, where the memory is 0 before its projection.
    """
    if isinstance(spatial_shapes, Tensor):
        original = mmdet_models.DeformableDETR.gen_encoder_output_proposals
        return original(model, memory, memory_mask, spatial_shapes)
    boxes = torch.cat(
        [
            torch.cat((center, torch.full_like(center, 0.05 * 2.0**level)), 1)
            for level, center in enumerate(centers(spatial_shapes, memory))
        ]
    )
    is_border = ~((boxes > 0.01) & (boxes < 0.99)).all(1, keepdim=True)
    logits = torch.log(boxes / (1 - boxes)).masked_fill(is_border, torch.inf)
    projected = model.memory_trans_fc(memory.masked_fill(is_border, 0))
    return model.memory_trans_norm(projected), logits.expand(memory.shape[0], -1, -1)


def deformable_attention(
    module: Any,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    reference_points: Tensor | None = None,
    spatial_shapes: Shapes | Tensor = (),
    **others: Any,
) -> Tensor:
    """The ``forward`` of mmcv's attention for sizes that are numbers.

    Args:
        module: That of mmcv.
        query: (B, Q, D).
        key: Not used.
        value: (B, places of all maps, D), or None: the query.
        identity: (B, Q, D) to which the output is added, or None: the query.
        query_pos: (B, Q, D) or None.
        key_padding_mask: (B, places of all maps), or None.
        reference_points: (B, Q, levels, 2 or 4).
        spatial_shapes: (height, width) of each map.
        others: For mmcv's.

    Returns:
        (B, Q, D).
    """
    if isinstance(spatial_shapes, Tensor):
        arguments = (query, key, value, identity, query_pos, key_padding_mask, reference_points)
        original = MultiScaleDeformableAttention.forward
        return original(module, *arguments, spatial_shapes, **others)
    value = query if value is None else value
    identity = query if identity is None else identity
    query = query if query_pos is None else query + query_pos
    if not module.batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    shape = (*query.shape[:2], module.num_heads, module.num_levels, module.num_points)
    value = module.value_proj(value)
    if key_padding_mask is not None:
        value = value.masked_fill(key_padding_mask[..., None], 0)
    value = value.unflatten(2, (module.num_heads, -1))
    offsets = module.sampling_offsets(query).view(*shape, 2)
    weights = module.attention_weights(query).view(*shape[:3], -1).softmax(-1).view(shape)
    assert reference_points is not None  # as all callers give them
    points = reference_points[:, :, None, :, None]
    if points.shape[-1] == 2:
        offsets = _in_maps(offsets, spatial_shapes)
    else:
        offsets = offsets / module.num_points * points[..., 2:] * 0.5
    output = module.output_proj(_sampled(value, spatial_shapes, points[..., :2] + offsets, weights))
    return (output if module.batch_first else output.transpose(0, 1)) + identity


def _sampled(value: Tensor, spatial_shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """``multi_scale_deformable_attn_pytorch`` of mmcv, without a branch on the batch.

    Args:
        value: (B, places of all maps, heads, d).
        spatial_shapes: (height, width) of each map.
        points: (B, Q, heads, maps, points, 2) as (x, y) from 0 to 1.
        weights: (B, Q, heads, maps, points).

    Returns:
        (B, Q, heads * d).
    """
    batch, _, heads, width = value.shape
    maps = _copied(value, 0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in spatial_shapes], 2)
    grids = _copied(2 * points - 1, 0, 2, 3, 1, 4, 5).flatten(0, 1)  # (B * heads, maps, Q, ...)
    samples = [
        nn.functional.grid_sample(part.unflatten(2, shape), grids[:, level], align_corners=False)
        for level, (part, shape) in enumerate(zip(maps, spatial_shapes))
    ]
    factors = _copied(weights, 0, 2, 1, 3, 4).flatten(0, 1).flatten(2)[:, None]
    output = (torch.stack(samples, 3).flatten(3) * factors).sum(3)  # (B * heads, d, Q)
    return _copied(output.view(batch, heads * width, -1), 0, 2, 1)


def _copied(x: Tensor, *order: int) -> Tensor:
    """Axes in another order, in a copy: whether a view would do depends on the sizes."""
    return x.permute(order).clone(memory_format=torch.contiguous_format)


def _in_maps(offsets: Tensor, spatial_shapes: Shapes) -> Tensor:
    """Offsets (B, Q, heads, maps, points, 2) in places, relative to the sides of the maps."""
    x, y = (offsets[..., axis].unbind(3) for axis in range(2))
    sides_of_maps = enumerate(spatial_shapes)
    scaled = [
        torch.stack((x[i] / width, y[i] / height), -1) for i, (height, width) in sides_of_maps
    ]
    return torch.stack(scaled, 3)
