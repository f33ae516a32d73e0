"""Checks of single annotations in COCO's format: their numbers, boxes and masks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

from mmlocalattn.data.findings import Finding, Severity
from mmlocalattn.data.geometry import Size, decode_counts, polygon_area

TOLERANCE = 2.0  # pixels that a box may reach over the edge of its picture: rounding does that


def check_annotation(ann_file: str, annotation: dict, size: Size, masks: bool) -> Iterator[Finding]:
    """Check one annotation that a loader uses.

    Args:
        ann_file: Where it is.
        annotation: Its entry.
        size: Of its picture, as the file gives it.
        masks: Whether it needs a mask.
    """

    def finding(severity: Severity, kind: str, problem: str, fix: str) -> Finding:
        return Finding(severity, kind, ann_file, f'annotation {annotation["id"]}', problem, fix)

    box = annotation.get('bbox')
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        fix = 'Write it as [x, y, width, height] in pixels'
        yield finding('error', 'boxes', f'bbox is {box!r}', fix)
        return
    numbers = [*box, annotation.get('area', 0)]
    if not all(_is_number(number) and math.isfinite(number) for number in numbers):
        problem = f'bbox {box} or area {numbers[-1]!r} is not a finite number: the loss becomes NaN'
        yield finding('error', 'not finite', problem, 'Write it anew, or take it out')
        return
    problem = box_problem(box, annotation.get('area', 1), size)
    if problem:
        yield finding('warning', 'boxes', f'bbox {box}: {problem}', 'Mend it, or take it out')
    if masks:
        problem = mask_problem(annotation.get('segmentation'), size)
        if problem:
            fix = 'Give it a mask, or take it out; a model without masks needs none'
            yield finding('error', 'masks', problem, fix)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def box_problem(box: Sequence[float], area: float, size: Size) -> str:
    """What is wrong with a box of finite numbers, or nothing."""
    x, y, width, height = box
    if width < 1 or height < 1:
        return 'it is less than a pixel wide or high, so it is not trained on and counts as missed'
    if area <= 0:
        return f'its area is {area}, so it is not trained on'
    right, bottom = x + width, y + height
    if min(right, size[0]) <= max(x, 0) or min(bottom, size[1]) <= max(y, 0):
        return f'it is outside of its picture, {size[0]}x{size[1]}, so it is not trained on'
    over = max(-x, -y, right - size[0], bottom - size[1])
    if over > TOLERANCE:
        return f'it reaches {over:g} pixels over the edge of its picture, {size[0]}x{size[1]}'
    return ''


def check_boxes(ann_file: str, boxes: Sequence[Sequence[float]]) -> Iterator[Finding]:
    """Recognise boxes that are all in another format than COCO's.

    Args:
        ann_file: Where they are.
        boxes: Of x, y, width, height, and width and height of the picture, all in pixels.
    """
    if not boxes:
        return
    if all(max(box[:4]) <= 1 for box in boxes):
        yield Finding(
            'error',
            'boxes',
            ann_file,
            '',
            'no number of any bbox is above 1: they are shares of the picture, not pixels',
            'Multiply them by the width and height of the picture',
        )
        return
    over = [
        x + w > width + TOLERANCE or y + h > height + TOLERANCE
        for x, y, w, h, width, height in boxes
    ]
    corners = all(
        w > x and h > y and w <= width + TOLERANCE and h <= height + TOLERANCE
        for x, y, w, h, width, height in boxes
    )
    if corners and sum(over) > len(boxes) / 4:
        yield Finding(
            'error',
            'boxes',
            ann_file,
            '',
            f'{sum(over)} of {len(boxes)} boxes reach over the edge of their picture, and none '
            'would as corners: they are (x1, y1, x2, y2)',
            'Write them as [x1, y1, x2 - x1, y2 - y1]',
        )


def check_crowds(ann_file: str, annotations: Sequence[Mapping]) -> Iterator[Finding]:
    """Recognise a file whose objects are all crowds, which MMDetection and COCO's metric ignore.

    Args:
        ann_file: Where they are.
        annotations: That a loader uses.
    """
    if annotations and all(annotation.get('iscrowd') for annotation in annotations):
        yield Finding(
            'error',
            'nothing to learn',
            ann_file,
            '',
            f'all {len(annotations)} annotations have iscrowd=1, so none is trained on or expected',
            'Write iscrowd=0 for single objects, whose masks may be run-length encodings too',
        )


def mask_problem(mask: object, size: Size) -> str:
    """What is wrong with the mask of an object, or nothing.

    Args:
        mask: Polygons, or a run-length encoding.
        size: Of its picture.
    """
    if not mask:
        return 'segmentation is missing or empty'
    if isinstance(mask, dict):
        return _rle_problem(mask, size)
    if not isinstance(mask, list):
        return f'segmentation is a {type(mask).__name__}, not polygons or a run-length encoding'
    if any(map(_is_number, mask)):
        return 'segmentation is a list of numbers, not a list of such lists'
    if not all(isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in mask):
        return 'segmentation has a polygon that is no list of numbers'
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2:
            return (
                f'segmentation has a polygon of {len(polygon)} numbers: an even number, and at '
                'least 6, are three points'
            )
        if not all(map(math.isfinite, polygon)):
            return 'segmentation has a number that is not finite'
    if not any(polygon_area(polygon) for polygon in mask):
        return 'the polygons of segmentation have no area'
    return ''


def _rle_problem(rle: dict, size: Size) -> str:
    counts, shape = rle.get('counts'), rle.get('size')
    if not (isinstance(counts, (list, str)) and isinstance(shape, list)):
        return 'the run-length encoding of segmentation has no counts or no size'
    if shape != [size[1], size[0]]:
        return (
            f'the run-length encoding of segmentation is of size {shape} (height, width), its '
            f'picture of {[size[1], size[0]]}'
        )
    try:
        runs = decode_counts(counts) if isinstance(counts, str) else counts
        total, least = sum(runs), min(runs, default=0)
    except (IndexError, TypeError) as error:
        return f'the run-length encoding of segmentation cannot be read ({error})'
    if total != shape[0] * shape[1] or least < 0:
        return (
            f'the run-length encoding of segmentation has {total} pixels, its size '
            f'{shape[0] * shape[1]}'
        )
    if not sum(runs[1::2]):
        return 'the mask of segmentation has no pixel'
    return ''
