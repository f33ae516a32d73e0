"""What is written twice because other programs read it: held equal here."""

import re
from datetime import date
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import mmlocalattn

ROOT = Path(__file__).parents[1]
SECTIONS = ('Added', 'Changed', 'Fixed', 'Deprecated', 'Removed')


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    parsed = [Requirement(line) for line in lines if not line.startswith('#')]
    return {pin.name: next(iter(pin.specifier)).version for pin in parsed}


def releases() -> dict[str, str]:
    """What CHANGELOG.md says in each version, newest first: ``'0.1.0 (2026-11-28)'`` to text."""
    _, *parts = re.split(r'^## (.+)$', (ROOT / 'CHANGELOG.md').read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_newest_release_is_this_version() -> None:
    newest = next(iter(releases()))
    citation = read_yaml('CITATION.cff')
    assert newest == f'{mmlocalattn.__version__} ({citation["date-released"]})'
    assert citation['version'] == mmlocalattn.__version__


def test_changelog_is_dated_and_in_short_lines() -> None:
    for title, text in releases().items():
        version, day = re.fullmatch(r'(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)', title).groups()
        assert date.fromisoformat(day)
        titles = re.findall(r'^### (.+)$', text, re.MULTILINE)
        assert titles == [name for name in SECTIONS if name in titles], version
        assert titles
        lines = [line for line in text.splitlines() if line and not line.startswith('### ')]
        assert all(re.fullmatch(r'- .{1,240}[.]', line) for line in lines), version


def test_pre_commit_has_the_versions_of_lint() -> None:
    revisions = {
        repo['repo'].rpartition('/')[2]: repo['rev']
        for repo in read_yaml('.pre-commit-config.yaml')['repos']
    }
    tools = pins('lint.txt')
    assert revisions['ruff-pre-commit'] == f'v{tools["ruff"]}'
    assert revisions['mirrors-clang-format'] == f'v{tools["clang-format"]}'


def test_workflows_run_the_supported_rows() -> None:
    stacks = {
        path.name.removesuffix('reference.txt') for path in ROOT.glob('requirements/*reference.txt')
    }
    for workflow, job in (('test', 'test'), ('wheels', 'compiled')):
        jobs = read_yaml(f'.github/workflows/{workflow}.yml')['jobs']
        rows = jobs[job]['strategy']['matrix']['include']
        assert {row['stack'] and f'{row["stack"]}_' for row in rows} == stacks
        assert {row['stack'] or 'reference' for row in rows} == {row['row'] for row in rows}


def test_bug_reports_ask_for_the_environment() -> None:
    fields = {field['id']: field for field in read_yaml('.github/ISSUE_TEMPLATE/bug.yml')['body']}
    environment = fields['environment']
    assert 'python -m mmlocalattn.collect_env' in environment['attributes']['label']
    assert environment['validations']['required']


def test_citation_names_the_papers_of_the_model_index() -> None:
    indexed = {
        (collection['Paper']['URL'], collection['Paper']['Title'])
        for name in read_yaml('model-index.yml')['Import']
        for collection in read_yaml(name)['Collections']
    }
    papers = read_yaml('CITATION.cff')['references']
    assert {(paper['url'], paper['title']) for paper in papers} == indexed
    for paper in papers:
        assert paper['identifiers'][0]['value'] == f'arXiv:{paper["url"].rpartition("/")[2]}'
        assert all(author['family-names'] and author['given-names'] for author in paper['authors'])
