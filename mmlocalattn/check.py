"""Compare the operators with their references, on the device of this machine.

Run ``python -m mmlocalattn.check``. It takes seconds, needs torch alone, and ends with exit status
1 if an operator gives something else than its reference does. Compared are output and gradients,
with the reference on the CPU in float64.
"""

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlocalattn import ops
from mmlocalattn.files import write_json
from mmlocalattn.ops._implementation import REFERENCES, chosen
from mmlocalattn.tables import markdown_table

TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}
"""Largest error, as a fraction of the largest value of a tensor (of 0.1 where all are smaller).
That of a lower precision is at most twice that of the reference in that precision."""

DTYPES = {
    'cuda': (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    'cpu': (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    'mps': (torch.float32, torch.float16),
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A small call of an operator."""

    operator: str
    label: str
    shapes: dict[str, Shape]
    """Of the tensors that have gradients, drawn from a normal distribution."""
    options: dict[str, Any]
    """The other arguments."""
    weight_factor: float = 1.0
    """On the tensor ``weight``, whose products would else be too large for a softmax."""

    def call(self, tensors: dict[str, Tensor]) -> Tensor:
        """What a user calls."""
        device = next(iter(tensors.values())).device
        options = dict(self.options)
        if 'rotary' in options:
            options['rotary'] = tuple(table.to(device) for table in options['rotary'])
        return getattr(ops, self.operator)(**tensors, **options)

    def call_reference(self, tensors: dict[str, Tensor]) -> Tensor:
        """The same in PyTorch."""
        values = {**tensors, **self.options}
        if 'rotary' in values:
            values['sin'], values['cos'] = values['rotary']
        if 'padding' in values:
            values['zero_padding'] = values['padding'] == 'zero'
        schema = getattr(torch.ops.mmlocalattn, self.operator).default._schema
        return REFERENCES[self.operator](*(values.get(arg.name) for arg in schema.arguments))[0]


@dataclass(frozen=True)
class Finding:
    """The largest error of an operator in a dtype, measured by what is allowed there."""

    operator: str
    dtype: str
    case: str = ''
    tensor: str = ''
    error: float = 0.0
    allowed: float = 1.0
    raised: str = ''

    @property
    def is_right(self) -> bool:
        """Whether the error is allowed. NaN is not."""
        return not self.raised and self.error <= self.allowed

    def describe(self) -> str:
        """The error in words."""
        if self.raised:
            return f'{self.operator} in {self.dtype} raises in the case {self.case}: {self.raised}'
        return (
            f'{self.operator} in {self.dtype}: {self.tensor} is off by {self.error:.1e} in the '
            f'case {self.case}, {self.allowed:.1e} is allowed'
        )


def neighborhood_case(
    label: str,
    shape: Shape,
    kernel: Shape,
    dilation: Shape,
    bias: bool = False,
    scale: float | None = None,
) -> Case:
    """A case of neighborhood_attention."""
    shapes = dict.fromkeys(('query', 'key', 'value'), shape)
    if bias:
        shapes['bias'] = (shape[3], 2 * kernel[0] - 1, 2 * kernel[1] - 1)
    scale = shape[4] ** -0.5 if scale is None else scale
    options = dict(kernel_size=kernel, dilation=dilation, scale=scale)
    return Case('neighborhood_attention', label, shapes, options)


def sparse_scan_case(label: str, shape: Shape, *windows: Shape, rotary: bool = True) -> Case:
    """A case of sparse_scan_attention."""
    names = 'local_kernel', 'anchor_kernel', 'anchor_dilation'
    options: dict[str, Any] = dict(zip(names, windows), scale=shape[4] ** -0.5)
    if rotary:
        angles = torch.linspace(0, 9, math.prod(shape[1:3])).view(*shape[1:3], 1)
        angles = (angles * torch.linspace(0.1, 1, shape[4] // 2)).repeat_interleave(2, -1)
        options['rotary'] = angles.sin(), angles.cos()
    return Case(
        'sparse_scan_attention', label, dict.fromkeys(('query', 'key', 'value'), shape), options
    )


def slide_case(label: str, shape: Shape, kernel: int, biases: bool = True) -> Case:
    """A case of slide_attention."""
    heads, dim = shape[3:]
    shapes = dict.fromkeys(('query', 'key', 'value'), shape)
    shapes['weight'] = (dim, kernel**2, kernel, kernel)
    if biases:
        shapes |= dict(bias=(dim, kernel**2), position_bias=(heads, kernel, kernel))
    return Case('slide_attention', label, shapes, dict(scale=dim**-0.5), 1 / kernel)


def query_and_attend_case(
    label: str, shape: Shape, queries: int, kernel: Shape, stride: int, tables: bool = True
) -> Case:
    """A case of query_and_attend."""
    shapes = dict(scores=(*shape[:3], queries, shape[3]), values=shape)
    if tables:
        table = (queries, shape[3], *kernel)
        shapes |= dict(position_bias=table, attention_scale=table)
    return Case('query_and_attend', label, shapes, dict(kernel_size=kernel, stride=stride))


def stand_alone_case(label: str, shape: Shape, kernel: Shape, padding: str) -> Case:
    """A case of stand_alone_attention."""
    heads, dim = shape[3:]
    shapes = dict.fromkeys(('query', 'key', 'value'), shape)
    shapes['row_embedding'] = (heads, kernel[0], dim // 2)
    shapes['column_embedding'] = (heads, kernel[1], dim - dim // 2)
    options = dict(kernel_size=kernel, padding=padding, scale=dim**-0.5)
    return Case('stand_alone_attention', label, shapes, options)


# Head widths, windows and biases take kernels of their own; sizes are odd, so that tiles are cut.
CASES = (
    neighborhood_case('7x7', (2, 19, 23, 2, 32), (7, 7), (1, 1)),
    neighborhood_case('5x5, dilation 3x2', (1, 21, 27, 3, 32), (5, 5), (3, 2)),
    neighborhood_case('3x13, head_dim 64', (1, 9, 33, 1, 64), (3, 13), (1, 2)),
    neighborhood_case('5x5, head_dim 128', (1, 10, 13, 1, 128), (5, 5), (1, 1)),
    neighborhood_case('7x7 with bias', (2, 13, 17, 2, 32), (7, 7), (1, 1), bias=True),
    neighborhood_case('3x5 with bias, dilation 2', (1, 11, 14, 3, 16), (3, 5), (2, 2), bias=True),
    neighborhood_case('head_dim 5, negative scale', (2, 6, 11, 3, 5), (3, 3), (1, 1), scale=-0.4),
    neighborhood_case('1x1 map', (1, 1, 1, 2, 32), (1, 1), (1, 1)),
    sparse_scan_case('5x5, 3x3 anchors', (2, 19, 23, 2, 32), (5, 5), (3, 3), (4, 5)),
    sparse_scan_case('window alone', (1, 13, 18, 2, 64), (7, 3), (1, 1), (1, 1)),
    sparse_scan_case('anchors alone', (1, 14, 13, 2, 32), (1, 1), (3, 5), (3, 2), rotary=False),
    sparse_scan_case('head_dim 6', (1, 9, 11, 3, 6), (3, 3), (3, 3), (2, 2)),
    slide_case('3x3', (2, 13, 18, 3, 32), 3),
    slide_case('5x5, head_dim 6', (1, 9, 11, 2, 6), 5),
    slide_case('7x7 without biases', (1, 11, 9, 1, 16), 7, biases=False),
    query_and_attend_case('3x3', (2, 15, 18, 2, 32), 3, (3, 3), 1),
    query_and_attend_case('3x3, stride 2', (1, 15, 22, 4, 32), 2, (3, 3), 2),
    query_and_attend_case('7x5, head_dim 5', (1, 11, 9, 3, 5), 4, (7, 5), 1, tables=False),
    query_and_attend_case('13x13', (1, 9, 16, 1, 16), 2, (13, 13), 1),
    stand_alone_case('7x7', (2, 17, 19, 2, 32), (7, 7), 'mask'),
    stand_alone_case('3x11, zeros around', (1, 12, 15, 3, 16), (3, 11), 'zero'),
    stand_alone_case('5x5, head_dim 9', (1, 8, 9, 2, 9), (5, 5), 'mask'),
)


def check_operators(
    device: torch.device,
    operators: Sequence[str] = ops.OPS,
    dtypes: Sequence[torch.dtype] | None = None,
) -> list[Finding]:
    """Compare operators with their references.

    Args:
        device: Where they run.
        operators: Their names.
        dtypes: All of the device if None.

    Returns:
        For each operator and dtype, the error that is largest in terms of what is allowed.
    """
    findings = []
    for operator in operators:
        for dtype in DTYPES[device.type] if dtypes is None else dtypes:
            cases = (case for case in CASES if case.operator == operator)
            errors = [error for case in cases for error in _check_case(case, dtype, device)]
            findings.append(max(errors, key=_badness))
    return findings


def _badness(finding: Finding) -> float:
    ratio = finding.error / finding.allowed
    return math.inf if finding.raised or math.isnan(ratio) else ratio


def _check_case(case: Case, dtype: torch.dtype, device: torch.device) -> list[Finding]:
    """The errors of output and gradients."""
    find = functools.partial(Finding, case.operator, str(dtype).removeprefix('torch.'), case.label)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in case.shapes.items()
    }
    if 'weight' in tensors:
        tensors['weight'] *= case.weight_factor
    exact = _results(case.call_reference, tensors, torch.float64, generator)
    try:
        actual = _results(case.call, tensors, dtype, generator, device)
    except Exception as error:  # whatever a kernel or a driver says
        return [find(raised=str(error).strip().partition('\n')[0])]
    errors = [_relative_error(a, e) for a, e in zip(actual, exact)]
    if dtype in TOLERANCES:
        allowed = [TOLERANCES[dtype]] * len(errors)
    else:
        rounded = _results(case.call_reference, tensors, dtype, generator)
        one_rounding = torch.finfo(dtype).eps / 2
        allowed = [2 * max(_relative_error(r, e), one_rounding) for r, e in zip(rounded, exact)]
    names = ('output', *(f'the gradient of {name}' for name in tensors))
    return [find(name, error, limit) for name, error, limit in zip(names, errors, allowed)]


def _results(
    call: Callable[[dict[str, Tensor]], Tensor],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    generator: torch.Generator,
    device: torch.device | str = 'cpu',
) -> list[Tensor]:
    """Output and gradients, in float64 on the CPU."""
    leaves = {
        name: tensor.to(device, dtype).detach().requires_grad_() for name, tensor in tensors.items()
    }
    output = call(leaves)
    generator.manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    grad = grad.to(next(iter(tensors.values())).dtype)  # the same for every dtype of the truth
    grads = torch.autograd.grad(output, list(leaves.values()), grad.to(output))
    return [tensor.detach().cpu().double() for tensor in (output, *grads)]


def _relative_error(actual: Tensor, exact: Tensor) -> float:
    return ((actual - exact).abs().max() / exact.abs().max().clamp(min=0.1)).item()


def table(findings: Sequence[Finding], device: torch.device) -> str:
    """Findings as a table, a line for each."""
    columns = ('operator', 'dtype', 'served by', 'largest error', 'allowed', 'where', '')
    rows = []
    for finding in findings:
        numbers = (f'{finding.error:.1e}', f'{finding.allowed:.1e}')
        rows.append(
            (
                finding.operator,
                finding.dtype,
                _served_by(finding.operator, device.type),
                *(('', '') if finding.raised else numbers),
                finding.raised or f'{finding.tensor}, {finding.case}',
                'ok' if finding.is_right else 'WRONG',
            )
        )
    return markdown_table(columns, rows, left=len(columns))


def _served_by(operator: str, device: str) -> str:
    if chosen(device) == 'natten' and operator in ops.OPS[:2]:
        return 'NATTEN, kernel'
    return 'kernel' if ops.has_kernel(operator, device) else 'reference'


def device_name(device: torch.device) -> str:
    """What the table says of a device."""
    if device.type != 'cuda':
        return device.type
    capability = '.'.join(map(str, torch.cuda.get_device_capability(device)))
    return f'{torch.cuda.get_device_name(device)}, compute capability {capability}'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        'python -m mmlocalattn.check', description=(__doc__ or '').partition('\n')[0]
    )
    parser.add_argument(
        '--device',
        type=torch.device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda, cuda:N or mps; default: cuda if torch sees a GPU, else cpu',
    )
    parser.add_argument('--operators', nargs='+', choices=ops.OPS, default=ops.OPS, metavar='NAME')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args(argv)
    if args.device.type not in DTYPES:
        parser.error(f'--device must be one of {", ".join(DTYPES)}, got {args.device}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; exit with status 1 if something is wrong."""
    args = parse_args(argv)
    try:
        torch.empty(1, device=args.device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise SystemExit(f'error: no {args.device} here: {reason}') from None
    findings = check_operators(args.device, args.operators)
    print(f'{device_name(args.device)}; torch {torch.__version__}\n{table(findings, args.device)}')
    if args.out:
        setting = {'device': device_name(args.device), 'torch': torch.__version__}
        records = [asdict(finding) | {'is_right': finding.is_right} for finding in findings]
        write_json(args.out, setting | {'results': records})
        print(args.out)
    wrong = [finding.describe() for finding in findings if not finding.is_right]
    if wrong:
        raise SystemExit('\n'.join(f'error: {text}' for text in wrong))


if __name__ == '__main__':
    main()
