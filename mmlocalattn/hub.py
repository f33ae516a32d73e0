"""Backbones by name for code that knows no configs, as ``timm.create_model`` gives its own.

Needs torch and mmengine: neither mmcv nor a toolbox of OpenMMLab is imported.
"""

import difflib
import fnmatch
import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmlocalattn import backbones
from mmlocalattn.adapt.zoo import BACKBONES, ZooEntry
from mmlocalattn.backbones.pyramid import PyramidBackbone
from mmlocalattn.converters.released import RELEASED
from mmlocalattn.training.weights import load_content, load_weights

_STRIDE = 4
"""Of the first stage, in every family; each stage doubles it."""


class FeatureInfo:
    """What the stages of a backbone give, by the interface of timm's class of this name.

    Each method answers for the maps that are returned, or with ``idx`` for that stage or for each
    of those stages.

    Attributes:
        info: ``num_chs``, ``reduction``, ``module`` and ``index`` of each stage.
        out_indices: Of the stages whose maps are returned.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = list(info)
        self.out_indices = tuple(out_indices)

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the maps."""
        return self.get('num_chs', idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Strides of the maps, in pixels of the image."""
        return self.get('reduction', idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Names of the stages in the module."""
        return self.get('module', idx)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """One entry of ``info``."""
        dicts = self.get_dicts(idx=idx)
        return dicts[key] if isinstance(dicts, dict) else [each[key] for each in dicts]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """The entries ``keys`` of ``info``, all of them if None."""
        if isinstance(idx, int):
            entry = self.info[idx]
            return entry if keys is None else {key: entry[key] for key in keys}
        stages = self.out_indices if idx is None else idx
        return [self.get_dicts(keys, stage) for stage in stages]

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return self.info[idx]

    def __len__(self) -> int:
        return len(self.info)


class FeatureListNet(nn.Module):
    """A backbone that returns the list of its maps, as timm's class of this name.

    Attributes:
        backbone: A :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`. Names of weights begin
            with ``backbone.``, as those of converted checkpoints and of detectors do.
        feature_info: Channels and strides of the maps.
    """

    def __init__(self, backbone: PyramidBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_info = FeatureInfo(
            [
                dict(
                    num_chs=stage.out_channels,
                    reduction=_STRIDE << index,
                    module=f'backbone.stages.{index}',
                    index=index,
                )
                for index, stage in enumerate(backbone.stages)
            ],
            backbone.out_indices,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to one (B, C, ceil(H / stride), ceil(W / stride)) map per stage."""
        return list(self.backbone(x))


def list_models(pattern: str = '*') -> list[str]:
    """The names that :func:`create` knows, those that match a pattern such as ``'ssvit_*'``."""
    return fnmatch.filter(BACKBONES, pattern)


def find_model(name: str) -> ZooEntry:
    """The entry of a backbone.

    Raises:
        ValueError: If there is none of this name; names those that are close.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES) or list(BACKBONES)
        raise ValueError(f'no backbone is called {name!r}: take {", ".join(near)}')
    return BACKBONES[name]


def list_released(pattern: str = '*') -> list[str]:
    """The released weights that :func:`create` takes, those that match a pattern."""
    return fnmatch.filter(RELEASED, pattern)


def create(
    name: str,
    features_only: bool = True,
    in_chans: int = 3,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    pretrained: str | os.PathLike[str] | None = None,
    **options: Any,
) -> FeatureListNet:
    """Build a backbone by its name.

    Args:
        name: One of :func:`list_models`.
        features_only: True: there are no classifiers here.
        in_chans: Channels of the image.
        out_indices: Increasing numbers of the stages whose maps are returned. Stages behind the
            last one are not built.
        pretrained: Name of released weights, which are downloaded once:
            :data:`~mmlocalattn.converters.released.RELEASED`. Or path of a checkpoint whose names
            of weights begin with ``backbone.``: a converted release, a detector trained with
            MMEngine, or the weights of what this returns. Output norms may be missing. None leaves
            random weights.
        **options: Of the backbone's class, as ``drop_path_rate=0.1`` or ``output_norm=False``; the
            others are those with which its detectors are trained.

    Returns:
        Its forward pass gives the list of maps, ``feature_info.channels()`` and
        ``feature_info.reduction()`` their channels and strides.

    Raises:
        OSError: If there is no such checkpoint, or it cannot be downloaded.
        ValueError: If the name is unknown, the checkpoint is of another model, or an argument does
            not fit.
    """
    entry = find_model(name)
    if not features_only:
        raise ValueError(
            'features_only must be True: a classifier is built from a config, see configs/'
        )
    if isinstance(pretrained, bool) and pretrained:
        raise ValueError(
            'pretrained must be a name of released weights, as in hub.list_released(), or the path '
            'of a checkpoint, got True'
        )
    config = entry.backbone('mmdet')
    cls = getattr(backbones, config.pop('type').removeprefix('mmlocalattn.'))
    config |= dict(in_channels=in_chans, out_indices=out_indices) | options
    model = FeatureListNet(cls(**config))
    if pretrained:
        load_pretrained(model.backbone, pretrained)
    return model


def load_pretrained(backbone: PyramidBackbone, pretrained: str | os.PathLike[str]) -> None:
    """Load released weights by their name, or a checkpoint, as :func:`create` does it.

    Raises:
        OSError: If there is no such checkpoint, or it cannot be downloaded.
        ValueError: If it is of another model.
    """
    # Imports all releases, for which random weights need not wait.
    from mmlocalattn.converters.by_name import load_released, may_be_absent

    pretrained, optional = os.fspath(pretrained), may_be_absent(backbone)
    if pretrained in RELEASED:
        load_content(backbone, load_released(pretrained).weights, pretrained, 'backbone.', optional)
    else:
        load_weights(backbone, pretrained, 'backbone.', optional)
