"""What an exported file says about itself, written into it anew."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch


def save_archive(
    model: torch.export.ExportedProgram | torch.jit.ScriptModule, path: Path, meta: Mapping
) -> None:
    """Write a ``.pt2`` or ``.pt`` file with metadata.

    By way of memory: where the disk takes no more, PyTorch's own writing ends the process.

    Args:
        model: A program, or a trace.
        path: Of the file.
        meta: Stored as ``mmlocalattn.json``.
    """
    buffer, files = io.BytesIO(), {'mmlocalattn.json': json.dumps(meta)}
    if isinstance(model, torch.export.ExportedProgram):
        torch.export.save(model, buffer, extra_files=files)
    else:
        torch.jit.save(model, buffer, _extra_files=files)
    path.write_bytes(buffer.getbuffer())


def write_metadata(path: Path, meta: Mapping) -> None:
    """Replace the metadata of a file; what it computes stays.

    Args:
        path: Of an ``.onnx``, ``.xml``, ``.pt2`` or ``.pt`` file.
        meta: All that it is to say.
    """
    if path.suffix == '.onnx':
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, {'mmlocalattn': json.dumps(meta)})
        onnx.save(model, path)
    elif path.suffix == '.xml':
        from xml.etree import ElementTree

        tree = ElementTree.parse(path)
        for entry in tree.getroot().iter('mmlocalattn'):
            entry.set('value', json.dumps(meta))
        tree.write(path)
    elif path.suffix == '.pt2':
        save_archive(torch.export.load(path), path, meta)
    else:
        save_archive(torch.jit.load(str(path)), path, meta)
