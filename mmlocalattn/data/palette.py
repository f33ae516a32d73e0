"""Colours of classes."""

import colorsys

GOLDEN = 0.618034  # steps of hue by it stay apart for any number of them


def make_palette(number: int) -> list[tuple[int, int, int]]:
    """Different colours (R, G, B), the same ones on each call."""
    palette = []
    for i in range(number):
        saturation, value = (0.75, 0.95) if i % 2 == 0 else (0.9, 0.7)
        colour = colorsys.hsv_to_rgb(i * GOLDEN % 1, saturation, value)
        red, green, blue = (round(255 * channel) for channel in colour)
        palette.append((red, green, blue))
    return palette
