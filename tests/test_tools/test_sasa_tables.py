"""tools/dev/sasa_tables.py: the counts, and the tables in docs/sasa.md."""

import functools
from pathlib import Path

import mmengine.config.utils
import pytest
import sasa_tables
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[2]
FLOPS, PARAMETERS = 1, 3  # columns of the published numbers; ours are behind them


@pytest.fixture(scope='module')
def tables():
    with pytest.MonkeyPatch.context() as patch:
        # A base in mmdet makes MMEngine parse all of that package's YAML files, every time.
        cached = functools.lru_cache(mmengine.config.utils.load)
        patch.setattr(mmengine.config.utils, 'load', cached)
        yield sasa_tables.tables()
    DefaultScope._instance_dict.clear()


def rows(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()[2:]
    ]


def test_the_tables_of_the_documentation(tables):
    text = (ROOT / 'docs' / 'sasa.md').read_text()
    for title, table in tables.items():
        assert f'## {title}\n' in text
        assert table in text, f'run tools/dev/sasa_tables.py: {title} differs'


def test_classifiers_count_as_published(tables):
    table_1, hybrids, windows, _ = tables.values()
    for row in rows(table_1) + rows(hybrids):
        published, computed = float(row[FLOPS]), float(row[FLOPS + 1])
        stem = 0.25 if 'attention stem' in row[0] else 0.05
        assert -stem - 0.03 <= computed - published <= 0.051, row
        published, computed = float(row[PARAMETERS]), float(row[PARAMETERS + 1])
        assert abs(computed - published) <= (0.09 if 'ResNet-38' in row[0] else 0.051), row
    for row in rows(windows):
        assert abs(float(row[FLOPS]) - float(row[FLOPS + 1])) <= 0.1, row


def test_detectors_count_as_published(tables):
    *_, table_2 = tables.values()
    for row in rows(table_2):
        flops, params = (float(row[i + 1]) - float(row[i]) for i in (FLOPS, PARAMETERS))
        if 'FPN too' in row[0]:
            assert -5 < flops < 0, row
            assert -2 < params < 0, row
        else:
            assert abs(flops) <= (3 if row[0].startswith('attention') else 0.6), row
            assert abs(params) <= 0.05, row
