"""Tables that read well as text and are Markdown."""

from collections.abc import Sequence


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lay out a table that is aligned text and Markdown at once.

    Args:
        columns: Headings.
        rows: Cells, as many in each row as there are columns.
        left: Number of columns, from the first, that are aligned to the left.

    Returns:
        Lines without a line break at the end.
    """
    widths = [max(map(len, cells)) for cells in zip(columns, *rows)]
    rule = ['-' * width if i < left else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
    lines = []
    for cells in (columns, rule, *rows):
        texts = [
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths))
        ]
        lines.append(f'| {" | ".join(texts)} |')
    return '\n'.join(lines)
