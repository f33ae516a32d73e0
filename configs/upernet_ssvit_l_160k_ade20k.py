# SSViT-L, with the recipe of RMT-L.
# Published: 53.3 mIoU (ADE20K table "UPerNet").
_base_ = './upernet_ssvit_s_160k_ade20k.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5),
    decode_head=dict(in_channels=[112, 224, 448, 640]),
    auxiliary_head=dict(in_channels=448),
)
