"""The names of the formats; :data:`~mmlocalattn.export.files.FORMATS` has what writes them."""

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torchscript': '.pt', 'pt2': '.pt2'}
"""The ending of the files of each format."""

BESIDE = {'openvino': ('.bin', '.onnx')}
"""The endings of what belongs to such a file and has its name."""
