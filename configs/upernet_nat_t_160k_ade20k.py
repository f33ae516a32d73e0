# NAT-T. Paper, ADE20K table "UPerNet": 47.1 mIoU (48.4 multi-scale). Released recipe.
_base_ = './upernet_nat_m_160k_ade20k.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.3))
