"""Readers of the formats that people's folders come in.

Each module has one ``read_*(tree)`` that looks at a folder and returns its records, or None if the
folder is of another format.

Why no library reads them: supervision 0.31 draws the polygons of YOLO as masks of whole pixels and
finds other polygons around these, knows no LabelMe and no ImageSets, and stops at the first fault
without naming its line; datumaro 1.13 keeps polygons, but brings pandas, pyarrow and the headless
OpenCV, which takes the place of the other one, and an older Pillow; globox knows boxes alone;
torchvision's VOCDetection returns the XML as a dict. None keeps where an object stands in its file,
which a finding has to name. What is left to do for a format, with ``json``, ``yaml`` and
``xml.etree`` doing the reading, is less than what calling any of them would be.
"""

from mmlocalattn.data.formats.class_folders import read_class_folders
from mmlocalattn.data.formats.coco import read_coco
from mmlocalattn.data.formats.labelme import read_labelme
from mmlocalattn.data.formats.maps import read_maps
from mmlocalattn.data.formats.voc import read_voc
from mmlocalattn.data.formats.yolo import read_yolo

__all__ = [
    'read_class_folders',
    'read_coco',
    'read_labelme',
    'read_maps',
    'read_voc',
    'read_yolo',
]
