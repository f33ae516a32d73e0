"""Building blocks of the backbones, one concept per file. Maps are (B, H, W, C), channels last."""
