"""tools/dev/flops_table.py: the table in docs/flops.md is what it would write."""

import pytest
import tiny_data
from tiny_data import quick  # noqa: F401


@pytest.mark.usefixtures('quick')
def test_table_is_up_to_date() -> None:
    tool = tiny_data.load_tool('dev/flops_table')
    lines = (tiny_data.ROOT / 'docs' / 'flops.md').read_text().splitlines(keepends=True)
    rows = [line for line in lines if line.startswith('| `')]
    differences = [row.split('|')[5].strip() for row in rows]
    assert all(float(text.strip('%')) < 4 for text in differences if text != '-')
    assert all(cell.strip() for row in rows for cell in row.split('|')[1:-1])  # all are counted
    names = ('nat_m_300e', 'slide_pvt_t_300e', 'slide_swin_t_300e', 'maskrcnn_slide_pvtv2_b1')
    chosen = [row for row in rows if row.startswith(tuple(f'| `{name}' for name in names))]
    assert len(chosen) == 5
    assert [tool.fill(row) for row in chosen] == chosen
    assert tool.fill('| config | image |\n') == '| config | image |\n'
    assert [tool.fill(row, 'another') for row in rows] == rows
    unpublished = '| `nat_m_300e_imagenet` | 224 x 224 | - | | | - | |\n'
    counted = '| `nat_m_300e_imagenet` | 224 x 224 | - | 2.7 | - | - | 20.0 |\n'
    assert tool.fill(unpublished) == counted
