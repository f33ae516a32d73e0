"""Feed-forward networks on channels-last maps."""

from torch import Tensor, nn

from mmlocalattn.layers.depthwise_conv import DepthwiseConv2d


class MLP(nn.Module):
    """Linear, GELU, Linear.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels inside.
        approximate: Of :class:`torch.nn.GELU`: ``'none'`` or ``'tanh'`` (as in Flax).
    """

    def __init__(self, dim: int, hidden_dim: int, approximate: str = 'none') -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class ConvFFN(nn.Module):
    """Linear, GELU, residual 3x3 depthwise convolution, Linear.

    Source: ``FeedForwardNetwork`` in SSViT's ``SSViT.py``.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels inside.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv2d(hidden_dim, 3, residual=True)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = self.act(self.fc1(x))
        return self.fc2(self.dwconv(x))


class ConvMLP(nn.Module):
    """Linear, 3x3 depthwise convolution, GELU, Linear.

    Source: ``Mlp`` in PVTv2's ``pvt_v2.py``.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels inside.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv2d(hidden_dim, 3)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        return self.fc2(self.act(self.dwconv(self.fc1(x))))
