# COCO with boxes and masks and the multi-scale training of DETR / Sparse R-CNN, which RMT's 3x
# configs use: the short side is one of 480, 512, ..., 800, or the image is first resized to
# 400, 500 or 600, cropped, and then resized.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

scales = [(short, 1333) for short in range(480, 801, 32)]
resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
crop_then_resize = [
    dict(
        type='RandomChoiceResize',
        scales=[(400, 1333), (500, 1333), (600, 1333)],
        keep_ratio=True,
    ),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
    resize,
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], crop_then_resize]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
