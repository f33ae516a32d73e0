"""What setup.py builds and installs, and the errors of setup.py and tools/setup_env.sh."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from setuptools import Distribution
from torch.utils import cpp_extension

import mmlocalattn
from mmlocalattn.ops import OPS

ROOT = Path(__file__).parents[1]
SWITCHES = ('FORCE_CUDA', 'MMCV_CSRC_DIR', 'MMCV_CUDA_ARGS', 'MMLOCALATTN_WITH_OPS', 'MAX_JOBS')


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, run in the repository on a machine without a GPU or switches."""
    spec = importlib.util.spec_from_file_location('mmlocalattn_setup', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    for switch in (*SWITCHES, 'CUDA_HOME', 'CUDA_PATH'):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    return module


def fake_toolkit(folder: Path, release: str) -> Path:
    """A CUDA toolkit whose nvcc answers only what setup.py asks."""
    nvcc = folder / 'bin' / 'nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.1"\n'
        f'echo "#$ TOP={folder}/bin/.." >&2\n'
    )
    nvcc.chmod(0o755)
    return folder


def stops_with(pattern: str) -> pytest.RaisesExc:
    return pytest.raises(SystemExit, match=rf'\Ammlocalattn: [^\n]*{pattern}[^\n]*\Z')


def test_missing_mmcv_is_named(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_py, 'find_spec', lambda name: None)
    with stops_with('mmcv is not installed: .*pip install --no-build-isolation mmcv'):
        setup_py.mmcv_headers()


def test_mmcv_csrc_dir_names_the_headers(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv('MMCV_CSRC_DIR', str(tmp_path))
    with stops_with(f'{tmp_path} has no common/pytorch_cpp_helper.hpp'):
        setup_py.mmcv_headers()
    (tmp_path / 'common').mkdir()
    (tmp_path / 'common' / 'pytorch_cpp_helper.hpp').touch()
    assert setup_py.mmcv_headers() == tmp_path / 'common'


def test_missing_torch_is_named(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_py, 'find_spec', lambda name: None)
    with stops_with('install it, then run `pip install --no-build-isolation .`'):
        setup_py.extension()


def test_cpu_torch_refuses_force_cuda(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, 'cuda', None)
    assert not setup_py.wants_cuda()
    monkeypatch.setenv('FORCE_CUDA', '1')
    with stops_with('FORCE_CUDA=1, but torch .* is built without CUDA: install a CUDA build'):
        setup_py.wants_cuda()


def test_nvcc_of_another_major_version_is_refused(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setenv('CUDA_HOME', str(fake_toolkit(tmp_path / 'cuda', '12.8')))
    monkeypatch.setenv('FORCE_CUDA', '1')
    with stops_with('is CUDA 12, but torch .* is built with CUDA 13.0: set CUDA_HOME'):
        setup_py.wants_cuda()


def test_force_cuda_without_nvcc_is_refused(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    monkeypatch.setenv('FORCE_CUDA', '1')
    with stops_with('FORCE_CUDA=1, but there is no nvcc: install the CUDA 13.0 toolkit'):
        setup_py.wants_cuda()


def test_gpu_without_nvcc_builds_for_the_cpu(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    assert not setup_py.wants_cuda()


def test_cuda_home_is_the_toolkit_behind_a_wrapper(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toolkit = fake_toolkit(tmp_path / 'cuda-13', '13.0')
    wrapper = tmp_path / 'wrapper' / 'nvcc'
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv('PATH', f'{wrapper.parent}:{os.environ["PATH"]}')
    assert setup_py.cuda_toolkit() == (toolkit, 13)


def test_extension_without_cuda(setup_py: ModuleType) -> None:
    extension = setup_py.extension()
    assert extension.name == 'mmlocalattn._ext'
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob('mmlocalattn/csrc/**/*.cpp')}
    assert set(extension.sources) == sources | {'build/schemas.cpp'}
    assert 'torch_python' not in extension.libraries
    assert str(setup_py.mmcv_headers()) in extension.include_dirs
    assert 'std' not in str(extension.extra_compile_args)


def test_extension_with_cuda(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toolkit = fake_toolkit(tmp_path / 'cuda', '13.0')
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(toolkit))
    monkeypatch.setenv('CUDA_HOME', str(toolkit))
    monkeypatch.setenv('FORCE_CUDA', '1')
    monkeypatch.setenv('MMCV_CUDA_ARGS', '--threads 2')
    wheels = tmp_path / 'nvidia' / 'cu13' / 'include'
    wheels.mkdir(parents=True)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / 'nvidia')])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        setup_py, 'find_spec', lambda name: spec if name == 'nvidia' else find_spec(name)
    )
    extension = setup_py.extension()
    compiled = {str(path.relative_to(ROOT)) for path in ROOT.glob('mmlocalattn/csrc/cuda/**/*.cu')}
    assert set() < compiled <= set(extension.sources)
    assert extension.extra_compile_args['nvcc'] == ['-O3', '--threads', '2']
    assert extension.include_dirs[-1] == str(wheels)  # after the toolkit's own


def test_schemas_are_written_when_they_change(setup_py: ModuleType, tmp_path: Path) -> None:
    path = setup_py.write_schemas(tmp_path / 'schemas.cpp')
    text = path.read_text()
    for name in OPS:
        assert text.count(f'{{"{name}",') == text.count(f'"_{name}_backward(') == 1
    assert f'number_of_schemas = {len(OPS)};' in text
    os.utime(path, (1, 1))
    setup_py.write_schemas(path)
    assert path.stat().st_mtime == 1
    path.write_text('')
    assert setup_py.write_schemas(path).read_text() == text


def fake_compiler(folder: Path, version: str) -> str:
    """A C++ compiler that says its version."""
    path = folder / 'compiler'
    path.write_text(f'#!/bin/sh\necho "{version}"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ('version', 'flags'),
    [
        ('c++ (Debian 12.2.0-14) 12.2.0', (['-fopenmp'], [])),
        ('Debian clang version 19.1.7', (['-fopenmp'], ['-fopenmp'])),
    ],
)
def test_openmp_of_gcc_and_clang(
    setup_py: ModuleType, tmp_path: Path, version: str, flags: tuple
) -> None:
    os.environ['CXX'] = fake_compiler(tmp_path, version)
    assert setup_py.openmp_flags() == flags


def test_openmp_of_apples_clang(
    setup_py: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ['CXX'] = fake_compiler(tmp_path, 'Apple clang version 17.0.0')
    os.environ['LIBOMP_PREFIX'] = str(tmp_path)
    assert setup_py.openmp_flags() == ([], [])
    assert capsys.readouterr().out.count('run on one thread: brew install libomp\n') == 1
    (tmp_path / 'include').mkdir()
    (tmp_path / 'include' / 'omp.h').touch()
    assert setup_py.openmp_flags() == (
        ['-Xpreprocessor', '-fopenmp', f'-I{tmp_path}/include'],
        [],
    )
    assert capsys.readouterr().out == ''


def test_a_system_that_does_not_say_its_memory(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 <= setup_py.compilers_that_fit() <= os.cpu_count()
    monkeypatch.delattr(os, 'sysconf')
    assert setup_py.compilers_that_fit() == os.cpu_count()


def test_windows_builds_no_kernels(
    setup_py: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And an editable install makes copies, not links."""
    calls = []
    monkeypatch.setattr(sys, 'platform', 'win32')
    monkeypatch.setattr(setup_py, 'setup', lambda **options: calls.append(options))
    setup_py.main()
    assert capsys.readouterr().out.strip().endswith('no kernels are built; WSL2 builds them.')
    (options,) = calls
    assert 'ext_modules' not in options
    for name in ('mmlocalattn', 'configs', 'tools'):
        (tmp_path / name).mkdir()
    (tmp_path / 'model-index.yml').touch()
    monkeypatch.chdir(tmp_path)
    command = options['cmdclass']['build_py'](Distribution())
    command.ensure_finalized()
    command.editable_mode = True
    command.run()
    mim = tmp_path / 'mmlocalattn' / '.mim'
    assert {path.name for path in mim.iterdir()} == {'configs', 'tools', 'model-index.yml'}
    assert not any(path.is_symlink() for path in mim.iterdir())


def test_ninja_is_asked_at_every_build(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = {}
    monkeypatch.setattr(setup_py, 'setup', called.update)
    setup_py.main()
    assert called['options'] == {'build_ext': {'force': True}}


def test_configs_and_tools_are_found_beside_the_package() -> None:
    mim = Path(mmlocalattn.__file__).parent / '.mim'
    assert (mim / 'configs' / 'maskrcnn_ssvit_s_1x_coco.py').is_file()
    assert (mim / 'tools' / 'train.py').is_file()


def test_version_has_one_source() -> None:
    version = re.escape(mmlocalattn.__version__)
    assert re.fullmatch(r'\d+\.\d+\.\d+\S*', mmlocalattn.__version__)
    for name in ('setup.py', 'pyproject.toml'):
        assert not re.search(rf'\b{version}\b', (ROOT / name).read_text())


def setup_env(venv: Path, variables: dict[str, str]) -> subprocess.CompletedProcess:
    """tools/setup_env.sh for a virtual environment, where it ought to stop."""
    return subprocess.run(
        ['bash', ROOT / 'tools' / 'setup_env.sh'],
        env={**os.environ, 'MMLOCALATTN_VENV': str(venv), 'MMLOCALATTN_STACK': '', **variables},
        cwd=venv.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith('#')]


@pytest.mark.parametrize(
    ('variables', 'message'),
    [
        ({'PYTHON': 'false'}, 'needs Python 3.11 or 3.12 and false is not'),
        ({'PYTHON': sys.executable, 'CXX': 'no-such-g++'}, 'no C++ compiler no-such-g++'),
        (
            {'MMLOCALATTN_STACK': 'classic', 'PYTHON': 'false'},
            'needs Python 3.10 or 3.11 and false is not',
        ),
        ({'MMLOCALATTN_STACK': 'mmlab'}, 'there is no MMLOCALATTN_STACK=mmlab; set it to onedl'),
    ],
)
def test_setup_env_says_what_is_missing(
    variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    run = setup_env(tmp_path / 'venv', variables)
    assert run.returncode == 1
    assert message in run.stderr
    assert not (tmp_path / 'venv').exists()


def test_setup_env_asks_for_disk(tmp_path: Path) -> None:
    df = tmp_path / 'df'
    df.write_text('#!/bin/sh\necho head; echo /dev/x 1000000 1 3200000 1% /\n')
    df.chmod(0o755)
    run = setup_env(tmp_path / 'venv', {'PATH': f'{tmp_path}:{os.environ["PATH"]}'})
    assert run.returncode == 1
    assert f'{tmp_path} has 3 GiB free and 10 are needed' in run.stderr
    assert not (tmp_path / 'venv').exists()


def test_setup_env_asks_for_the_package_index(tmp_path: Path) -> None:
    """Before the download; the virtual environment is there by then."""
    nothing = {'PIP_CONFIG_FILE': os.devnull, 'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': ''}
    stack = {(3, 10): 'classic', (3, 13): 'onedl'}.get(sys.version_info[:2], '')
    python = {'PYTHON': sys.executable, 'MMLOCALATTN_STACK': stack}
    run = setup_env(tmp_path / 'venv', {**python, **nothing})
    assert run.returncode == 1
    assert 'pip cannot fetch from its package index, see above; a proxy goes to' in run.stderr
    assert 'packages' not in run.stdout


@pytest.mark.parametrize(
    ('stack', 'other'),
    [('', 'classic_reference'), ('onedl', 'reference'), ('classic', 'onedl_reference')],
)
def test_setup_env_keeps_the_stacks_apart(stack: str, other: str, tmp_path: Path) -> None:
    (tmp_path / f'mmlocalattn-{other}.sha256').write_text('')
    run = setup_env(tmp_path, {'MMLOCALATTN_STACK': stack, 'PYTHON': 'false'})
    assert run.returncode == 1
    assert f'{tmp_path} has the packages of another stack' in run.stderr


@pytest.mark.parametrize(
    ('pins', 'extra'),
    [
        ('reference.txt', 'mminstall.txt'),
        ('classic_reference.txt', 'mminstall.txt'),
        ('onedl_reference.txt', 'onedl.txt'),
    ],
)
def test_pins_are_what_the_extra_allows(pins: str, extra: str) -> None:
    versions = {pin.name: next(iter(pin.specifier)).version for pin in requirements(pins)}
    for requirement in requirements(extra) + requirements('runtime.txt'):
        assert requirement.specifier.contains(versions[requirement.name]), requirement
    onedl = {name.startswith('onedl-') for name in versions if 'mm' in name}
    assert onedl == {extra == 'onedl.txt'}
