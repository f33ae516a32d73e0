"""The skeleton that all backbones share: a stem, stages of falling resolution, feature maps."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Stage(nn.Module):
    """Blocks of one resolution, after the step down to it.

    Args:
        blocks: Each maps (B, H, W, C) to the same shape.
        out_channels: C.
        downsample: Maps the previous stage's (B, H, W, C) to this stage's; None for the first
            stage.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], out_channels: int, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.ModuleList(blocks)

    def shared_inputs(self, x: Tensor) -> tuple:
        """What every block of the stage takes beside the map (B, H, W, C). Families override it."""
        return ()

    def forward(self, x: Tensor, with_cp: bool = False) -> Tensor:
        """(B, H, W, C) of the previous stage to (B, H', W', out_channels)."""
        x = self.downsample(x)
        shared = self.shared_inputs(x)
        for block in self.blocks:
            if with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, *shared, use_reentrant=False)
            else:
                x = block(x, *shared)
        return x


class PyramidBackbone(BaseModule):
    """Run a stem and stages, and hand out the maps that detectors and others ask for.

    Inside, maps are channels last; the outputs are contiguous NCHW, because mmcv's RoIAlign and
    other compiled ops read them as such without a check. Stages after the last one in
    ``out_indices`` are not kept: a parameter that takes part in nothing stalls
    DistributedDataParallel.

    A family builds its stem and stages from arguments of its own, ``in_channels`` (of the image)
    and ``drop_path_rate`` (of the last block) among them, and hands on all others. Those are
    described here alone; an unknown one is a TypeError.

    Args:
        stem: (B, in_channels, H, W) image to (B, H', W', C) map.
        stages: From high to low resolution.
        out_indices: Increasing numbers of the stages whose maps are returned.
        output_norm: Pass each returned map through a LayerNorm of its own, as detectors and
            segmentors of this kind of backbone do. Pre-trained classifiers have no weights for
            them.
        frozen_stages: -1 trains everything, 0 freezes the stem, ``i`` the stem and the first
            ``i`` stages. Frozen parts stay in eval mode. Output norms are never frozen.
        norm_eval: Keep the statistics of BatchNorm and SyncBatchNorm layers fixed in training.
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
        init_cfg: MMEngine's, for example ``dict(type='Pretrained', checkpoint=...,
            prefix='backbone.')``. None keeps the initialisation of the constructor.
        norm_eps: Of the output norms.

    Raises:
        ValueError: If ``out_indices`` or ``frozen_stages`` do not match the stages.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(init_cfg)
        out_indices = tuple(out_indices)
        valid = sorted({*out_indices} & {*range(len(stages))})
        if not out_indices or list(out_indices) != valid:
            raise ValueError(
                f'out_indices must be increasing stage numbers in 0..{len(stages) - 1}, '
                f'got {out_indices=}'
            )
        stages = stages[: out_indices[-1] + 1]
        if not -1 <= frozen_stages <= len(stages):
            raise ValueError(f'frozen_stages must be in -1..{len(stages)}, got {frozen_stages=}')
        self.out_indices = out_indices
        self.out_channels = tuple(stages[index].out_channels for index in out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self._depths = [len(stage.blocks) for stage in stages]
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.output_norms = nn.ModuleDict()
        for index in out_indices:
            channels = stages[index].out_channels
            self.output_norms[str(index)] = (
                nn.LayerNorm(channels, eps=norm_eps) if output_norm else nn.Identity()
            )
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: (B, in_channels, H, W), any H, W >= 1.

        Returns:
            One contiguous (B, C, H', W') map for each of ``out_indices``.
        """
        x = self.stem(x)
        outputs = []
        for index, stage in enumerate(self.stages):
            x = stage(x, self.with_cp)
            if index in self.out_indices:
                outputs.append(self.output_norms[str(index)](x).permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)

    def train(self, mode: bool = True) -> 'PyramidBackbone':
        """Set the mode, except of frozen parts and, with ``norm_eval``, of batch statistics."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = 'backbone.') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, by mmpretrain's protocol.

        Args:
            param_name: Full name in the model.
            prefix: Name of the backbone in the model, with the dot.

        Returns:
            The depth, and the number of depths: 0 is the stem, 1, 2, ... the blocks (a
            downsampling counts to the block behind it), the last one the output norms and
            everything outside the backbone.
        """
        num_layers = sum(self._depths) + 2
        if param_name.startswith(f'{prefix}stem.'):
            return 0, num_layers
        if not param_name.startswith(f'{prefix}stages.'):
            return num_layers - 1, num_layers
        stage, part, block, *_ = param_name.removeprefix(f'{prefix}stages.').split('.')
        before = sum(self._depths[: int(stage)])
        return before + (int(block) if part == 'blocks' else 0) + 1, num_layers

    def _frozen_modules(self) -> Iterator[nn.Module]:
        if self.frozen_stages >= 0:
            yield self.stem
            yield from self.stages[: self.frozen_stages]


def resolve_arch(
    arch: str | Mapping, settings: Mapping[str, Mapping], optional: Sequence[str] = ()
) -> dict:
    """Look up an architecture by name, or check one that is given as a dict.

    Args:
        arch: Name in ``settings``, or a dict with the keys of its entries: one value per stage
            each.
        settings: Architectures by name.
        optional: Keys that a dict may leave out.

    Returns:
        A new dict.

    Raises:
        ValueError: If the name or a key is unknown, a key is missing, or the lengths differ.
    """
    if isinstance(arch, str):
        if arch not in settings:
            raise ValueError(f'arch must be one of {list(settings)} or a dict, got {arch=}')
        return dict(settings[arch])
    valid = list(dict.fromkeys(key for entry in settings.values() for key in entry))
    unknown = [key for key in arch if key not in valid]
    missing = [key for key in valid if key not in arch and key not in optional]
    if unknown or missing:
        raise ValueError(
            f'arch must have the keys {valid} ({list(optional)} optional), '
            f'got {unknown=}, {missing=}'
        )
    lengths = {key: len(value) for key, value in arch.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f'arch must have one value per stage under each key, got {lengths=}')
    return dict(arch)
