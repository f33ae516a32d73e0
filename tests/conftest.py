"""Options and fixtures of the whole suite."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

DATA = Path(__file__).parent / 'data'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--golden', type=Path, default=DATA, help='folder of *.npz golden arrays')
    parser.addoption(
        '--without-ext',
        action='store_true',
        help='hide mmlocalattn._ext, so that the references serve',
    )
    parser.addoption(
        '--record-old-answers',
        action='store_true',
        help="write what the backbones give now to tests/data/old_answers.json (with '-n 0')",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        'markers', 'golden(pattern): the golden files that `golden_file` stands for'
    )
    # Some containers set it: every Python that a test starts then compiles torch and the toolboxes.
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
    # A float32 reference is one, although some containers ask for TF32.
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    if config.getoption('--without-ext'):
        sys.modules['mmlocalattn._ext'] = None  # importlib then says that there is none


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    installed = Version(torch.__version__)
    for item in items:
        if 'cuda' in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='no GPU'))
        for mark in item.iter_markers('needs_torch'):
            version, what = mark.args
            if installed < Version(version):
                item.add_marker(pytest.mark.skip(reason=f'{what} needs torch {version}'))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise ``golden_file`` over the files that the test's ``golden`` marker names by a
    pattern."""
    if 'golden_file' in metafunc.fixturenames:
        (pattern,) = metafunc.definition.get_closest_marker('golden').args
        files = sorted(metafunc.config.getoption('--golden').glob(pattern))
        assert files, f'no golden file matches {pattern}'
        metafunc.parametrize('golden_file', files, ids=lambda file: file.stem)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], dict[str, np.ndarray]]:
    """``golden(name)``: the arrays of ``<name>.npz``."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(request.config.getoption('--golden') / f'{name}.npz') as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(autouse=True, scope='module')
def no_default_scope_is_left() -> Iterator[None]:
    """MMEngine's would change what names mean in the next file of tests."""
    yield
    if registry := sys.modules.get('mmengine.registry'):
        registry.DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
