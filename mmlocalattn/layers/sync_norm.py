"""SyncBN of processes on CPUs, which talk through gloo.

PyTorch's takes no maps on a CPU, and its DistributedDataParallel refuses models that have one.
"""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mmlocalattn.registry import MODELS


@MODELS.register_module('CPUSyncBN')
class CPUSyncBatchNorm(_BatchNorm):
    """Batch norm over the maps of all processes; arguments as of ``torch.nn.SyncBatchNorm``.

    ``norm_cfg=dict(type='mmlocalattn.CPUSyncBN')`` in configs, where tools/train.py puts it in the
    place of SyncBN if several processes train without a GPU. Each process needs one. In a single
    process it is ``torch.nn.BatchNorm2d``, for maps of any number of axes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same shape and dtype."""
        if not self.training or not _has_company():
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce  # PyTorch may lack it

        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1, *[1] * (input.ndim - 2)]
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        own = wide.new_tensor([input.numel() // input.shape[1]])
        *_, count = total = all_reduce(torch.cat([wide.sum(axes), own]))
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._remember(mean, variance * count / (count - 1).clamp(min=1))
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes from two on, as PyTorch's takes them."""
        if input.ndim < 2:
            raise ValueError(f'maps are (B, C, ...), got a shape of {tuple(input.shape)}')

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the statistics of evaluation to those of a batch."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # it comes with the others
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def _has_company() -> bool:
    """Whether other processes train too."""
    processes = torch.distributed
    return (
        processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1
    )
