"""Tables and a plot of what bench_ops.py has timed. A record is one way and pass of one map."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from mmlocalattn.files import whole_file
from mmlocalattn.tables import markdown_table

if TYPE_CHECKING:  # only a plot needs it
    from matplotlib.axes import Axes

PASSES = {False: 'forward', True: 'forward+backward'}


def full_table(records: list[dict]) -> None:
    """Every number, one line per way and pass."""
    columns = [
        'map, heads',
        records[0]['window_title'],
        'way',
        'pass',
        'ms',
        'GFLOP/s',
        'of matrix product',
        'extra memory (of q, k, v, o)',
    ]
    has_replays = any('replay_seconds' in record for record in records)
    if has_replays:
        columns.append('replayed, ms')
    rows = []
    for record in records:
        row = [record['map'], record['window'], record['way'], record['pass']]
        if 'skipped' in record:
            row += ['', '', '', f'skipped: {record["skipped"]}']
        else:
            row += [
                digits(record['seconds'] * 1e3),
                digits(record['gflops']),
                f'{record["fraction_of_matrix_product"]:.2f}',
                memory_text(record),
            ]
        if has_replays:
            row.append(digits(record['replay_seconds'] * 1e3) if 'replay_seconds' in record else '')
        rows.append(row)
    print(markdown_table(columns, rows, left=4))


def digits(value: float) -> str:
    """Three of them, or more before the point."""
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def memory_text(record: dict) -> str:
    """Peak memory, and that over the size of query, key, value and output."""
    peak = record['peak_bytes']
    return '' if peak is None else f'{peak / 1e6:.1f} MB ({peak / record["tensor_bytes"]:.1f}x)'


def short_table(records: list[dict]) -> None:
    """Our times, rates (fraction of the matrix product), peak memory (over the size of q, k, v, o),
    and how much longer the others take, forward / forward and backward."""
    ways = list(dict.fromkeys(record['way'] for record in records if record['way'] != 'ours'))
    columns = ('map, heads', records[0]['window_title'], *PASSES.values(), 'extra memory', *ways)
    rows = []
    for key, group in grouped(records).items():
        ours = [group['ours', name] for name in PASSES.values() if ('ours', name) in group]
        row = [*key]
        row += [
            f'{digits(r["seconds"] * 1e3)} ms, {digits(r["gflops"])} GFLOP/s '
            f'({r["fraction_of_matrix_product"]:.2f})'
            for r in ours
        ]
        row += [''] * (4 - len(row))
        row.append(memory_text(ours[0]))
        for way in ways:
            others = [group[way, record['pass']] for record in ours]
            ratios = [
                f'{digits(other["seconds"] / record["seconds"])}x' if 'seconds' in other else '-'
                for other, record in zip(others, ours)
            ]
            row.append(' / '.join(ratios))
        rows.append(row)
    print(markdown_table(columns, rows))


def grouped(records: list[dict]) -> dict[tuple[str, str], dict[tuple[str, str], dict]]:
    """(map, window) -> (way, pass) -> record."""
    groups: dict = {}
    for record in records:
        group = groups.setdefault((record['map'], record['window']), {})
        group[record['way'], record['pass']] = record
    return groups


def draw(records: list[dict], path: Path) -> None:
    """Bars of GFLOP/s: a row per operator, a column per pass, a colour per way."""
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(record['op'] for record in records))
    passes = list(dict.fromkeys(record['pass'] for record in records))
    figure = Figure((7 * len(passes), 4 * len(ops)), layout='constrained')
    grid = figure.subplots(len(ops), len(passes), squeeze=False)
    ways = dict.fromkeys(record['way'] for record in records if 'gflops' in record)
    colors = {way: f'C{index}' for index, way in enumerate(ways)}
    for op, line in zip(ops, grid):
        for name, axes in zip(passes, line):
            timed = [r for r in records if (r['op'], r['pass']) == (op, name) and 'gflops' in r]
            draw_bars(axes, timed, colors)
            axes.set(title=f'{op}, {name}', ylabel='useful GFLOP/s', yscale='log')
    with whole_file(path) as partial:
        figure.savefig(partial, format='png', dpi=120)
    print(path)


def draw_bars(axes: 'Axes', records: list[dict], colors: dict[str, str]) -> None:
    groups = list(dict.fromkeys((record['map'], record['window']) for record in records))
    ways = list(dict.fromkeys(record['way'] for record in records))
    for offset, way in enumerate(ways):
        bars = [record for record in records if record['way'] == way]
        places = [
            groups.index((r['map'], r['window'])) + 0.8 * (offset + 0.5) / len(ways) for r in bars
        ]
        rates = [record['gflops'] for record in bars]
        axes.bar(places, rates, 0.8 / len(ways), label=way, color=colors[way])
    product = statistics.median(record['matrix_product_gflops'] for record in records)
    axes.axhline(product, color='grey', linestyle='--', label='matrix product')
    axes.set_xticks([index + 0.4 for index in range(len(groups))])
    axes.set_xticklabels(['\n'.join(group) for group in groups], fontsize='small')
    axes.legend(fontsize='small')
