"""Models as files of other runtimes."""

from mmlocalattn.export.files import FORMATS, export, exportable
from mmlocalattn.export.model import build_exportable, default_sizes, describe

__all__ = ['FORMATS', 'build_exportable', 'default_sizes', 'describe', 'export', 'exportable']
