"""Models as files of other runtimes."""

from mmlocalattn.export.files import FORMATS, export, exportable

__all__ = ['FORMATS', 'export', 'exportable']
