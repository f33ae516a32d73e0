"""Data sets of users, of which nothing but the description exists."""

from dataclasses import replace

from mmlocalattn.data.folders import FolderData, Split

CLASSES = ('ash', 'birch', 'cedar')
PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
MASKS = FolderData(
    folder='/data/trees',
    source='COCO',
    task='instance segmentation',
    classes=CLASSES,
    palette=PALETTE,
    splits=dict(
        train=Split('/data/trees/a', '/data/trees/a.json', num_images=40, num_objects=400),
        val=Split('/data/trees/b', '/data/trees/b.json', num_images=10, num_objects=90),
    ),
    masks=True,
    object_size=40.0,
    image_size=(400, 300),
)
BOXES = replace(MASKS, task='detection', masks=False)
MAPS = FolderData(
    folder='/data/fields',
    source='index maps',
    task='semantic segmentation',
    classes=CLASSES,
    palette=PALETTE,
    splits=dict(
        train=Split('/data/fields/images', '/out/train.txt', '/data/fields/maps', 40),
        val=Split('/data/fields/images', '/out/val.txt', '/data/fields/maps', 10),
    ),
    img_suffix='.tif',
    image_size=(300, 300),
)
LABELS = FolderData(
    folder='/data/leaves',
    source='folders',
    task='classification',
    classes=CLASSES,
    palette=PALETTE,
    splits=dict(
        train=Split('/data/leaves', '/out/train.txt', num_images=40),
        val=Split('/data/leaves', '/out/val.txt', num_images=10),
    ),
    image_size=(200, 200),
)
