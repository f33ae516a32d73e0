"""Every fault of index maps that can be known before a model is built, and the line it gives."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from broken_data import (
    SPLITS,
    Change,
    check,
    draw,
    each,
    folder,  # noqa: F401
    full,
    map_config,
    said,
    set_,
    write_image,
)

COUNTS = 'Write 0 to 2, or name the classes in metainfo and num_classes'
TWO = 'Write the index of its class for each pixel: for two classes 0 and 1, not 0 and 255'


def both(value: object) -> Change:
    return each(draw(value, '1'), draw(value, '2'))


MAP_ERRORS = [
    (
        draw(np.random.default_rng(0).integers(0, 2, (30, 40, 3), np.uint8)),
        'maps_train/1.png: 3 channels where one of class indices is meant (it has 8 colours). '
        'Write the index of its class for each pixel',
    ),
    (
        draw(np.zeros((30, 40, 3), np.uint8)),
        'maps_train/1.png: 3 channels where one of class indices is meant (its channels are equal, '
        'so keep one). Write the index of its class for each pixel',
    ),
    (
        draw(full(7)),
        'maps_train/1.png: 7 is of no class: there are 3, and 255 is ignored. ' + COUNTS,
    ),
    (
        draw(full(256, np.uint16)),
        'maps_train/1.png: 256 is of no class: there are 3, and 255 is ignored. ' + COUNTS,
    ),
    (
        draw(np.repeat([[1, 2, 3, 3]], 30, 0).repeat(10, 1).astype(np.uint8)),
        'maps_train/1.png: labels 1, 2, 3, of which 3 is of no class: there are 3, and 255 is '
        'ignored. If labels count from 1, set reduce_zero_label=True; else write 0 to 2',
    ),
    (
        draw(np.zeros((15, 20), np.uint8)),
        "maps_train/1.png: it is 20x15 (width x height), its picture 'train/1.jpg' 40x30. Make the "
        'maps of the size of their pictures, without interpolation',
    ),
    (
        lambda cfg: write_image(Path('train/1.jpg'), orientation=6),
        "maps_train/1.png: it is 40x30 (width x height), its picture 'train/1.jpg' 30x40. One of "
        'them is turned: see the EXIF orientation of the picture',
    ),
    (
        lambda cfg: Path('maps_train/1.png').unlink(),
        'maps_train/1.png: this index map does not exist. Put it there, or take it out of the data '
        'set',
    ),
    (
        lambda cfg: Path('maps_train/1.png').write_text('no map'),
        'maps_train/1.png: this index map cannot be read (cannot identify image file '
        "'maps_train/1.png'). Copy it again, or take it out of the data set",
    ),
    (
        lambda cfg: (
            cv2.imwrite('maps_train/1.jpg', full(1)),
            Path('maps_train/1.jpg').rename('maps_train/1.png'),
        ),
        'maps_train/1.png: JPEG changes the indices where colours change. Write maps as PNG files, '
        'from what they were made of',
    ),
    (
        both(np.repeat([[0, 255]], 30, 0).repeat(20, 1).astype(np.uint8)),
        "maps_train: only 'ground' occurs besides the ignored 255 in all 2 maps: the model would "
        'learn to answer it everywhere. ' + TWO,
    ),
    (
        both(full(255)),
        'maps_train: only the ignored label occurs in all 2 maps: the loss would be 0 and mIoU '
        'nan. Write the indices of the classes, 0 to 2, into the maps',
    ),
    (
        each(both(full(1)), set_('train_dataloader.dataset.reduce_zero_label', True)),
        "maps_train: only 'ground' occurs in all 2 maps: the model would learn to answer it "
        'everywhere (reduce_zero_label=True ignores label 0 and takes 1 for the first class). '
        + TWO,
    ),
    (
        set_('train_dataloader.dataset.img_suffix', '.png'),
        "train: no image of it ends with '.png', which train_dataloader asks for: 2 end with "
        "'.jpg'. Set train_dataloader.dataset.img_suffix='.jpg'",
    ),
    (
        set_('model.auxiliary_head.0.num_classes', 150),
        'model.auxiliary_head.0.num_classes: 150, but the data of train_dataloader have 3 classes, '
        "('ground', 'cat', 'dog'): it would predict classes that have no name. Set "
        'model.auxiliary_head.0.num_classes=3, or the classes in metainfo',
    ),
    (
        each(
            set_('model.decode_head.num_classes', 1),
            set_('model.auxiliary_head', None),
            *(
                set_(f'{split}_dataloader.dataset.metainfo.classes', ('ground',))
                for split in SPLITS
            ),
            both(full(0)),
        ),
        'UPerHead: decode_head.num_classes is 1, and a softmax over one class is always right: the '
        "loss would be 0. Name the rest, classes=('background', ...), and set num_classes=2",
    ),
    (
        set_('model.decode_head.loss_decode', dict(class_weight=[1.0, 2.0])),
        'UPerHead.loss_decode.class_weight: 2 weights for 3 classes. Give one for each class',
    ),
    (
        set_('train_dataloader.batch_size', 1),
        'UPerHead: its BN sees one value for each channel and image, and '
        'train_dataloader.batch_size is 1, where a batch norm needs two. Set '
        'train_dataloader.batch_size=2 or more, and train_dataloader.drop_last=True',
    ),
    (
        lambda cfg: [
            cfg[f'{split}_dataloader'].dataset.metainfo.pop('classes') for split in SPLITS
        ],
        'train_dataloader.dataset.metainfo.classes: there are no names of classes, and the metrics '
        "need them. Set metainfo=dict(classes=('background', ...))",
    ),
]


MAP_WARNINGS = [
    (
        both(np.repeat([[0, 1]], 30, 0).repeat(20, 1).astype(np.uint8)),
        "warning: maps_train: 'dog', class 2, occurs in none of all 2 maps. Draw it, or take it "
        'out of metainfo.classes and num_classes',
    ),
]


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize(('change', 'expected'), MAP_ERRORS)
def test_errors_of_index_maps(change: Change, expected: str) -> None:
    check(map_config(), change, expected)


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize(('change', 'expected'), MAP_WARNINGS)
def test_warnings_of_index_maps(
    change: Change, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in said(map_config(), change, capsys)
