"""Time what a call of an operator costs before its kernel has work, beside a small matrix product.

The map has one position, so that checks, dispatcher, autograd and allocation are all there is. Each
number is the processor time of the fastest of many short blocks, which a busy machine disturbs
least; everything is timed in turns. ``checks`` is the part of the public function, ``autograd``
what it takes to record a gradient. The rest of a forward pass is PyTorch's way from Python to the
kernel and back, and the kernel.
"""

import argparse
from collections.abc import Sequence

from mmlocalattn.command_line import one_line_errors, output_path, positive


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--operators', nargs='+', metavar='NAME', help='default: all')
    parser.add_argument('--head-dim', type=positive, default=32)
    parser.add_argument('--rounds', type=positive, default=200)
    parser.add_argument('--out', type=output_path, help='JSON file to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    from benchmarking.dispatch import measure
    from benchmarking.timing import environment, write_results

    from mmlocalattn.tables import markdown_table

    torch.set_num_threads(1)
    with one_line_errors():
        records = measure(args)
    columns = ('forward', 'checks', 'autograd', 'forward+backward', 'autocast')
    ratios = tuple(key for key in records[0] if ' of mm' in key)
    rows = []
    for record in records:
        times = [f'{record[key]:.1f}' if key in record else '' for key in columns]
        rows.append([record['way'], *times, *(f'{record[key]:.1f}' for key in ratios)])
    heads = ['', *(f'{key}, µs' for key in columns), *ratios]
    print(markdown_table(heads, rows))
    write_results(args, environment(torch.device('cpu')), records)


if __name__ == '__main__':
    main()
