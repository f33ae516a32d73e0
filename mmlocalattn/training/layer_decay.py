"""Layer-wise learning-rate decay for models with a backbone of this package."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT
from torch import nn

from mmlocalattn.registry import OPTIM_WRAPPER_CONSTRUCTORS


@ROOT.register_module()  # the name without a scope, deprecated
@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Multiply the learning rate of a layer by ``layer_decay_rate`` for every layer above it.

    Works in every task: the depth of a parameter comes from ``model.backbone.get_layer_depth``
    (mmpretrain's protocol), and everything outside the backbone keeps the whole rate. In mmdet,
    mmseg and mmpretrain alike::

        optim_wrapper = dict(
            constructor='mmlocalattn.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.8, norm_decay_mult=0.0))

    The other keys of ``paramwise_cfg`` are those of MMEngine's constructor; their multipliers and
    the decay multiply.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Add the groups of a module's parameters, one each, to ``params``.

        Raises:
            ValueError: If ``layer_decay_rate`` is missing or not in (0, 1], or the model's backbone
                does not know its layers.
        """
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg needs layer_decay_rate in (0, 1], got {rate!r}')
        backbone: Any = getattr(module, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(
                'layer-wise learning-rate decay needs model.backbone.get_layer_depth, which '
                f'{type(backbone).__name__} does not have'
            )
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            depth, num_layers = backbone.get_layer_depth(names[parameter])
            group['lr_scale'] = rate ** (num_layers - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * group['lr_scale']
            group['param_name'] = names[parameter]
