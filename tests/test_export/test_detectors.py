"""Whole detectors against mmdet's own predictions, and their files against them."""

from typing import Any

import torch
from tiny_detectors import samples
from torch import Tensor

SIZES = [(96, 128), (128, 96)]


@torch.no_grad()
def predicted(model: Any, image: Tensor, names: tuple[str, ...], number: int) -> list[Tensor]:
    """What mmdet gives, in the form of a file."""
    results = [sample.pred_instances for sample in model.predict(image, samples(image), False)]
    outputs = [
        image.new_zeros(len(image), number, 4),
        image.new_zeros(len(image), number),
        torch.full((len(image), number), -1),
    ]
    for item, result in enumerate(results):
        for output, value in zip(outputs, (result.bboxes, result.scores, result.labels)):
            output[item, : len(result)] = value
    return outputs
