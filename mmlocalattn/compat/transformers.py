"""The backbones for the models of transformers that take an ``AutoBackbone``.

Importing this module registers them, so that Mask2Former, RT-DETRv2, D-FINE and others get one by
their config::

    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from mmlocalattn.compat.transformers import LocalAttentionConfig

    backbone = LocalAttentionConfig(backbone_name='ssvit_s', out_indices=(0, 1, 2, 3))
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone))

Needs torch, mmengine and transformers 5, beside which mmpretrain does not import.
"""

import os
from typing import Any

from torch import Tensor, nn

from mmlocalattn import hub
from mmlocalattn.backbones.pyramid import PyramidBackbone

try:
    from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
    from transformers import initialization as init
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import BackboneOutput
except ImportError as error:
    raise ImportError(
        f'mmlocalattn.compat.transformers needs another transformers ({error}): '
        'pip install "transformers>=5.24,<6"'
    ) from error

STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
"""Names of the stages, of strides 4, 8, 16 and 32, in the manner of Swin's there."""


class LocalAttentionConfig(BackboneConfigMixin, PreTrainedConfig):
    """Which backbone, and what it returns; the arguments are named.

    Args:
        backbone_name: One of :func:`mmlocalattn.hub.list_models`.
        num_channels: Of the image.
        options: Of the backbone's class, as ``dict(drop_path_rate=0.1)``: see
            :func:`mmlocalattn.hub.create`.
        out_features: Of ``'stage1'`` to ``'stage4'``, those whose maps are returned; None: as
            ``out_indices``.
        out_indices: Of 0 to 3, the same; None: the last stage.

    Raises:
        ValueError: If there is no such backbone or stage.
    """

    model_type = 'mmlocalattn'

    backbone_name: str = 'ssvit_s'
    num_channels: int = 3
    options: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check what is given, as transformers calls it after the constructor."""
        hub.find_model(self.backbone_name)
        self.stage_names = list(STAGES)
        out_indices = kwargs.pop('out_indices', None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop('out_features', None),
            out_indices=None if out_indices is None else list(out_indices),
        )
        super().__post_init__(**kwargs)


class LocalAttentionBackbone(BackboneMixin, PreTrainedModel):
    """A backbone as transformers wants it.

    Args:
        config: Of it.

    Attributes:
        backbone: The backbone itself.
        num_features: Channels of its stages.
    """

    config_class = LocalAttentionConfig
    base_model_prefix = 'backbone'
    main_input_name = 'pixel_values'
    has_attentions = False

    def __init__(self, config: LocalAttentionConfig) -> None:
        super().__init__(config)
        self.backbone = _build(config)
        self.num_features = [stage.out_channels for stage in self.backbone.stages]
        self._is_built_empty = next(self.backbone.parameters()).is_meta
        self.post_init()

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of each stage that is built: those behind the last returned one are not."""
        return dict(zip(self.stage_names, self.num_features))

    def load(self, pretrained: str | os.PathLike[str]) -> None:
        """Load released weights by their name, or a checkpoint.

        Args:
            pretrained: As for :func:`mmlocalattn.hub.create`.

        Raises:
            OSError, ValueError: Of :func:`mmlocalattn.hub.load_pretrained`.
        """
        hub.load_pretrained(self.backbone, pretrained)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute the maps.

        Args:
            pixel_values: (B, num_channels, H, W).
            output_hidden_states: Return the maps under this name, too.
            output_attentions: Without effect: no attention matrix is ever held.
            return_dict: False for a tuple.
            **kwargs: Without effect.

        Returns:
            A ``BackboneOutput`` whose ``feature_maps`` are (B, C, ceil(H / stride),
            ceil(W / stride)), one for each of ``out_features``.
        """
        maps = self.backbone(pixel_values)
        if return_dict is None:
            return_dict = self.config.return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BackboneOutput(
            feature_maps=maps, hidden_states=maps if output_hidden_states else None
        )
        return output if return_dict else output.to_tuple()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Initialise what is not, by the rules for code of transformers itself.

        Those for others pass over modules whose parts hold all weights, as a backbone's do.
        """
        super()._initialize_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        """Give a backbone that was built without memory the values it is built with.

        transformers does so to load a checkpoint, and then asks for all that was not in it. It
        marks what was, which ``init.copy_`` leaves alone.
        """
        if self._is_built_empty and isinstance(module, PyramidBackbone):
            built = _build(self.config)
            values = {**dict(built.named_parameters()), **dict(built.named_buffers())}
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if name in values:  # not those of norms that a model has replaced
                    init.copy_(tensor, values[name])


def _build(config: LocalAttentionConfig) -> PyramidBackbone:
    return hub.create(
        config.backbone_name,
        in_chans=config.num_channels,
        out_indices=config.out_indices,
        **(config.options or {}),
    ).backbone


AutoConfig.register(LocalAttentionConfig.model_type, LocalAttentionConfig, exist_ok=True)
AutoBackbone.register(LocalAttentionConfig, LocalAttentionBackbone, exist_ok=True)
