"""The pages of the repository: what they name exists, their commands are understood by what they
call, and their Python does what they say."""

import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS, DefaultScope
from packaging.requirements import Requirement
from packaging.version import Version

from mmlocalattn.adapt import BACKBONES
from mmlocalattn.ops import OPS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs').rglob('*.md'))
FILES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'SECURITY.md')),
    ROOT / 'mmlocalattn' / 'csrc' / 'README.md',
    *PAGES,
]
NOTEBOOKS = sorted((ROOT / 'docs').rglob('*.ipynb'))
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PATH = re.compile(
    r'(?<![\w./:])((?:configs|docs|mmlocalattn|requirements|tests|tools)/[\w./-]*[\w/]'
    r'|(?:mkdocs|model-index|pyproject|setup)\.\w+)'
)
CONFIG_NAME = re.compile(r'`([a-z0-9_]+_(?:coco|ade20k|imagenet))`')
LINK = re.compile(r'\]\((?![a-z]+:|#)([^)#\s]+)(?:#([^)\s]+))?\)')

# What commands may be besides the tools, which parse their own arguments. A command of a new kind
# fails until it is understood here.
SHELL_TOOLS = {  # what each takes
    '.ci/run': '(--onedl|--classic)?',
    'tools/_launch.sh': '',  # is sourced
    'tools/dev/build_wheel.sh': r'(--cuda)? ?\S*',
    'tools/dev/sanitize.sh': '.*',  # pytest's
    'tools/gpu_check.sh': r'\S*',
    'tools/lint.sh': '',
    'tools/quickstart.sh': '(--smoke ?)?(detection|segmentation|trees)?',
    'tools/run_tests.sh': '.*',  # pytest's
    'tools/setup_env.sh': '',
}
FORWARDING = {  # to which tool, which of the first arguments, and how many these are
    'tools/dist_test.sh': ('tools/test.py', (0, 1), 3),
    'tools/dist_train.sh': ('tools/train.py', (0,), 2),
    'tools/slurm_test.sh': ('tools/test.py', (2, 3), 4),
    'tools/slurm_train.sh': ('tools/train.py', (2,), 4),
}
OTHERS = re.compile(
    r'\. \.venv/bin/activate|build/cpp/detect .*|cmake (-S|--build) .*'
    r'|export \w+=(\w+|\$\(python -c .*\))|gdb --args python .*|git (clone|tag|push) .*'
    r'|jupyter lab docs/.*|mim (download|search|test|train)\b.*|mkdocs (serve|build --strict)'
    r'|pre-commit install|python setup\.py build_ext --inplace|ruff (format|check --fix) \.'
)


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


def commands(page: str) -> list[list[str]]:
    """The words of each command in a shell block, and of each in the text that is more than a name,
    without the variables set for it."""
    lines = ''.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines()
    text = BLOCK.sub('', page)
    lines += re.findall(r'`((?:\w+=\S+ )*(?:python|bash|\.ci/run|pip install)\s[^`]+)`', text)
    found = []
    for line in lines:
        for command in re.split(r' && ', line):
            words = shlex.split(command.replace('\n', ' '), comments=True)
            while words and re.match(r'[A-Z_]+=', words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


@functools.cache
def load_script(name: str) -> ModuleType:
    """A Python file of tools/ as a module, with its folder in sys.path, as Python runs it."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(f'documented_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def check_tool(name: str, arguments: Sequence[str]) -> None:
    """Parse a tool's arguments as it does; CONFIG and CHECKPOINT are as good as any file."""
    assert (ROOT / name).is_file(), f'{name} does not exist'
    parse_args = getattr(load_script(name), 'parse_args', None)
    assert parse_args, f'{name} has no parse_args(argv)'
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parse_args(arguments)
    except SystemExit as stop:
        if stop.code:  # else it was --help
            raise AssertionError(said.getvalue()) from None


def check_shell_tool(name: str, arguments: Sequence[str]) -> None:
    assert (ROOT / name).is_file(), f'{name} does not exist'
    if name in FORWARDING:
        tool, first, needed = FORWARDING[name]
        assert len(arguments) >= needed, f'{name} takes at least {needed} arguments'
        check_tool(tool, [*(arguments[i] for i in first), *arguments[needed:]])
    else:
        assert re.fullmatch(SHELL_TOOLS[name], ' '.join(arguments)), f'arguments of {name}'


def check_pip_install(arguments: Sequence[str]) -> None:
    words = iter(arguments)
    for word in words:
        if word in ('-r', '--requirement'):
            assert (ROOT / next(words)).is_file()
        elif word in ('.', '-e'):
            assert (ROOT / 'pyproject.toml').is_file()
        elif not word.startswith('--'):
            Requirement(word)


def check_module(name: str, arguments: Sequence[str]) -> None:
    """``python -m``: a module of the package, or pytest with files that exist."""
    if name == 'pytest':
        files = [word for word in arguments if word.startswith('tests/') and 'NAME' not in word]
        assert all((ROOT / file).exists() for file in files), files
    else:
        assert name.startswith('mmlocalattn.')
        module = importlib.import_module(name)
        assert callable(module.main)
        if arguments:
            module.parse_args(arguments)


def check_command(words: Sequence[str]) -> None:
    match words:
        case ['python', '-m', name, *arguments]:
            check_module(name, arguments)
        case ['python', script, *arguments] if script.startswith('tools/'):
            check_tool(script, arguments)
        case ['bash', script, *arguments]:
            check_shell_tool(script, arguments)
        case ['.ci/run', *arguments]:
            check_shell_tool('.ci/run', arguments)
        case ['pip', 'install', *arguments]:
            check_pip_install(arguments)
        case _:
            assert OTHERS.fullmatch(' '.join(words)), 'a command of an unknown kind'


def test_paths_exist(page: str) -> None:
    page = re.sub(r'No such file or directory: .*', '', page)  # of mmdet's own configs
    paths = [path for path in PATH.findall(page) if 'NAME' not in path]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_configs_exist(page: str) -> None:
    configs = [ROOT / 'configs' / f'{name}.py' for name in CONFIG_NAME.findall(page)]
    assert not [config.name for config in configs if not config.is_file()]


def test_commands_are_understood(page: str) -> None:
    wrong = []
    for words in commands(page):
        try:
            check_command(words)
        except Exception as error:
            reason, *_ = str(error).split('\nassert ')
            wrong.append(f'{shlex.join(words)}\n    {reason}')
    assert not wrong, '\n'.join(wrong)


def test_every_shell_tool_is_known() -> None:
    """So that a page that names one is checked."""
    scripts = {str(path.relative_to(ROOT)) for path in ROOT.glob('tools/**/*.sh')}
    assert scripts | {'.ci/run'} == {*SHELL_TOOLS, *FORWARDING}


@pytest.mark.parametrize(
    'command',
    [
        'python tools/train.py CONFIG --no-such-option',
        'python tools/no_such_tool.py',
        'python -m mmlocalattn.no_such_module',
        'python -m pytest tests/no_such_test.py',
        'bash tools/dist_train.sh CONFIG',
        'bash tools/dist_train.sh CONFIG 8 --no-such-option',
        'bash tools/quickstart.sh classification',
        'pip install -r requirements/no_such_file.txt',
        'mmlocalattn train',
    ],
)
def test_wrong_commands_are_found(command: str) -> None:
    (words,) = commands(f'```bash\n{command}\n```\n')
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        check_command(words)


def test_links_lead_somewhere() -> None:
    """Those to files of the repository, with their anchors."""
    broken = []
    for page in FILES:
        for link, anchor in LINK.findall(BLOCK.sub('', page.read_text())):
            target = page.parent / link
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f'{page.relative_to(ROOT)}: {link}#{anchor}')
    assert not broken


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(r'^#+ (.+)$', BLOCK.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


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
    assert not [name for name in names if not (MODELS.get(name) or WEIGHT_INITIALIZERS.get(name))]


@pytest.mark.filterwarnings('ignore')
def test_python_prints_what_is_shown(
    page: str, elsewhere: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page run one after the other; a comment behind print is its output."""
    namespace: dict = {}
    for block in blocks(page, 'python'):
        capsys.readouterr()
        if '_base_.' in block:  # of a config, which MMEngine runs: tests/test_recipes.py
            continue
        if 'torch.compile(' in block and Version(torch.__version__) < Version('2.8'):
            pytest.skip('torch.compile of a backbone needs torch 2.8')
        exec(block, namespace)
        printed = capsys.readouterr().out.splitlines()
        assert set(re.findall(r'^print\(.*\n# (.*)$', block, re.MULTILINE)) <= set(printed)


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r'[\w/]+\.md', (ROOT / 'mkdocs.yml').read_text())
    assert {ROOT / 'docs' / name for name in named} == set(PAGES)


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
