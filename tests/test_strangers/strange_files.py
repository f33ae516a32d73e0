"""Configs and exported files as somebody might send them."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from onnx import TensorProto, helper
from strange_checkpoints import Program, Touch, cut, saved
from strange_data import LAUGHS

META = dict(sizes=[[64, 64]], outputs=['scores'], channels=3)

CONFIGS: dict[str, Mapping[str, str]] = {
    'base of itself': {'c.py': "_base_ = './c.py'"},
    'bases in a circle': {'c.py': "_base_ = './d.py'", 'd.py': "_base_ = ['./c.py']"},
    'import of a path': {'c.py': "custom_imports = dict(imports=['/nowhere/x.py', '../x'])"},
    'import of numbers': {'c.py': 'custom_imports = dict(imports=[1])'},
    'yaml with a command': {'c.yml': 'a: !!python/object/apply:os.system ["touch executed"]'},
    'yaml that repeats itself': {'c.yml': LAUGHS},
    'json nested': {'c.json': '[' * 500_000},
    'json cut': {'c.json': '{"model": {'},
    'no entries': {'c.py': ''},
    'zeros': {'c.py': '\0' * 99},
    'text': {'c.py': 'hello world'},
    'deep': {'c.py': 'a = ' + '[' * 5000},
    'another kind': {'c.txt': 'a = 1'},
    'raises': {'c.py': 'a = 1 / 0'},
}


def onnx_file(meta: object = META, data_in: str = '') -> bytes:
    """A graph that adds; its weights in another file if that is named."""
    pair = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 64, 64]) for n in 'xy']
    weight = helper.make_tensor('w', TensorProto.FLOAT, [1], [1.0])
    if data_in:
        weight.ClearField('float_data')
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key='location', value=data_in)
    node = helper.make_node('Add', ['x', 'w'], ['y'])
    graph = helper.make_graph([node], 'g', pair[:1], pair[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    model.metadata_props.add(key='mmlocalattn', value=json.dumps(meta))
    return model.SerializeToString()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name.replace('__', '/'), content)
    return file.getvalue()


def pt2() -> bytes:
    file = io.BytesIO()
    torch.export.save(
        torch.export.export(Program(), (torch.ones(1, 3, 64, 64),)),
        file,
        extra_files={'mmlocalattn.json': json.dumps(META)},
    )
    return file.getvalue()


def pt2_with(member: str, content: bytes) -> bytes:
    """The archive with another content in the members whose names end so."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pt2())) as old, zipfile.ZipFile(out, 'w') as new:
        for info in old.infolist():
            is_it = info.filename.endswith(member)
            new.writestr(info.filename, content if is_it else old.read(info))
    return out.getvalue()


def script(meta: object = META) -> bytes:
    file = io.BytesIO()
    extra = {'mmlocalattn.json': json.dumps(meta)}
    torch.jit.save(torch.jit.script(Program()), file, _extra_files=extra)
    return file.getvalue()


XML = '<?xml version="1.0"?><net name="a" version="11"><layers>{}</layers><edges/></net>'
LAYER = (
    '<layer id="0" name="w" type="Const" version="opset1"><data element_type="f32" '
    'shape="1000000,1000000" offset="0" size="4000000000000"/><output><port id="0" '
    'precision="FP32"><dim>1000000</dim><dim>1000000</dim></port></output></layer>'
)

EXPORTED: dict[str, tuple[str, Callable[[], bytes]]] = {
    'empty': ('onnx', lambda: b''),
    'cut': ('onnx', lambda: cut(onnx_file())),
    'another kind': ('onnx', lambda: b'\x89PNG\r\n\x1a\n' * 99),
    'not ours': ('onnx', lambda: onnx_file({})),
    'meta is a list': ('onnx', lambda: onnx_file([1])),
    'sizes are text': ('onnx', lambda: onnx_file(dict(META, sizes='64x64'))),
    'odd certificate': ('onnx', lambda: onnx_file(dict(META, certificate=3))),
    'weights elsewhere': ('onnx', lambda: onnx_file(data_in='../../../../etc/passwd')),
    'empty xml': ('xml', lambda: b''),
    'cut xml': ('xml', lambda: XML.format(LAYER).encode()[:200]),
    'xml of another kind': ('xml', lambda: b'<html></html>'),
    'xml without bin': ('xml', lambda: XML.format(LAYER).encode()),
    'text as pt2': ('pt2', lambda: b'hello'),
    'cut pt2': ('pt2', lambda: cut(pt2())),
    'checkpoint as pt2': ('pt2', lambda: saved({'a': torch.ones(2)})),
    'command in the inputs of a pt2': (
        'pt2',
        lambda: pt2_with('sample_inputs/model.pt', saved(dict(run=Touch()))),
    ),
    'bomb as pt2': ('pt2', lambda: archive(a__b=bytes(1 << 30))),
    'text as pt': ('pt', lambda: b'hello'),
    'cut pt': ('pt', lambda: cut(script())),
    'not ours, pt': ('pt', lambda: script({})),
    'imports elsewhere': (
        'pt',
        lambda: script(dict(META, requires=['import antigravity'], sizes=1)),
    ),
}


def write_config(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files of a case; returns the first."""
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / next(iter(files))
