"""What becomes of the operators of a detector in an ONNX file."""

# mypy: ignore-errors
# (What onnxscript compiles is ONNX in the syntax of Python, and not Python by its types.)

import onnxscript
import torch
from onnxscript import BOOL, FLOAT
from onnxscript import opset18 as op

from mmlocalattn.export.detectors.nms import KEEP


@onnxscript.script(onnxscript.values.Opset('mmlocalattn', 1), default_opset=op)
def onnx_keep(boxes: FLOAT[...], scores: FLOAT[...], iou_threshold: float) -> BOOL[...]:
    """``mmlocalattn_export::keep``: NonMaxSuppression of each item, all boxes of one class."""
    number = op.Shape(scores, start=1, end=2)
    chosen = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, [1]),
        number,
        op.Reshape(op.CastLike(iou_threshold, scores), [1]),
        op.CastLike([-0.5], scores),  # below the scores of what is there
    )
    places = op.Gather(chosen, [0, 2], axis=1)  # item and box
    kept = op.Expand(op.CastLike([True], op.Equal(number, number)), op.Shape(places, end=1))
    none = op.Not(op.Equal(scores, scores))
    return op.ScatterND(none, places, kept)


@onnxscript.script(onnxscript.values.Opset('mmlocalattn', 1), default_opset=op)
def onnx_sigmoid(logits: FLOAT[...]) -> FLOAT[...]:
    """Also far from 0, where onnxruntime's ``Sigmoid`` is 0 below -18 and loses digits before.

    Proposals are ranked by such scores.
    """
    return op.Reciprocal(op.Add(op.CastLike(1.0, logits), op.Exp(op.Neg(logits))))


TRANSLATIONS = {KEEP: onnx_keep, torch.ops.aten.sigmoid.default: onnx_sigmoid}
"""For ``custom_translation_table`` of ``torch.onnx.export``."""
