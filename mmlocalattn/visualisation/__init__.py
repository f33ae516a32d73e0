"""Pictures: of data sets and predictions, and of where local attention looks."""

from mmlocalattn.visualisation.attention import record_attention

__all__ = ['record_attention']
