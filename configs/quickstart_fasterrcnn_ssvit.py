# The quickstart on a user's own boxes: a narrow SSViT Faster R-CNN, quick on two CPU cores, as in
#
#   python tools/train.py configs/quickstart_fasterrcnn_ssvit.py --data data/trees --minutes 12
#
# The model is that of the quickstart's Mask R-CNN without masks; what differs is our choice, for
# many small objects seen from above, which look the same from each side.
_base_ = './quickstart_maskrcnn_ssvit.py'

model = dict(
    type='FasterRCNN',
    rpn_head=dict(anchor_generator=dict(octave_base_scale=4)),  # squares of 16, 23, 32, 45, ...
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(max_per_img=100)),
)

scale = (800, 800)  # --data chooses a smaller one for objects that are large enough
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=4)
