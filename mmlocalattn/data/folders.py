"""People's folders: what one holds, recognised by looking, as a data set that a config can name."""

from dataclasses import dataclass
from typing import Literal

from mmlocalattn.data.findings import Finding

Task = Literal['detection', 'instance segmentation', 'semantic segmentation', 'classification']
SplitName = Literal['train', 'val', 'test']


@dataclass(frozen=True)
class Split:
    """One part of a data set, in what mmdet, mmseg or mmpretrain reads without conversion.

    Attributes:
        images: Absolute path of the folder that names of pictures are relative to, the
            ``data_prefix`` of images.
        annotations: Absolute path of the ``ann_file``: for detection and instance segmentation a
            COCO file; for semantic segmentation names without their suffix, one a line; for
            classification ``name label`` lines. Empty if the folder is read as it stands (semantic
            segmentation, classification).
        maps: Absolute path of the folder of index maps; empty without them.
        num_images: Pictures, those without objects too.
        num_objects: Objects that are not crowds; of classification the pictures.
    """

    images: str
    annotations: str = ''
    maps: str = ''
    num_images: int = 0
    num_objects: int = 0


@dataclass(frozen=True)
class FolderData:
    """A data set: what a config has to know about it.

    Attributes:
        folder: Absolute path of the user's folder.
        source: Format that was recognised, as ``'YOLO'``.
        task: What it is for.
        classes: Names; label i is the i-th. For COCO files in the order of their categories.
        palette: (R, G, B) of each class, 0 to 255.
        splits: ``'train'`` and ``'val'``, and ``'test'`` if the folder has one.
        masks: Whether each object has a mask.
        img_suffix: Of pictures, of semantic segmentation.
        seg_map_suffix: Of index maps, of semantic segmentation.
        reduce_zero_label: Whether label 0 of index maps is ignored and the others move down by one;
            255 is ignored in any case.
        ignore_orientation: Whether pictures are to be read as they are stored, without obeying
            EXIF's orientation, as the annotations were drawn
            (``color_type='color_ignore_orientation'``).
        object_size: Median of the square root of the area of objects, pixels of the pictures as
            they are; 0 without objects.
        image_size: Median width and median height of the pictures, pixels.
        made_split: Whether the val split was made here.
        converted: What was written, in words; empty if everything is read as it stands.
        findings: What is wrong, or worth knowing.
    """

    folder: str
    source: str
    task: Task
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: dict[SplitName, Split]
    masks: bool = False
    img_suffix: str = '.jpg'
    seg_map_suffix: str = '.png'
    reduce_zero_label: bool = False
    ignore_orientation: bool = False
    object_size: float = 0.0
    image_size: tuple[int, int] = (0, 0)
    made_split: bool = False
    converted: str = ''
    findings: tuple[Finding, ...] = ()

    @property
    def summary(self) -> str:
        """What was recognised, in one line."""
        raise NotImplementedError


def read_folder(
    folder: str,
    out: str,
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    task: Task | None = None,
) -> FolderData:
    """Recognise what a folder holds, check it, and write what the toolboxes cannot read.

    Args:
        folder: Of the user; nothing is written into it.
        out: Folder for what is converted and for lists of a split that is made, as
            ``work_dir/data``. It is written once, whole: a second call for the same data finds it.
            In a distributed run one process calls first.
        val_fraction: Share of the images of a split that is made; above 0 and below 1.
        skip_bad: Go on without pictures and objects that have an error; ``findings`` lists them.
        task: What to read it for, where it holds more than one thing; None for the first found.

    Raises:
        ValueError: If nothing is recognised, or, without ``skip_bad``, something has an error;
            each in one line.
    """
    raise NotImplementedError
