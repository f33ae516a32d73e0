"""SyncBN of processes that talk through gloo."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class CPUSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's, which takes no maps on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape and dtype."""
        if not self.training:
            return super().forward(x)
        axes, shape = [axis for axis in range(x.ndim) if axis != 1], [-1, *[1] * (x.ndim - 2)]
        wide = x.float()
        own = wide.new_tensor([x.numel() // x.shape[1]])
        *_, count = total = all_reduce(torch.cat([wide.sum(axes), own]))
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._remember(mean, variance * count / (count - 1).clamp(min=1))
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the statistics of evaluation to those of a batch."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # it comes with the others
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise_on_cpu(model: nn.Module) -> None:
    """Let the SyncBN layers of a model work on a CPU, as the same modules."""
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = CPUSyncBatchNorm
