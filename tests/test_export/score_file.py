"""The smallest exported file, in each format."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

META = {'sizes': [[8, 8], [16, 24]], 'outputs': ['scores'], 'channels': 3}
WEIGHT = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])


class Scores(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (functional.conv2d(image, WEIGHT[..., None, None]),)


def write_file(path: Path, meta: dict) -> Path:
    """A file of two scores for each pixel, in the format of its ending."""
    image = torch.zeros(2, 3, 16, 24)
    if path.suffix == '.pt':
        traced = torch.jit.trace(Scores(), image)
        torch.jit.save(traced, str(path), _extra_files={'mmlocalattn.json': json.dumps(meta)})
    elif path.suffix == '.pt2':
        names = {0: 'batch', 2: 'height', 3: 'width'}
        shapes = {'image': {dim: torch.export.Dim(name, max=64) for dim, name in names.items()}}
        program = torch.export.export(Scores(), (image,), dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files={'mmlocalattn.json': json.dumps(meta)})
    elif path.suffix == '.onnx':
        write_onnx(path, meta)
    else:
        import openvino

        write_onnx(path.with_suffix('.onnx'), {})
        model = openvino.Core().read_model(path.with_suffix('.onnx'))
        model.set_rt_info(json.dumps(meta), 'mmlocalattn')
        openvino.save_model(model, path)
    return path


def write_onnx(path: Path, meta: dict) -> None:
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor('w', TensorProto.FLOAT, (2, 3, 1, 1), WEIGHT.flatten().tolist())
    graph = helper.make_graph(
        [helper.make_node('Conv', ['image', 'w'], ['scores'])],
        'scores',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, ['b', 3, 'h', 'w'])],
        [helper.make_tensor_value_info('scores', TensorProto.FLOAT, ['b', 2, 'h', 'w'])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    helper.set_model_props(model, {'mmlocalattn': json.dumps(meta)})
    onnx.save(model, path)
