"""Writing what a data loader needs of a folder: annotation files, lists of names, index maps."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlocalattn.data.geometry import Size
from mmlocalattn.data.map_files import write_map
from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.tree import SPLITS, SplitName, common_folder
from mmlocalattn.data.write_coco import write_coco
from mmlocalattn.files import whole_file


@dataclass(frozen=True)
class Split:
    """One part of a data set, in what mmdet, mmseg or mmpretrain reads without conversion.

    Attributes:
        images: Absolute path of the folder that names of pictures are relative to, the
            ``data_prefix`` of images.
        annotations: Absolute path of the ``ann_file``: for detection and instance segmentation a
            COCO file; for semantic segmentation names without their suffix, one a line; for
            classification ``name label`` lines.
        maps: Absolute path of the folder of index maps; empty without them.
        num_images: Pictures, those without objects too.
        num_objects: Objects that are not crowds; 0 for other tasks.
    """

    images: str
    annotations: str
    maps: str = ''
    num_images: int = 0
    num_objects: int = 0


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        splits: Their files.
        converted: What is not read from the user's folder, in words.
        img_suffix: Of pictures, of semantic segmentation.
        seg_map_suffix: Of index maps.
        reduce_zero_label: Whether labels of the maps count from 1.
    """

    splits: dict[SplitName, Split]
    converted: str = ''
    img_suffix: str = '.jpg'
    seg_map_suffix: str = '.png'
    reduce_zero_label: bool = False


def write_splits(records: Records, folder: Path, final: str, sizes: Mapping[str, Size]) -> Written:
    """Write all splits.

    Args:
        records: With a split for each picture.
        folder: That is written to.
        final: What it will be called.
        sizes: Of the pictures as they are read, width and height.
    """
    by_split = {
        split: pictures
        for split in SPLITS
        if (pictures := [picture for picture in records.pictures if picture.split == split])
    }
    if records.task == 'semantic segmentation':
        return _write_maps(records, folder, final, by_split)
    if records.task == 'classification':
        return Written(_write_labels(folder, final, by_split))
    splits: dict[SplitName, Split] = {}
    converted = ''
    _number(records.pictures)
    for split, pictures in by_split.items():
        objects = sum(not item.crowd for picture in pictures for item in picture.objects)
        if split in records.native:
            path, images = records.native[split]
        else:
            images = common_folder((picture.path for picture in pictures), folder.as_posix())
            name = f'annotations/{split}.json'
            write_coco(folder / name, records, pictures, images, sizes)
            path = os.path.join(final, name)
            converted = f'{records.source} annotations to COCO files in {final}'
            if records.source == 'COCO':
                converted = f'COCO annotations to one file for each split in {final}'
        splits[split] = Split(images, path, '', len(pictures), objects)
    return Written(splits, converted)


def _number(pictures: Sequence[PictureRecord]) -> None:
    """Number pictures and objects from 1; no number is in two splits."""
    for image_id, picture in enumerate(pictures, 1):
        picture.number = image_id
    objects = (item for picture in pictures for item in picture.objects)
    for object_id, item in enumerate(objects, 1):
        item.number = object_id


def _write_labels(
    folder: Path, final: str, by_split: Mapping[SplitName, Sequence[PictureRecord]]
) -> dict[SplitName, Split]:
    splits: dict[SplitName, Split] = {}
    for split, pictures in by_split.items():
        images = common_folder((picture.path for picture in pictures), final)
        lines = [f'{os.path.relpath(picture.path, images)} {picture.label}' for picture in pictures]
        _write_lines(folder / f'{split}.txt', lines)
        path = os.path.join(final, f'{split}.txt')
        splits[split] = Split(images, path, '', len(pictures))
    return splits


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as partial:
        partial.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def _write_maps(
    records: Records,
    folder: Path,
    final: str,
    by_split: Mapping[SplitName, Sequence[PictureRecord]],
) -> Written:
    suffixes = None if records.convert_maps else _suffixes(by_split.values())
    endings = {os.path.splitext(picture.path)[1] for picture in records.pictures}
    img_suffix = endings.pop() if len(endings) == 1 else ''
    splits: dict[SplitName, Split] = {}
    for split, pictures in by_split.items():
        images = common_folder((picture.path for picture in pictures), final)
        names = [os.path.relpath(picture.path, images) for picture in pictures]
        if suffixes:
            maps = common_folder((picture.index_map for picture in pictures), final)
            names = [name.removesuffix(suffixes[0]) for name in names]
        else:
            maps = os.path.join(final, 'maps', split)
            names = [name.removesuffix(img_suffix) for name in names]
            for name, picture in zip(names, pictures, strict=True):
                target = folder / 'maps' / split / f'{name}.png'
                write_map(target, picture.index_map, records.map_labels)
        _write_lines(folder / f'{split}.txt', names)
        path = os.path.join(final, f'{split}.txt')
        splits[split] = Split(images, path, maps, len(pictures))
    if suffixes:
        return Written(splits, '', *suffixes, records.reduce_zero_label)
    what = 'colour masks' if 'colour' in records.source else 'maps'
    return Written(splits, f'{what} to index maps in {final}', img_suffix)


def _suffixes(splits: Iterable[Sequence[PictureRecord]]) -> tuple[str, str] | None:
    """How names of pictures and of their maps end, if that is all that they differ in."""
    endings = set()
    for pictures in splits:
        images = common_folder((picture.path for picture in pictures), '')
        maps = common_folder((picture.index_map for picture in pictures), '')
        for picture in pictures:
            first = os.path.relpath(picture.path, images)
            second = os.path.relpath(picture.index_map, maps)
            length = _common_length(os.path.splitext(first)[0], os.path.splitext(second)[0])
            endings.add((first[length:], second[length:]))
    return endings.pop() if len(endings) == 1 else None


def _common_length(first: str, second: str) -> int:
    """Number of letters at the beginning of two texts that are the same."""
    differ = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differ, min(len(first), len(second)))
