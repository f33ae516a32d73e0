"""The layer rule: what each part of the package may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmlocalattn'

# Besides the standard library, torch and the part itself (backbones: pyramid, never sideways).
ALLOWED = {
    'ops': (),
    'layers': ('mmlocalattn.ops', 'mmlocalattn.registry'),
    'backbones': (
        'mmlocalattn.layers',
        'mmlocalattn.ops.flops',
        'mmlocalattn.registry',
        'mmengine.analysis',
        'mmengine.model',
    ),
    'registry': ('mmengine.registry',),
    'converters': (),
    'heads': (
        'mmlocalattn.layers',
        'mmlocalattn.registry',
        'mmdet.models.dense_heads',
        'mmdet.registry',
        'mmpretrain.registry',
    ),
    'adapt': (
        'mmengine',
        'mmlocalattn.data.folders',
        'mmlocalattn.data.records',
        'mmlocalattn.layers.roi_align',
        # Random data are packed as the data loader of each toolbox does it.
        'numpy',
        'mmdet.structures.DetDataSample',
        'mmdet.testing.demo_mm_inputs',
        'mmdet.testing.demo_track_inputs',
        'mmdet3d.structures.CameraInstance3DBoxes',
        'mmdet3d.structures.Det3DDataSample',
        'mmpose.registry.TRANSFORMS',
        'mmpretrain.structures.DataSample',
        'mmrotate.testing.demo_mm_inputs',
        'mmseg.structures.SegDataSample',
    ),
    'training': (
        'mmengine',
        # Metrics that get an interval.
        'mmdet.datasets.api_wrappers.COCOeval',
        'mmdet.evaluation.CocoMetric',
        'mmpretrain.evaluation.Accuracy',
        'mmseg.evaluation.IoUMetric',
        'mmlocalattn.adapt',
        'mmlocalattn.check',
        'mmlocalattn.command_line',
        'mmlocalattn.converters.marks',  # which release an unknown checkpoint is of
        'mmlocalattn.data',
        'mmlocalattn.files',
        'mmlocalattn.ops',
        'mmlocalattn.registry',
        'mmlocalattn.tables',
        'mmlocalattn.untrusted',
        'numpy',
    ),
    'compat': ('mmlocalattn.ops',),
    'hub': (
        'mmlocalattn.adapt.zoo',
        'mmlocalattn.backbones',
        'mmlocalattn.converters',
        'mmlocalattn.training.weights',
    ),
    'export': (
        'cv2',
        'mmcv.ops.multi_scale_deform_attn',
        'mmdet.models',
        'mmengine',
        'mmlocalattn.__version__',
        'mmlocalattn.adapt',
        'mmlocalattn.data',
        'mmlocalattn.files',
        'mmlocalattn.ops',
        'mmlocalattn.registry',
        'mmlocalattn.tables',
        'mmlocalattn.training',
        'mmlocalattn.untrusted',
        'mmseg.models.EncoderDecoder',
        'nncf',
        'numpy',
        'onnx',
        'onnx_ir',
        'onnxruntime',
        'onnxscript',
        'openvino',
        'torchvision.ops',
    ),
    'visualisation': (
        'PIL',
        'cv2',
        'matplotlib',
        'mmengine',
        'mmlocalattn.adapt.cpu',
        'mmlocalattn.data',
        'mmlocalattn.device',
        'mmlocalattn.files',
        'mmlocalattn.ops',
        'mmlocalattn.registry',
        'mmlocalattn.tables',
        'mmlocalattn.training',
        'numpy',
        'rich.progress',
    ),
    'data': (
        'PIL',
        'cv2',
        'mmlocalattn.files',
        'mmlocalattn.tables',
        'numpy',
        'rich.progress',
        'sklearn.datasets',
        'yaml',
    ),
    'check': ('mmlocalattn.files', 'mmlocalattn.ops', 'mmlocalattn.tables'),
    'command_line': ('mmlocalattn.adapt.zoo', 'mmlocalattn.files'),
    'device': (),
    'download': ('filelock', 'rich'),
    'files': (),
    'memory': (),
    'tables': (),
    'untrusted': (),
    'engine': ('mmlocalattn.training',),
    'collect_env': ('mmengine.utils.dl_utils', 'mmlocalattn.__version__', 'mmlocalattn.ops'),
}
# What single files may import as well.
ALLOWED_IN_FILE = {
    'converters/convert.py': (
        'mmengine',
        'mmlocalattn.__version__',
        'mmlocalattn.backbones',
        'mmlocalattn.files',
        'mmlocalattn.heads',
        'mmlocalattn.training',
        'mmlocalattn.untrusted',
        'numpy',
    ),
    'converters/merge.py': (
        'mmengine',
        'mmlocalattn.files',
        'mmlocalattn.layers',
        'mmlocalattn.training',
    ),
    'converters/by_name.py': (
        'mmengine.logging',
        'mmlocalattn.download',
        'mmlocalattn.files',
        'mmlocalattn.registry',
        'mmlocalattn.training',
    ),
    'converters/released.py': ('mmlocalattn.tables', 'yaml'),
    'compat/transformers.py': (
        'mmlocalattn.backbones.pyramid',
        'mmlocalattn.hub',
        'transformers',
    ),
    'heads/det_tta.py': (
        'mmcv.ops.batched_nms',
        'mmdet.models.test_time_augs',
        'mmdet.structures',
        'mmengine.structures',
    ),
    'ops/through_natten.py': ('natten',),
    'visualisation/predictor.py': ('mmlocalattn.training', 'rich'),
}


def imported_names(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it, ``from a import b`` as ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            names.update(f'{node.module}.{alias.name}' for alias in node.names)
    return names


def forbidden_imports(path: Path) -> set[str]:
    """Imports of a package file that the layer rule does not allow."""
    file = path.relative_to(PACKAGE)
    part = file.with_suffix('').parts[0]
    itself = 'mmlocalattn.backbones.pyramid' if part == 'backbones' else f'mmlocalattn.{part}'
    if path.name == '__init__.py':
        itself = f'mmlocalattn.{part}'
    allowed = (*sys.stdlib_module_names, 'torch', itself, *ALLOWED[part])
    allowed += ALLOWED_IN_FILE.get(file.as_posix(), ())
    return {
        name
        for name in imported_names(path)
        if not any(f'{name}.'.startswith(f'{prefix}.') for prefix in allowed)
    }


@pytest.mark.parametrize(
    'path',
    [path for path in sorted(PACKAGE.rglob('*.py')) if '.mim' not in path.parts],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_layer_rule(path: Path) -> None:
    if path == PACKAGE / '__init__.py':
        assert not imported_names(path)
    else:
        assert not forbidden_imports(path)


def test_layer_rule_sees_violations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), 'PACKAGE', tmp_path)
    source = 'import torch, natten\ndef f():\n    from mmlocalattn.backbones.nat import NAT\n'
    (tmp_path / 'backbones').mkdir()
    path = tmp_path / 'backbones' / 'ssvit.py'
    path.write_text(source)
    assert forbidden_imports(path) == {'natten', 'mmlocalattn.backbones.nat.NAT'}


def test_exceptions_are_of_files_that_exist() -> None:
    assert not [name for name in ALLOWED_IN_FILE if not (PACKAGE / name).is_file()]


def test_operators_need_torch_only() -> None:
    blocked = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy'):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import torch
from mmlocalattn.ops.neighborhood import neighborhood_attention
x = torch.randn(1, 5, 6, 2, 4)
print(neighborhood_attention(x, x, x, 3).shape)
"""
    run = subprocess.run(
        [sys.executable, '-c', blocked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert 'torch.Size([1, 5, 6, 2, 4])' in run.stdout
