"""Every fault of COCO data that can be known before a model is built, and the line it gives."""

from pathlib import Path

import pytest
from broken_data import (
    SPLITS,
    Change,
    annotation,
    check,
    classes,
    coco_config,
    each,
    first,
    folder,  # noqa: F401
    said,
    set_,
    with_file,
    without,
    write_image,
)

CAT_DOG = "('cat', 'dog')"
MEND = 'Mend it, or take it out'
GIVE_MASK = 'Give it a mask, or take it out; a model without masks needs none'
MASKED = f'train.json, annotation 1: segmentation %s. {GIVE_MASK}'
COCO_ERRORS = [
    (
        classes('dog', 'cat'),
        "train.json: metainfo.classes has another order than the file, from 'dog' on, so objects "
        "would be given the names of other classes; classes=('dog', 'cat'), the file has "
        f"{CAT_DOG}. Write metainfo.classes in the file's order: classes={CAT_DOG}",
    ),
    (
        classes('catt', 'dog'),
        "train.json: ('catt',) in metainfo.classes is no category of this file (is it 'cat'?), and "
        "every later label would move up by one; classes=('catt', 'dog'), the file has "
        f'{CAT_DOG}. Write the names as the file does, or take it out of the classes and '
        'num_classes',
    ),
    (
        classes('car', 'bus'),
        'train.json: none of the names in metainfo.classes is a category of this file; '
        f"classes=('car', 'bus'), the file has {CAT_DOG}. Give every data set of the config "
        f'metainfo=dict(classes={CAT_DOG}), and the model num_classes=2',
    ),
    (
        with_file(lambda content: content['categories'].append(dict(id=3, name='cat'))),
        "train.json: two categories are called 'cat', so later labels would move up by one; "
        f"classes={CAT_DOG}, the file has ('cat', 'dog', 'cat'). Give each category of the file a "
        'name of its own',
    ),
    (
        set_('train_dataloader.dataset.metainfo.classes', ('cat',)),
        "val_dataloader.dataset.metainfo.classes: ('cat', 'dog'), but those of train_dataloader "
        "are ('cat',): a label would mean two things. Give all data sets the same metainfo",
    ),
    (
        lambda cfg: (
            classes(*'ca')(cfg)
            or [  # a text instead of a list of names
                cfg[f'{split}_dataloader'].dataset.metainfo.update(classes='cat')
                for split in SPLITS
            ]
        ),
        "train_dataloader.dataset.metainfo.classes: 'cat' is a text, not a list of names. One "
        "class is written with a comma: classes=('cat',)",
    ),
    (
        classes('cat', 'cat'),
        "train_dataloader.dataset.metainfo.classes: 'cat' is in it 2 times. Name each class once",
    ),
    (
        set_('model.roi_head.mask_head.num_classes', 80),
        'model.roi_head.mask_head.num_classes: 80, but the data of train_dataloader have 2 '
        f'classes, {CAT_DOG}: it would predict classes that have no name. Set '
        'model.roi_head.mask_head.num_classes=2, or the classes in metainfo',
    ),
    (
        set_('model.roi_head.bbox_head.num_classes', 1),
        'model.roi_head.bbox_head.num_classes: 1, but the data of train_dataloader have 2 '
        f'classes, {CAT_DOG}: there is no output for the rest. Set '
        'model.roi_head.bbox_head.num_classes=2, or the classes in metainfo',
    ),
    (
        lambda cfg: cfg.model.roi_head.bbox_head.pop('num_classes'),  # its default is 80
        'model.roi_head.bbox_head.num_classes: 80, but the data of train_dataloader have 2 '
        f'classes, {CAT_DOG}: it would predict classes that have no name. Set '
        'model.roi_head.bbox_head.num_classes=2, or the classes in metainfo',
    ),
    (
        first('images', width=30, height=40),
        "train.json, image 'train/1.jpg': 30x40 (width x height) in the file, but the picture is "
        '40x30 (width x height). Write the width and height of the pictures into the file, and see '
        'that its boxes fit',
    ),
    (
        lambda cfg: write_image(Path('train/1.jpg'), orientation=6),
        "train.json, image 'train/1.jpg': 40x30 (width x height) in the file, but the picture is "
        '30x40 (width x height) once its EXIF orientation is obeyed. If it was annotated as it is '
        "stored, dict(type='LoadImageFromFile', color_type='color_ignore_orientation') in every "
        'pipeline; else mend the file',
    ),
    (
        each(
            lambda cfg: write_image(Path('train/1.jpg'), 30, 40, orientation=6),
            set_('train_dataloader.dataset.pipeline.0.color_type', 'unchanged'),
        ),
        "train.json, image 'train/1.jpg': 40x30 (width x height) in the file, but the picture is "
        '30x40 (width x height) as it is stored, and turned by its EXIF orientation only for who '
        "obeys it. Obey it: dict(type='LoadImageFromFile', color_type='color') in every pipeline",
    ),
    (
        lambda cfg: Path('train/1.jpg').unlink(),
        'train/1.jpg: this image does not exist. Put it there, or take it out of the data set',
    ),
    (
        lambda cfg: Path('train/1.jpg').write_bytes(Path('train/2.jpg').read_bytes()[:700]),
        'train/1.jpg: this image cannot be read (image file is truncated (\\d+ bytes not '
        'processed)). Copy it again, or take it out of the data set',
    ),
    (
        lambda cfg: Path('train/1.jpg').write_text('no picture'),
        'train/1.jpg: this image cannot be read (cannot identify image file). Copy it again, or '
        'take it out of the data set',
    ),
    (without('segmentation'), MASKED % 'is missing or empty'),
    (first('annotations', segmentation=[]), MASKED % 'is missing or empty'),
    (
        first('annotations', segmentation=[[1, 2, 3, 4]]),
        MASKED % 'has a polygon of 4 numbers: an even number, and at least 6, are three points',
    ),
    (
        first('annotations', segmentation=dict(size=[10, 20], counts=[100, 100])),
        MASKED.replace('segmentation', 'the run-length encoding of segmentation')
        % 'is of size [10, 20] (height, width), its picture of [30, 40]',
    ),
    (
        first('annotations', bbox=[2, 3, float('nan'), 5]),
        'train.json, annotation 1: bbox [2, 3, nan, 5] or area 120 is not a finite number: the '
        'loss becomes NaN. Write it anew, or take it out',
    ),
    (
        without('bbox'),
        'train.json, annotation 1: bbox is None. Write it as [x, y, width, height] in pixels',
    ),
    (
        with_file(
            lambda content: [entry.update(bbox=[20, 8, 30, 16]) for entry in content['annotations']]
        ),
        'train.json: 2 of 2 boxes reach over the edge of their picture, and none would as corners: '
        'they are (x1, y1, x2, y2). Write them as [x1, y1, x2 - x1, y2 - y1]',
    ),
    (
        with_file(
            lambda content: [
                entry.update(bbox=[0.1, 0.2, 0.5, 0.5]) for entry in content['annotations']
            ]
        ),
        'train.json: no number of any bbox is above 1: they are shares of the picture, not pixels. '
        'Multiply them by the width and height of the picture',
    ),
    (
        first('annotations', id=2),
        'train.json, annotation 2: two annotations have this id, so one of them would be lost. '
        'Number the annotations anew',
    ),
    (
        first('images', id=2),
        'train.json, image 2: two images have this id, so one of them would be lost. Number the '
        'images anew',
    ),
    (
        with_file(lambda content: content['annotations'].clear()),
        'train.json: of its 2 images and 0 annotations nothing is left for train_dataloader: '
        'objects of the classes are in 0 images, and filter_cfg leaves 2. See metainfo.classes, '
        'the ids of the categories, and filter_cfg.min_size',
    ),
    (
        with_file(lambda content: [entry.update(iscrowd=1) for entry in content['annotations']]),
        'train.json: all 2 annotations have iscrowd=1, so none is trained on or expected. Write '
        'iscrowd=0 for single objects, whose masks may be run-length encodings too',
    ),
    (
        set_('train_dataloader.dataset.filter_cfg', dict(min_size=64)),
        'train.json: of its 2 images and 2 annotations nothing is left for train_dataloader: '
        'objects of the classes are in 2 images, and filter_cfg leaves 0. See metainfo.classes, '
        'the ids of the categories, and filter_cfg.min_size',
    ),
    (
        lambda cfg: Path('train.json').write_text('{"images": ['),
        'train.json: train_dataloader cannot read it: it is no JSON file: Expecting value: line 1 '
        "column 13 (char 12). Write it in COCO's format",
    ),
    (
        lambda cfg: Path('train.json').write_text(Path('train.json').read_text(), 'utf-8-sig'),
        'train.json: train_dataloader cannot read it: it is written in utf-8-sig: save it as UTF-8 '
        "without byte-order mark. Write it in COCO's format",
    ),
    (
        with_file(lambda content: content['images'][1].pop('width')),
        'train.json: train_dataloader cannot read it: entry 1 of its images has no width. Write it '
        "in COCO's format",
    ),
    (
        lambda cfg: cfg.merge_from_dict(
            dict(model=dict(_delete_=True, type='RetinaNet', bbox_head=dict(num_classes=2)))
        ),
        "val_evaluator.metric: 'segm' compares masks, which RetinaNet does not predict. Set "
        "val_evaluator.metric='bbox'",
    ),
    (
        set_('train_dataloader.dataset.pipeline.1.with_mask', False),
        'train_dataloader.dataset.pipeline: LoadAnnotations loads no masks, and the model has a '
        "mask_head. Write dict(type='LoadAnnotations', with_bbox=True, with_mask=True)",
    ),
    (
        set_('val_evaluator.ann_file', 'no.json'),
        "'no.json', which val_evaluator reads, does not exist. Set val_evaluator.ann_file to the "
        'annotations of val_dataloader.',
    ),
    (
        each(
            with_file(lambda content: content['images'][0].update(file_name='1.png')),
            set_('val_evaluator.ann_file', 'train.json'),
            set_('train_dataloader', None),
        ),
        'train.json, image 1: val_evaluator compares with another data set than val_dataloader '
        "reads: there the image is '1.jpg' of val.json, here '1.png'. Give val_evaluator the "
        'ann_file of val_dataloader',
    ),
    (
        each(
            with_file(
                lambda content: [
                    entry.update(bbox=[1, 1, 3, 3]) for entry in content['annotations']
                ]
            ),
            set_('val_evaluator.ann_file', 'train.json'),
            set_('train_dataloader', None),
        ),
        'train.json, image 1: val_evaluator compares with other objects than val_dataloader reads '
        'for it from val.json: they are two data sets. Give val_evaluator the ann_file of '
        'val_dataloader',
    ),
    (
        with_file(lambda content: content['images'][1].update(width='40')),
        "train.json: train_dataloader cannot read it: width of entry 1 of its images is '40'. "
        "Write it in COCO's format",
    ),
    (
        set_('train_dataloader.dataset.type', 'KittenDataset'),
        'train_dataloader.dataset, KittenDataset: it cannot be made: KittenDataset is not in the '
        'mmdet::dataset registry. .*',
    ),
]

DROPPED = f'so it is not trained on. {MEND}'
COCO_WARNINGS = [
    (
        first('annotations', bbox=[2, 3, 0.5, 12]),
        'warning: train.json, annotation 1: bbox [2, 3, 0.5, 12]: it is less than a pixel wide or '
        f'high, so it is not trained on and counts as missed. {MEND}',
    ),
    (
        first('annotations', area=0),
        f'warning: train.json, annotation 1: bbox [2, 3, 10, 12]: its area is 0, {DROPPED}',
    ),
    (
        first('annotations', bbox=[50, 3, 10, 12]),
        'warning: train.json, annotation 1: bbox [50, 3, 10, 12]: it is outside of its picture, '
        f'40x30, {DROPPED}',
    ),
    (
        first('annotations', bbox=[35, 3, 10, 12]),
        'warning: train.json, annotation 1: bbox [35, 3, 10, 12]: it reaches 5 pixels over the '
        f'edge of its picture, 40x30. {MEND}',
    ),
    (
        first('annotations', image_id=7),
        'warning: train.json, annotation 1: image_id 7 is not that of an image of the file, so it '
        'is not used. Add an image, or take the annotation out',
    ),
    (
        with_file(
            lambda content: content['annotations'].append({**annotation(3, 9), 'image_id': 1})
        ),
        'warning: train.json, annotation 3: category_id 9 is not that of a category of the file, '
        'so it is not used. Add a category, or take the annotation out',
    ),
    (
        first('annotations', category_id=2),
        "warning: train.json, category 'cat': it has no annotation, so nothing is learned about "
        'it. Annotate it, or take it out of metainfo.classes and num_classes',
    ),
    (
        each(
            with_file(
                lambda content: content['images'].append({**content['images'][0], 'id': 3}), 'val'
            ),
        ),
        "warning: val.json, image '1.jpg': the file is in the images twice, each time with a part "
        'of its objects. Give its annotations one image_id',
    ),
    (
        each(
            lambda cfg: Path('all.json').write_text(Path('val.json').read_text()),
            with_file(lambda content: content['images'].pop(), 'val'),
            with_file(lambda content: content['annotations'].pop(), 'val'),
            set_('val_evaluator.ann_file', 'all.json'),
        ),
        'warning: all.json: val_evaluator expects 2 images and val_dataloader reads 1: every '
        'object in the others counts as missed. Give val_evaluator the ann_file of val_dataloader',
    ),
    (
        each(
            classes('cat'),
            set_('model.roi_head.bbox_head.num_classes', 1),
            set_('model.roi_head.mask_head.num_classes', 1),
        ),
        "note: train.json: 1 of 2 categories are used, without ('dog',)",
    ),
    (
        each(
            set_('train_dataloader.dataset.filter_cfg', dict(filter_empty_gt=True)),
            with_file(lambda content: content['annotations'][1].update(image_id=1)),
        ),
        'note: train.json: train_dataloader trains on 1 of its 2 images: filter_cfg leaves out '
        'those that are without objects or too small',
    ),
    (
        without('area'),
        'note: train.json, annotation 1: 1 of 2 annotations have no area or no iscrowd: width * '
        'height of the box and 0 are taken',
    ),
    (
        lambda cfg: cfg.val_dataloader.dataset.data_prefix.update(img='train/'),
        'note: train/1.jpg: 2 of the 2 images of val_dataloader, this one among them, are those of '
        'train_dataloader too: what is measured on them is no test',
    ),
    (
        set_('auto_scale_lr', dict(base_batch_size=16)),
        'note: optim_wrapper: its learning rate is made for batches of 16 images, and these have '
        '2. --auto-scale-lr scales it',
    ),
    (
        set_('train_dataloader.dataset.type', 'XMLDataset'),
        'note: train_dataloader.dataset, XMLDataset: no check knows this format: see '
        'browse_dataset',
    ),
]


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize(('change', 'expected'), COCO_ERRORS)
def test_errors_of_coco_data(change: Change, expected: str) -> None:
    check(coco_config(), change, expected)


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize(('change', 'expected'), COCO_WARNINGS)
def test_warnings_of_coco_data(
    change: Change, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in said(coco_config(), change, capsys)
