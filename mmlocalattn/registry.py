"""The package's registries, children of MMEngine's.

``type='mmlocalattn.SSViT'`` or ``constructor='mmlocalattn.LayerDecayOptimWrapperConstructor'``
resolves from the scope of mmdet, mmseg, mmpretrain or any other toolbox without ``custom_imports``:
MMEngine imports this module by its name, and a registry imports its ``locations`` on first use.
"""

from mmengine import registry as roots
from mmengine.registry import Registry


def _child(parent: Registry, *locations: str) -> Registry:
    """A child of MMEngine's ``parent``, filled by importing the modules ``locations``."""
    return Registry(parent.name, parent=parent, scope='mmlocalattn', locations=list(locations))


MODELS = _child(
    roots.MODELS,
    *('mmlocalattn.backbones', 'mmlocalattn.heads', 'mmlocalattn.layers.sync_norm'),
)
OPTIM_WRAPPER_CONSTRUCTORS = _child(roots.OPTIM_WRAPPER_CONSTRUCTORS, 'mmlocalattn.training')
HOOKS = _child(roots.HOOKS, 'mmlocalattn.training', 'mmlocalattn.visualisation.pictures_hook')
LOOPS = _child(roots.LOOPS, 'mmlocalattn.training')
METRICS = _child(roots.METRICS, 'mmlocalattn.training')
WEIGHT_INITIALIZERS = _child(roots.WEIGHT_INITIALIZERS, 'mmlocalattn.converters.by_name')

# Nothing of the package's own yet. As children they let code whose scope this is use MMEngine's,
# mmcv's and others' without a warning that the scope has no such registry.
TRANSFORMS = _child(roots.TRANSFORMS)
