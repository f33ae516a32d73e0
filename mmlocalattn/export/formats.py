"""The names of the formats; :data:`~mmlocalattn.export.files.FORMATS` has what writes them."""

SUFFIXES = {'onnx': '.onnx', 'torchscript': '.pt', 'pt2': '.pt2'}
"""The ending of the files of each format."""
