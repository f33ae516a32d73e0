"""What readers of folders make: pictures with what is drawn on them, not yet checked or written."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.geometry import Size
from mmlocalattn.data.tree import SplitName

Task = Literal['detection', 'instance segmentation', 'semantic segmentation', 'classification']
OBJECT_TASKS: tuple[Task, ...] = ('detection', 'instance segmentation')


@dataclass
class ObjectRecord:
    """One object in a picture.

    Attributes:
        label: Index into the classes; negative if its class is unknown.
        entry: Where it stands in its annotation file, as ``'line 3'``.
        box: x, y of the top left corner, width, height, pixels; None to take that of the polygons.
        polygons: x1, y1, x2, y2, ... of each, pixels.
        rle: Run-length encoding of its mask instead, as COCO's ``segmentation``.
        crowd: Whether it stands for many objects, or is not to be counted.
        shares: Whether box and polygons are shares of the picture's width and height, not pixels.
        source: Its entry in a COCO file, which is written as it is.
        bad: Whether it is left out if bad entries are skipped.
        number: Its id, if it has no source.
    """

    label: int
    entry: str
    box: list[float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    rle: dict[str, Any] | None = None
    crowd: bool = False
    shares: bool = False
    source: dict[str, Any] | None = None
    bad: bool = False
    number: int = 0

    @property
    def segmentation(self) -> Any:
        """Its mask, as COCO has it; empty without one."""
        if self.source is not None:
            return self.source.get('segmentation') or []
        return self.rle or self.polygons


@dataclass
class PictureRecord:
    """One picture and what is known about it.

    Attributes:
        path: Absolute.
        ann_file: That it is annotated in; empty for a picture that nothing is written about.
        split: That the folder says it is in; None if it says nothing.
        objects: In it.
        written_size: That the annotation file gives; None without one.
        label: Of classification.
        index_map: Of semantic segmentation, absolute path; empty without one.
        map_size: Its width and height.
        values: Labels that occur in it.
        source: Its entry in a COCO file.
        bad: Whether it is left out if bad entries are skipped.
        number: Its id, if it has no source.
    """

    path: str
    ann_file: str = ''
    split: SplitName | None = None
    objects: list[ObjectRecord] = field(default_factory=list)
    written_size: Size | None = None
    label: int = -1
    index_map: str = ''
    map_size: Size = (0, 0)
    values: frozenset[int] = frozenset()
    source: dict[str, Any] | None = None
    bad: bool = False
    number: int = 0


@dataclass
class Records:
    """All pictures of a folder.

    Attributes:
        source: The format, as ``'YOLO'``.
        task: What it is for.
        classes: Names.
        pictures: In the order that they are written in.
        findings: Of the reader: what it could not read.
        palette: (R, G, B) of each class; empty to choose one.
        category_ids: Of a COCO file, for each class; empty to count from 1.
        map_labels: Label of each value or colour (R, G, B) of the maps.
        convert_maps: Whether the values of the maps are not the labels.
        reduce_zero_label: Whether labels of the maps count from 1.
        native: COCO file and folder of pictures of each split that can stay as it is.
    """

    source: str
    task: Task
    classes: list[str]
    pictures: list[PictureRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    map_labels: dict[Any, int] = field(default_factory=dict)
    convert_maps: bool = False
    reduce_zero_label: bool = False
    native: dict[SplitName | None, tuple[str, str]] = field(default_factory=dict)


MOST_CLASSES = 100_000
"""That a data set may have."""


def check_class_number(folder: str, number: int) -> None:
    """Raise a ValueError if a folder has more classes than a model can tell apart."""
    if number > MOST_CLASSES:
        raise ValueError(
            f'{folder!r} has {number} classes, more than {MOST_CLASSES}: are they numbers of '
            'objects in the place of those of classes?'
        )


def task_of(pictures: list[PictureRecord]) -> Task:
    """Instance segmentation if more than half of the objects have a mask, else detection."""
    objects = [item for picture in pictures for item in picture.objects if not item.crowd]
    with_mask = sum(bool(item.segmentation) for item in objects)
    return 'instance segmentation' if 2 * with_mask > len(objects) else 'detection'
