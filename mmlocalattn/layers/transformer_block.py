"""The pre-norm transformer block that most families share."""

from torch import Tensor, nn

from mmlocalattn.layers.drop_path import DropPath
from mmlocalattn.layers.layer_scale import LayerScale
from mmlocalattn.layers.residual import add_residual


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each behind a LayerNorm and added to its input.

    Args:
        dim: Channels.
        attn: Maps (B, H, W, C) to the same shape.
        mlp: Likewise.
        drop_path_rate: Probability of dropping a branch of a sample.
        layer_scale: Initial factor on both branches; None has no factors.
        norm_eps: Of both LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = add_residual(self.drop_path(self.scale1(self.attn(self.norm1(x)))), x)
        return add_residual(self.drop_path(self.scale2(self.mlp(self.norm2(x)))), x)
