"""The data sets that configs name."""

from mmlocalattn.data.check import check_data

__all__ = ['check_data']
