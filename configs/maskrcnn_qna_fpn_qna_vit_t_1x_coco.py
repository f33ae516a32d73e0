# Mask R-CNN, QnA-ViT-T, whose feature pyramid upsamples with learned queries instead of repeating.
# Published: no table entry (paper and code of QnA, arXiv 2112.11435, have no such neck).
# Our choice: the neck; the rest is as with FPN.
_base_ = './maskrcnn_qna_vit_t_1x_coco.py'

neck = dict(type='mmlocalattn.QnAFPN', in_channels=[64, 128, 256, 512], out_channels=256)
model = dict(neck=dict(_delete_=True, num_outs=5, **neck))
