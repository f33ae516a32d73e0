"""Time the operators: GFLOP/s beside those of a matrix product, in one run.

Every round times every entry once, so that a slow moment of the machine hits all of them; the table
shows medians. FLOPs are the useful ones, ``4 * B * heads * H * W * kh * kw * head_dim`` forward and
3.5 times that for forward and backward.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmlocalattn import __version__
from mmlocalattn.ops import has_kernel
from mmlocalattn.ops.neighborhood import neighborhood_attention, neighborhood_attention_reference

SHAPES = ('100x167,2,7,1', '100x167,2,15,6', '100x167,2,29,3', '50x84,8,7,7', '200x334,2,7,28')
MATRIX = 2048


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--shapes',
        nargs='+',
        type=parse_shape,
        default=[parse_shape(shape) for shape in SHAPES],
        metavar='HxW,HEADS,KERNEL,DILATION',
        help=f'default: {" ".join(SHAPES)}, the maps of an 800x1344 image',
    )
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--head-dim', type=int, default=32)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds after one to warm up')
    parser.add_argument('--reference', action='store_true', help='time the PyTorch reference too')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args()


def parse_shape(text: str) -> dict[str, int]:
    """``'100x167,2,7,1'`` to height, width, heads, kernel_size, dilation."""
    try:
        size, *rest = text.split(',')
        numbers = [*map(int, size.split('x')), *map(int, rest)]
        keys = ('height', 'width', 'heads', 'kernel_size', 'dilation')
        return dict(zip(keys, numbers, strict=True))
    except ValueError:
        raise argparse.ArgumentTypeError(f'not HxW,HEADS,KERNEL,DILATION: {text!r}') from None


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, to the end of its work on the device."""
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def make_entries(args: argparse.Namespace) -> list[dict]:
    """What to time: name, GFLOP of one call, the call."""
    options = {'device': args.device, 'dtype': getattr(torch, args.dtype)}
    left, right = torch.randn(2, MATRIX, MATRIX, **options)
    entries = [matrix_entry(left, right)]
    for shape in args.shapes:
        entries += shape_entries(shape, args, options)
    return entries


def matrix_entry(left: torch.Tensor, right: torch.Tensor) -> dict:
    return {
        'name': f'matrix product {MATRIX}^3',
        'gflop': 2 * MATRIX**3 / 1e9,
        'run': lambda: torch.mm(left, right),
    }


def shape_entries(shape: dict[str, int], args: argparse.Namespace, options: dict) -> list[dict]:
    """Forward, forward and backward, and on request the reference, of one shape."""
    height, width, heads, kernel_size, dilation = shape.values()
    tensors = [
        torch.randn(args.batch, height, width, heads, args.head_dim, **options).requires_grad_()
        for _ in range(3)
    ]
    grad_output = torch.randn_like(tensors[0])
    scale = args.head_dim**-0.5

    def forward() -> None:
        with torch.no_grad():
            neighborhood_attention(*tensors, kernel_size, dilation)

    def forward_backward() -> None:
        output = neighborhood_attention(*tensors, kernel_size, dilation)
        torch.autograd.grad(output, tensors, grad_output)

    def reference() -> None:
        pairs = (kernel_size, kernel_size), (dilation, dilation)
        with torch.no_grad():
            neighborhood_attention_reference(*tensors, None, *pairs, scale)

    size = args.batch * heads * height * width * args.head_dim
    gflop = 4 * size * kernel_size**2 / 1e9
    label = f'{height}x{width}x{heads} k{kernel_size} d{dilation}'
    entries = [
        {'name': f'{label} forward', 'gflop': gflop, 'run': forward},
        {'name': f'{label} forward+backward', 'gflop': 3.5 * gflop, 'run': forward_backward},
    ]
    if args.reference:
        entries.append({'name': f'{label} reference', 'gflop': gflop, 'run': reference})
    return entries


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    kernels = 'kernel' if has_kernel('neighborhood_attention', device.type) else 'reference'
    entries = make_entries(args)
    times: list[list[float]] = [[] for _ in entries]
    for _ in track(range(args.rounds + 1), 'Timing', transient=True):
        for entry, samples in zip(entries, times):
            samples.append(seconds(entry['run'], device))
    medians = [statistics.median(samples[1:]) for samples in times]
    rates = [entry['gflop'] / median for entry, median in zip(entries, medians)]
    table = Table(
        title=f'{args.dtype}, {device}, {torch.get_num_threads()} threads, '
        f'head_dim {args.head_dim}, batch {args.batch}, compiled: {kernels}'
    )
    for column in ('operation', 'ms', 'GFLOP/s', 'of matrix product'):
        table.add_column(column, justify='left' if column == 'operation' else 'right')
    results = []
    for entry, median, rate in zip(entries, medians, rates):
        fraction = rate / rates[0]
        table.add_row(entry['name'], f'{median * 1e3:.1f}', f'{rate:.1f}', f'{fraction:.2f}')
        results.append(
            {
                'name': entry['name'],
                'seconds': median,
                'gflops': rate,
                'fraction_of_matrix_product': fraction,
            }
        )
    Console().print(table)
    if args.out:
        record = {
            'versions': {'mmlocalattn': __version__, 'torch': torch.__version__},
            'kernels': kernels,
            'threads': torch.get_num_threads(),
            'cpu_capability': torch.backends.cpu.get_cpu_capability(),
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
            'arguments': {key: str(value) for key, value in vars(args).items()},
            'results': results,
        }
        partial = args.out.with_name(f'.{args.out.name}.partial')
        partial.write_text(json.dumps(record, indent=1))
        partial.replace(args.out)
        print(args.out)


if __name__ == '__main__':
    main()
