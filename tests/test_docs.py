"""The documentation and the README: what they name exists, and their Python does what they say."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import MODELS, DefaultScope

from mmlocalattn.adapt import BACKBONES
from mmlocalattn.ops import OPS

ROOT = Path(__file__).parents[1]
FILES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
NOTEBOOKS = sorted((ROOT / 'docs').rglob('*.ipynb'))
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PATH = re.compile(
    r'(?<![\w./:])((?:configs|docs|mmlocalattn|requirements|tests|tools)/[\w./-]*[\w/]'
    r'|(?:mkdocs|model-index|pyproject|setup)\.\w+)'
)
CONFIG_NAME = re.compile(r'`([a-z0-9_]+_(?:coco|ade20k|imagenet))`')
SHARED_OPTIONS = ROOT / 'mmlocalattn' / 'training' / 'arguments.py'
FORWARDED = (ROOT / 'tools' / 'train.py', ROOT / 'tools' / 'test.py')  # to by shell scripts


@pytest.fixture(params=FILES, ids=lambda file: str(file.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> str:
    return request.param.read_text()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another folder to write to, and no default scope left behind."""
    monkeypatch.chdir(tmp_path)
    yield
    DefaultScope._instance_dict.clear()


def blocks(page: str, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page) if name == language]


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command of a tool, in shell blocks and in the text."""
    lines = ''.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines()
    lines += re.findall(r'`((?:python|bash) tools/[^`]+)`', BLOCK.sub('', page))
    for line in lines:
        words = shlex.split(line, comments=True)
        if len(words) > 1 and words[1].startswith('tools/'):
            yield words[1:]


def test_paths_exist(page: str) -> None:
    page = re.sub(r'No such file or directory: .*', '', page)  # of mmdet's own configs
    paths = [path for path in PATH.findall(page) if 'NAME' not in path]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_configs_exist(page: str) -> None:
    configs = [ROOT / 'configs' / f'{name}.py' for name in CONFIG_NAME.findall(page)]
    assert not [config.name for config in configs if not config.is_file()]


def test_options_exist(page: str) -> None:
    for script, *words in commands(page):
        path = ROOT / script
        sources = (path, SHARED_OPTIONS, *(FORWARDED if path.suffix == '.sh' else ()))
        known = ''.join(source.read_text() for source in sources)
        options = {word for word in words if word.startswith('--')} - {'--help'}
        unknown = [option for option in options if not re.search(rf'{option}\b', known)]
        assert not unknown, script


def test_the_guide_names_every_backbone() -> None:
    guide = (ROOT / 'docs' / 'drop_in.md').read_text()
    (table,) = re.findall(r'^\| family \| names \|\n(.*?)\n\n', guide, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r'`(\w+)`', table)) == set(BACKBONES)
    assert set(re.findall(r'--backbone (\w+)$', guide, re.MULTILINE)) <= set(BACKBONES)


def test_the_overview_names_every_operator() -> None:
    overview = (ROOT / 'docs' / 'ops' / 'index.md').read_text()
    assert {*re.findall(r'^\| \[(\w+)\]', overview, re.MULTILINE)} == {*OPS}


def test_types_are_registered(page: str) -> None:
    names = set(re.findall(r"type='(mmlocalattn\.[A-Za-z]+)'", page)) - {'mmlocalattn.NAME'}
    assert not [name for name in names if MODELS.get(name) is None]


@pytest.mark.filterwarnings('ignore')
def test_python_prints_what_is_shown(
    page: str, elsewhere: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page run one after the other; a comment behind print is its output."""
    namespace: dict = {}
    for block in blocks(page, 'python'):
        capsys.readouterr()
        exec(block, namespace)
        printed = capsys.readouterr().out.splitlines()
        assert set(re.findall(r'^print\(.*\n# (.*)$', block, re.MULTILINE)) <= set(printed)


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r'[\w/]+\.md', (ROOT / 'mkdocs.yml').read_text())
    assert {ROOT / 'docs' / name for name in named} | {ROOT / 'README.md'} == set(FILES)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks(path: Path) -> None:
    """They run in .ci/run. Here: no outputs, and what they name exists."""
    cells = json.loads(path.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert not [cell for cell in code if cell['outputs'] or cell['execution_count']]
    text = '\n'.join(''.join(cell['source']) for cell in cells)
    assert not [name for name in PATH.findall(text) if not (ROOT / name).exists()]
    links = re.findall(r'\]\((?!https?:)([^)#]+)', text)
    assert links
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_reference_has_every_public_module() -> None:
    api = ''.join(file.read_text() for file in (ROOT / 'docs' / 'api').iterdir())
    named = set(re.findall(r'^::: (mmlocalattn[\w.]*)', api, re.MULTILINE))
    files = (ROOT / 'mmlocalattn').rglob('*.py')
    modules = ['.'.join(file.relative_to(ROOT).with_suffix('').parts) for file in files]
    public = [name for name in modules if not re.search(r'\._', name)]
    assert public
    assert not [
        name for name in public if not any(f'{entry}.'.startswith(f'{name}.') for entry in named)
    ]
