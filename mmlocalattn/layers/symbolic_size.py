"""Sizes that are symbols, as in graphs that serve any size."""

from torch.fx.experimental import symbolic_shapes

from mmlocalattn.ops._library import is_compiling


def is_symbolic(*lengths: int) -> bool:
    """Whether a graph is being made in which one of the lengths is not known.

    There a layer may not branch on a length: the graph would serve the sizes on one side only.
    Where a course for all lengths costs time, layers take it only then.
    """
    if not is_compiling():
        return False
    return not all(symbolic_shapes.has_static_value(length) for length in lengths)


def round_up(length: int, step: int) -> int:
    """The lowest multiple of ``step`` that is not below ``length``, for lengths of at least 1.

    In this form symbolic lengths stay short formulas, stage after stage.
    """
    return ((length - 1) // step + 1) * step
