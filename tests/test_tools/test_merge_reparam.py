"""tools/merge_reparam.py: what it prints and how it ends."""

from pathlib import Path

import pytest
import tiny_data
import torch
from mmengine.registry import MODELS, DefaultScope

from mmlocalattn.training import load_config

TOOL = tiny_data.load_tool('merge_reparam')
CONFIG = """
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', backbone=dict(
    type='mmlocalattn.SlideSwin', num_slide_stages=1, out_indices=(0,),
    arch=dict(embed_dims=(32,), depths=(1,), num_heads=(1,), mlp_ratios=(1,))))
"""


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Config, checkpoint, and where to write."""
    paths = [str(tmp_path / name) for name in ('config.py', 'src.pth', 'dst.pth')]
    Path(paths[0]).write_text(CONFIG)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(load_config(paths[0]).model)
    torch.save({'state_dict': model.state_dict()}, paths[1])
    return paths


def test_says_what_was_saved(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    TOOL.main(argv)
    src, dst = (Path(path).stat().st_size for path in argv[1:])
    printed = capsys.readouterr().out
    assert printed.startswith(f'{argv[2]}: {(src - dst) / 1e3:.1f} kB smaller, outputs differ by ')


@pytest.mark.parametrize('missing', ['config.py', 'src.pth'])
def test_errors(argv: list[str], missing: str) -> None:
    path = Path(argv[0]).with_name(missing)
    path.unlink()
    with pytest.raises(SystemExit) as error:
        TOOL.main(argv)
    first, last = error.value.code.splitlines()
    assert first.startswith('error: ')
    assert first.endswith(f"'{path}' does not exist")
    assert last == 'Nothing was written.'
    assert not Path(argv[2]).exists()
