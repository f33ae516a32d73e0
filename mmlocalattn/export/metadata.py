"""What an exported file says about itself, written into it anew."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch


def write_metadata(path: Path, meta: Mapping) -> None:
    """Replace the metadata of a file; what it computes stays.

    Args:
        path: Of an ``.onnx``, ``.xml``, ``.pt2`` or ``.pt`` file.
        meta: All that it is to say.
    """
    text = json.dumps(meta)
    if path.suffix == '.onnx':
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, {'mmlocalattn': text})
        onnx.save(model, path)
    elif path.suffix == '.xml':
        from xml.etree import ElementTree

        tree = ElementTree.parse(path)
        for entry in tree.getroot().iter('mmlocalattn'):
            entry.set('value', text)
        tree.write(path)
    elif path.suffix == '.pt2':
        program = torch.export.load(path)
        torch.export.save(program, path, extra_files={'mmlocalattn.json': text})
    else:
        traced = torch.jit.load(str(path))
        torch.jit.save(traced, str(path), _extra_files={'mmlocalattn.json': text})
