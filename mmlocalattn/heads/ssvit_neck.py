"""The classification tail of SSViT between backbone and linear classifier."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmlocalattn.layers.norm import build_norm
from mmlocalattn.registry import MODELS


@MODELS.register_module()
class SSViTNeck(nn.Module):
    """1x1 convolution, norm, Swish, global average: the neck of an ``ImageClassifier``.

    Its head is mmpretrain's ``LinearClsHead(num_classes, in_channels=out_channels)``.

    Args:
        in_channels: Of the backbone's last map.
        out_channels: Of the feature vector.
        norm_cfg: See :func:`~mmlocalattn.layers.norm.build_norm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int = 1024, norm_cfg: Mapping | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 1)
        self.norm = build_norm(norm_cfg, out_channels)
        self.act = nn.SiLU()
        nn.init.normal_(self.proj.weight, std=0.02)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor]:
        """Maps (B, C, H, W), of which the last is used, to one (B, out_channels) vector."""
        x = self.act(self.norm(self.proj(inputs[-1])))
        return (x.mean(dim=(2, 3)),)
