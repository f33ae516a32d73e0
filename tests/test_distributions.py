"""The source distribution and the wheel: what is in them, and how they install."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet

import mmlocalattn

ROOT = Path(__file__).parents[1]
PACKAGE_DATA = (
    'converters/released.yml',
    'py.typed',
    'visualisation/page.css',
    'visualisation/page.html',
)


@pytest.fixture(scope='module')
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's own files, to build in."""
    tree = tmp_path_factory.mktemp('source') / 'mmlocalattn'
    everywhere = shutil.ignore_patterns(
        '.venv*', '.git', '.mim', '.*_cache', '__pycache__', '*.so', '*.egg-info'
    )
    here = {'build', 'dist', 'data', 'work_dirs'}

    def ignore(folder: str, names: list[str]) -> set[str]:
        return everywhere(folder, names) | (here & {*names} if Path(folder) == ROOT else set())

    return shutil.copytree(ROOT, tree, ignore=ignore)


def run_setup(tree: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, 'setup.py', '--quiet', *arguments],
        cwd=tree,
        env={**os.environ, 'MMLOCALATTN_WITH_OPS': '0'},
        capture_output=True,
        check=True,
    )


def test_wheel_content(source_tree: Path, tmp_path: Path) -> None:
    run_setup(source_tree, 'build_py', '--build-lib', str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['mmlocalattn']
    for name in ('configs', 'tools'):
        ours = {path.relative_to(ROOT) for path in (ROOT / name).rglob('*.py')}
        shipped = tmp_path / 'mmlocalattn' / '.mim'
        assert {path.relative_to(shipped) for path in (shipped / name).rglob('*.py')} == ours
    assert (shipped / 'model-index.yml').is_file()
    assert (shipped / 'configs' / 'metafile_ssvit.yml').is_file()
    files = [path for path in (ROOT / 'mmlocalattn').rglob('*.py') if '.mim' not in path.parts]
    files += [ROOT / 'mmlocalattn' / name for name in PACKAGE_DATA]
    assert not [path for path in files if not (tmp_path / path.relative_to(ROOT)).is_file()]


@pytest.fixture(scope='module')
def sdist_file(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('dist')
    run_setup(source_tree, 'sdist', '--dist-dir', str(folder))
    archive = folder / f'mmlocalattn-{mmlocalattn.__version__}.tar.gz'
    assert list(folder.iterdir()) == [archive]
    return archive


@pytest.fixture(scope='module')
def sdist(sdist_file: Path) -> dict[str, bytes]:
    """The files of the source distribution by their paths in it."""
    with tarfile.open(sdist_file) as file:
        members = [member for member in file if member.isfile()]
        return {
            member.name.partition('/')[2]: file.extractfile(member).read() for member in members
        }


def test_sdist_content(sdist: dict[str, bytes]) -> None:
    # mmengine takes its first line for the package
    assert sdist['mmlocalattn.egg-info/top_level.txt'] == b'mmlocalattn\n'
    assert not any(name.endswith('entry_points.txt') for name in sdist)
    wanted = ['pyproject.toml', 'setup.py', 'requirements/reference.txt', '.pre-commit-config.yaml']
    wanted += ['LICENSE', 'CITATION.cff', 'mkdocs.yml', 'model-index.yml']
    for pattern in (
        '*.md',
        '.github/**/*.*',
        'mmlocalattn/*.py',
        'mmlocalattn/[!.]*/**/*.py',
        'mmlocalattn/csrc/**/*.*',
        'configs/**/*.py',
        'configs/*.yml',
        'docs/**/*.md',
        'examples/**/*.*',
        'tools/*.*',
        'tools/*/*.py',
    ):
        wanted += (str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))
    assert not {*wanted} - {*sdist}
    assert 'build/schemas.cpp' not in sdist  # which setup.py writes


def test_metadata(sdist: dict[str, bytes]) -> None:
    metadata = email.message_from_bytes(sdist['PKG-INFO'])
    assert metadata['Version'] == mmlocalattn.__version__
    assert metadata['License'] == 'Apache-2.0'
    assert metadata['Author'] == 'The mmlocalattn authors'
    assert 'OpenMMLab' in metadata['Keywords'].split(',')
    assert 'Typing :: Typed' in metadata.get_all('Classifier')
    pythons = SpecifierSet(metadata['Requires-Python'])
    named = [name.rpartition(' ')[2] for name in metadata.get_all('Classifier') if '3.' in name]
    assert named == [
        python for python in ('3.9', '3.10', '3.11', '3.12', '3.13') if python in pythons
    ]
    urls = [url.rpartition('/')[2] for url in metadata.get_all('Project-URL')]
    cited = re.findall(r"'arXiv:(.+)'", (ROOT / 'CITATION.cff').read_text())
    assert sorted(urls) == sorted(cited)
    assert {'upstream', 'onedl', 'tests', 'lint'} <= {*metadata.get_all('Provides-Extra')}


def pip_install(sdist: Path, target: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--target', str(target)]
    return subprocess.run(
        [*command, *options, str(sdist)], capture_output=True, text=True, check=False
    )


def test_an_isolated_build_says_what_to_do(sdist_file: Path, tmp_path: Path) -> None:
    done = pip_install(sdist_file, tmp_path)
    assert done.returncode != 0
    assert 'run `pip install --no-build-isolation .` (an isolated build sees no torch)' in (
        done.stdout + done.stderr
    )


def test_the_source_distribution_installs(
    sdist_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kernels, which take minutes."""
    monkeypatch.setenv('MMLOCALATTN_WITH_OPS', '0')
    done = pip_install(sdist_file, tmp_path, '--no-build-isolation')
    assert done.returncode == 0, done.stderr
    code = 'import mmlocalattn.registry as r; print(r.__file__, r.MODELS.get("SSViT").__name__)'
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(tmp_path / 'mmlocalattn' / 'registry.py'), 'SSViT']
    assert (tmp_path / 'mmlocalattn' / '.mim' / 'tools' / 'train.py').is_file()


def test_a_wheel_names_its_torch(
    source_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kernels, which take minutes."""
    monkeypatch.setenv('MMLOCALATTN_WITH_OPS', '0')
    monkeypatch.setenv('PYTHON', sys.executable)
    script = source_tree / 'tools' / 'dev' / 'build_wheel.sh'
    done = subprocess.run(['bash', script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch_version = torch.__version__.partition('+')[0]
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.startswith(f'mmlocalattn-{mmlocalattn.__version__}+torch{torch_version}.cpu-')
    assert done.stdout.splitlines()[-1] == str(wheel)
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert 'mmlocalattn/.mim/tools/train.py' in names
    assert not [name for name in names if name.startswith(('tests/', 'tools/', 'build/'))]
