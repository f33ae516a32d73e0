"""What is exported of a model: a module that takes an image and returns a tuple."""

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Exportable(nn.Module):
    """Takes an image (B, C, H, W) and returns a tuple."""

    in_channels = 3
    output_names: tuple[str, ...] | None = None
    requires: tuple[str, ...] = ('import mmlocalattn.ops',)
    """What a program does before it loads a file that calls operators."""

    def for_onnx(self) -> contextlib.AbstractContextManager:
        """While the graph of an ONNX file is made."""
        return contextlib.nullcontext()

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """The largest error of an output, relative to its largest value."""
        return max(
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(actual, expected, strict=True)
        )

    def doubt(self, expected: Sequence[Tensor]) -> str:
        """Why outputs may differ though the file is right, for the end of an error; or nothing."""
        return ''


class FeatureMaps(Exportable):
    """The maps of a backbone, or of a detector's backbone and neck, as a tuple."""

    def __init__(self, extract: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.extract = extract
        self.neck = neck

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to NCHW maps."""
        maps = self.extract(image)
        return tuple(maps if self.neck is None else self.neck(maps))


class Segmentation(Exportable):
    """What an mmseg ``EncoderDecoder`` says of every pixel of the image.

    Args:
        model: The segmentor.
        labels: Whether to give the best class (B, H, W), instead of the scores of all of them
            (B, classes, H, W).
    """

    def __init__(self, model: nn.Module, labels: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.output_names = ('labels',) if labels else ('scores',)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(B, C, H, W) to integers, or to scores before the softmax."""
        head = self.model.decode_head
        scores = nn.functional.interpolate(
            head(self.model.extract_feat(image)),
            image.shape[2:],
            mode='bilinear',
            align_corners=self.model.align_corners,
        )
        if self.output_names == ('scores',):
            return (scores,)
        if head.out_channels == 1:  # of two classes, as in EncoderDecoder.postprocess_result
            return ((scores.sigmoid() > head.threshold).squeeze(1).long(),)
        return (scores.argmax(1),)

    def difference(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """As for :class:`Exportable`; of labels the share of pixels that have another one.

        Where two classes have the same score up to rounding, either label is right.
        """
        if self.output_names == ('scores',):
            return super().difference(actual, expected)
        return (actual[0] != expected[0]).float().mean().item()


class Classification(Exportable):
    """Class scores (B, classes) of an mmpretrain ``ImageClassifier``."""

    output_names = ('scores',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(B, C, H, W) to scores before the softmax."""
        return (self.model.head(self.model.extract_feat(image)),)


def exportable(model: Any, scope: str, part: str, labels: bool = False) -> Exportable:
    """The module that takes an image and is exported.

    Args:
        model: A module that a config describes.
        scope: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        part: ``'backbone'``, ``'neck'``: the backbone and the neck, or ``'model'``: all of it.
        labels: Whether a segmentor gives labels instead of scores.

    Raises:
        ValueError: If models of the scope have no such part.
    """
    if labels and (scope != 'mmseg' or part != 'model'):
        raise ValueError(f'labels are of whole segmentors, got the {part} of {scope}')
    if part == 'backbone':
        return FeatureMaps(model.backbone).eval()
    if part == 'neck':
        return FeatureMaps(model.backbone, getattr(model, 'neck', None)).eval()
    if scope == 'mmdet':
        from mmlocalattn.export.detectors import whole_detector

        return whole_detector(model)
    head = getattr(model, {'mmseg': 'decode_head', 'mmpretrain': 'head'}.get(scope, ''), None)
    if head is None or isinstance(head, nn.ModuleList):
        raise ValueError(
            f'{type(model).__name__} of {scope} cannot be exported whole: use --part backbone'
        )
    return (Segmentation(model, labels) if scope == 'mmseg' else Classification(model)).eval()
