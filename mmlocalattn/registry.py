"""The package's model registry, a child of MMEngine's.

``type='mmlocalattn.SSViT'`` resolves from the scope of mmdet, mmseg or mmpretrain without
``custom_imports``: MMEngine imports this module by its name, and the registry imports its
``locations`` on first use.
"""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='mmlocalattn',
    locations=['mmlocalattn.backbones', 'mmlocalattn.heads'],
)
