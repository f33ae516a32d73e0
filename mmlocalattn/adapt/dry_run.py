"""The prediction of a model on an image that does not exist, for counting what it computes.

A detector decides by its weights how many regions its later heads see. Here these are as many as
its config lets through, so that the course does not depend on the weights; nor does it need values:
it can be taken by shapes alone, on the device ``'meta'``.
"""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

PROPOSALS, DETECTIONS = 1000, 100
"""Of an image, where the config does not say how many."""


def dry_run(model: Any, images: Tensor) -> None:
    """Predict for (1, C, H, W) images, without the post-processing that has no parameters.

    Args:
        model: Of mmdet, mmsegmentation or mmpretrain, for testing. Is no good for anything else
            afterwards.
        images: As the data preprocessor makes them.
    """
    size = tuple(images.shape[2:])
    if hasattr(model, 'encode_decode'):
        model.encode_decode(images, [dict(img_shape=size)])  # resizes the logits too
    elif hasattr(model, 'add_pred_to_datasample'):
        from mmdet.structures import DetDataSample

        fix_regions(model)
        keys = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        meta = dict.fromkeys(keys, size) | dict(scale_factor=(1.0, 1.0), img_id=0)
        sample = DetDataSample(metainfo=meta)
        if hasattr(model, 'roi_head') and not hasattr(model, 'rpn_head'):  # Fast R-CNN
            sample.proposals = _regions(PROPOSALS, images.device)
        model(images, [sample], mode='predict')
    else:
        model(images)


def fix_regions(model: Any) -> None:
    """Let the heads of a detector find as many regions as its config lets through.

    Replaced, in this model alone, is what has no parameters: the choice of boxes, the pasting of
    masks, the fusion of panoptic maps, and the crops of regions.
    """
    for name, module in model.named_modules():
        if hasattr(module, 'predict_by_feat'):
            module.predict_by_feat = _chooser(model, name, module)
        elif name.endswith('fusion_head'):
            module.predict = lambda *_, **__: [PixelData()]
        elif type(module).__name__ == 'SingleRoIExtractor':
            module.forward = _crop_of_any_level(module)
        elif hasattr(module, 'roi_layers'):
            for layer in module.roi_layers:
                layer.forward = _crop(layer)


def _chooser(model: Any, name: str, head: Any) -> Callable:
    """In place of the ``predict_by_feat`` of a head, by its name in the model."""
    number = _limit(model, name)

    def choose(*_: Any, results_list: Any = None, **__: Any) -> list[InstanceData]:
        if results_list is not None:  # of a head that adds masks to boxes
            return results_list
        found = _regions(number, next(model.parameters()).device)
        for field, width in (('coeffs', 'num_protos'), ('param_preds', 'num_params')):
            if hasattr(head, width):  # of YOLACT, CondInst: what makes the mask of each box
                found[field] = found.bboxes.new_zeros(number, getattr(head, width))
        return [found]

    return choose


def _limit(model: nn.Module, name: str) -> int:
    """How many regions of an image the config of a part, or of what it is in, lets through."""
    config = getattr(model.get_submodule(name), 'test_cfg', None) or {}
    if 'max_per_img' in config:
        return config['max_per_img']
    return _limit(model, name.rpartition('.')[0]) if name else DETECTIONS


def _regions(number: int, device: torch.device) -> InstanceData:
    """So many boxes that are all the same."""
    corners = torch.tensor([[0.0, 0.0, 64.0, 64.0]], device=device).repeat(number, 1)
    scores = corners[:, 0]
    return InstanceData(
        bboxes=corners,
        scores=scores,
        labels=torch.zeros(number, dtype=torch.long, device=device),
        points=corners[:, :2],
        strides=scores + 8,
    )


def _crop(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """In place of an operator that crops regions from a map: for sizes alone."""
    return lambda features, rois: features.new_zeros(
        len(rois), features.shape[1], *layer.output_size
    )


def _crop_of_any_level(extractor: Any) -> Callable[..., Tensor]:
    """In place of an extractor that takes each region from the level for its size."""
    crop = _crop(extractor.roi_layers[0])
    return lambda maps, rois, *_, **__: crop(maps[0], rois)


def stopped_in(model: nn.Module, error: BaseException) -> str:
    """The innermost part of a model that an error came from: its name there and its type."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = '', error.__traceback__
    while trace is not None:
        part = trace.tb_frame.f_locals.get('self')
        if isinstance(part, nn.Module) and names.get(id(part)):
            found = f'{names[id(part)]} ({type(part).__name__})'
        trace = trace.tb_next
    return found or type(model).__name__
