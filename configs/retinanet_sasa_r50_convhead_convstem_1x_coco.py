# RetinaNet, SASA-ResNet-50 with convolution stem, convolutional FPN and head, COCO, 12 epochs.
# Published: no table entry (table 2 of SASA, arXiv 1906.05909, is for 150 epochs; see
# retinanet_sasa_r50_convhead_convstem_150e_coco.py).
# Our choice: mmdet's 1x recipe of RetinaNet-R50 (SGD, 0.01 for 16 images), SyncBN, nothing frozen.
_base_ = [
    './_base_/models/retinanet_sasa.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    './_base_/coco_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.01))
