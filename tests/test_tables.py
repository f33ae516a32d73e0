"""Tables are aligned, and Markdown."""

from mmlocalattn.tables import markdown_table


def test_columns_are_aligned() -> None:
    table = markdown_table(('map', 'ms'), [('100 x 167', '1'), ('5 x 8', '20.5')])
    assert table == (
        '| map       |   ms |\n| --------- | ---: |\n| 100 x 167 |    1 |\n| 5 x 8     | 20.5 |'
    )


def test_more_columns_to_the_left() -> None:
    table = markdown_table(('a', 'way', 'n'), [('1', 'x', '10')], left=2)
    assert table.splitlines()[1:] == ['| - | --- | -: |', '| 1 | x   | 10 |']
