"""tools/dev/install_mmcv.py: what is merged, what stays apart, and what is done if that fails."""

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import tiny_data

FILES = {
    'a.cpp': """
        #include <algorithm>
        #define max(x, y) ((x) < (y) ? (y) : (x))
        // int commented() { return 0; }
        template <typename T, int N> static T clip(T x) { return max(x, T(N)); }
        int a() { return clip<int, 3>(1); }
    """,
    'b.cpp': """
        #include <vector>
        #include <limits>
        struct Box { int side; };
        int declared_only(int);
        int b() { Box box{std::numeric_limits<int>::max()}; return box.side; }
    """,
    'cpu/c.cpp': """
        struct Box { float side; };
        int c() { return int(Box{2.5f}.side); }
    """,
}


@pytest.fixture
def tool() -> ModuleType:
    return tiny_data.load_tool('dev/install_mmcv')


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / 'cpu').mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in FILES]


def test_names_that_would_clash(tool: ModuleType) -> None:
    names = [tool.defined_names(text) for text in FILES.values()]
    assert names == [{'clip', 'a'}, {'Box', 'b'}, {'Box', 'c'}]


def test_names_of_nameless_namespaces_and_constants(tool: ModuleType) -> None:
    text = """
        namespace { struct Point { int x; }; int inside() { const int local = 1; return local; } }
        namespace named { struct Hidden {}; const int hidden = 1; }
        int const threads = 8;
        constexpr float table[2] = {1, 2};
        static int variable = 3;
    """
    assert tool.defined_names(text) == {'Point', 'inside', 'threads', 'table'}


def test_units_compile_and_hold_every_function(
    tool: ModuleType, files: list[Path], tmp_path: Path
) -> None:
    """The two types of one name are in different units, and a macro ends with its file."""
    assert tool.merge(files, tmp_path) == 2
    units = sorted(tmp_path.rglob('*.cpp'))
    assert [unit.name for unit in units] == ['unit0.cpp', 'unit1.cpp']
    assert '#undef max' in ''.join(unit.read_text() for unit in units)
    (tmp_path / 'main.cpp').write_text(
        'int a(); int b(); int c(); int main() { return a() == 3 && c() == 2 && b() > 9 ? 42 : 1; }'
    )
    program = tmp_path / 'program'
    subprocess.run(['g++', *units, tmp_path / 'main.cpp', '-o', program], check=True)
    assert subprocess.run([program], check=False).returncode == 42


CUDA_FILES = {
    'common/cuda/helper.hpp': '#pragma once\n#define W 32\ninline int width() { return W; }',
    'common/cuda/a.cuh': '#pragma once\n#include "helper.hpp"\ninline int side() { return 1; }',
    'common/cuda/b.cuh': '#pragma once\n#include "helper.hpp"\ninline int side() { return 2; }',
    'pytorch/cuda/a.cu': '#include "a.cuh"\nint a() { return side(); }',
    'pytorch/cuda/a2.cu': '#include <a.cuh>\nint a2() { return side(); }',
    'pytorch/cuda/b.cu': '#include "b.cuh"\nint b() { return side() + width(); }',
    'pytorch/plain.cpp': 'int plain() { return 0; }',
}


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    for name, text in CUDA_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_headers_of_cuda_files_that_would_clash(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, csrc: Path
) -> None:
    """Two headers define `side`; what one header defines may be in a unit twice."""
    monkeypatch.setattr(tool, 'has_cuda', lambda: True)
    assert tool.merge_sources(csrc) == (4, 3)
    units = [unit.read_text() for unit in sorted(csrc.glob('pytorch/cuda/unit*.cu'))]
    included = [tool.INCLUDE.findall(unit) for unit in units]
    assert sorted(included) == [['a.cu.inc', 'a2.cu.inc'], ['b.cu.inc']]
    assert (csrc / 'pytorch' / 'unit0.cpp').is_file()


def test_cuda_files_are_left_without_cuda(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, csrc: Path
) -> None:
    monkeypatch.setattr(tool, 'has_cuda', lambda: False)
    assert tool.merge_sources(csrc) == (1, 1)
    assert not list(csrc.glob('pytorch/cuda/unit*'))


@pytest.fixture
def fake(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """No download, no pip; what pip would be asked."""
    calls: list[list[str]] = []

    def download(pin: str, folder: Path) -> Path:
        (folder / 'source' / 'mmcv' / 'ops' / 'csrc' / 'pytorch').mkdir(parents=True)
        (folder / 'source' / 'mmcv' / 'ops' / 'csrc' / 'pytorch' / 'a.cpp').write_text('int a;')
        return folder / 'source'

    monkeypatch.setattr(tool, 'download', download)
    monkeypatch.setattr(tool.subprocess, 'run', lambda command, **_: calls.append(command))
    return calls


def wheel_of(source: Path) -> Path:
    wheel = source / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    wheel.write_text('a wheel')
    return wheel


def test_a_wheel_is_built_once(
    tool: ModuleType, fake: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tool, 'build', lambda source, log: wheel_of(source))
    arguments = ['mmcv==2.1.0', '--wheels', str(tmp_path)]
    tool.main(arguments)
    monkeypatch.setattr(tool, 'build', None)  # a second build would fail
    tool.main(arguments)
    (wheel,) = tmp_path.rglob('*.whl')
    assert wheel.read_text() == 'a wheel'
    assert [call[-1] for call in fake] == [str(wheel)] * 2


def test_units_that_do_not_compile(
    tool: ModuleType,
    fake: list,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(source: Path, log: Path) -> Path | None:
        log.write_text('why')
        csrc = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
        return None if (csrc / 'unit0.cpp').exists() else wheel_of(source)

    monkeypatch.setattr(tool, 'build', build)
    tool.main(['mmcv==2.1.0', '--wheels', str(tmp_path)])
    assert 'the units do not compile' in capsys.readouterr().out
    assert list(tmp_path.rglob('*.whl'))


def test_a_build_that_fails(
    tool: ModuleType, fake: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tool, 'build', lambda source, log: None)
    with pytest.raises(SystemExit, match=r'error: mmcv==2\.1\.0 does not build, see .*build\.log'):
        tool.main(['mmcv==2.1.0', '--wheels', str(tmp_path)])
    assert not fake
