"""One side of compare_builds.py: times the cases of its table with the mmlocalattn on its path.

Reads a JSON line per request, answers with one each. It uses the public interface only, so that it
works for any two checkouts.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from zlib import crc32

import torch
from torch import Tensor, nn

import mmlocalattn
from mmlocalattn.ops import (
    OPS,
    has_kernel,
    neighborhood,
    slide,
    sparse_scan,
    stand_alone,
)

query_and_attend = import_module('mmlocalattn.ops.query_and_attend')  # the operator has its name

INSTRUCTION_SETS = ('avx512_bf16', 'avx512', 'avx2', 'portable')
PASSES = {'forward': False, 'forward+backward': True}
TOLERANCE = {'float64': 1e-12, 'float32': 1e-5, 'bfloat16': 5e-3}
MATRIX = 2048
SLOW_SECONDS = 1.0
"""The first call tells how long one takes if it takes longer, else the second one."""


class Problem(NamedTuple):
    """A function, the tensors that it takes, and the module whose parameters it uses."""

    function: Callable[..., Any]
    tensors: list[Tensor]
    module: nn.Module | None = None


def neighborhood_attention(
    height: int, width: int, heads: int, kernel: int, dilation: int, bias: bool = False
) -> Problem:
    tensors = maps(height, width, heads, 32)
    if bias:
        tensors.append(torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1))

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        return neighborhood.neighborhood_attention(query, key, value, kernel, dilation, bias)

    return Problem(run, tensors)


def sparse_scan_attention(
    height: int, width: int, heads: int, window: int, anchors: int, dilation: int
) -> Problem:
    angles = torch.randn(height, width, 16).repeat_interleave(2, -1)
    rotary = angles.sin(), angles.cos()

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        windows = window, anchors, dilation
        return sparse_scan.sparse_scan_attention(query, key, value, *windows, rotary=rotary)

    return Problem(run, maps(height, width, heads, 32))


def slide_attention(height: int, width: int, heads: int, kernel: int) -> Problem:
    weight = slide.shift_kernel(32, kernel)
    weight += torch.randn(weight.shape) / kernel**2
    biases = 0.1 * torch.randn(weight.shape[:2]), torch.randn(heads, kernel, kernel)
    tensors = [*maps(height, width, heads, 32), weight, *biases]
    return Problem(lambda *tensors: slide.slide_attention(*tensors), tensors)


def query_and_attend_(height: int, width: int, heads: int, kernel: int, stride: int) -> Problem:
    _, _, values = maps(height, width, heads, 8)
    scores, tables = torch.randn(1, height, width, 2, heads), (2, heads, kernel, kernel)

    def run(*tensors: Tensor) -> Tensor:
        return query_and_attend.query_and_attend(*tensors, kernel_size=kernel, stride=stride)

    return Problem(run, [scores, values, torch.randn(tables), torch.randn(tables)])


def stand_alone_attention(
    height: int, width: int, heads: int, kernel: int, head_dim: int
) -> Problem:
    embeddings = torch.randn(2, heads, kernel, head_dim // 2).unbind()

    def run(*tensors: Tensor) -> Tensor:
        query, key, value, rows, columns = tensors
        return stand_alone.stand_alone_attention(
            query, key, value, rows, columns, kernel, scale=head_dim**-0.5
        )

    return Problem(run, [*maps(height, width, heads, head_dim), *embeddings])


def matrix_product(rows: int, columns: int) -> Problem:
    return Problem(torch.mm, [torch.randn(rows, columns), torch.randn(columns, rows)])


def ssvit_tiny(height: int, width: int) -> Problem:
    from mmlocalattn.backbones import SSViT  # brings mmcv, which the operators do not need

    model = SSViT('tiny')
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # by name: a build may make its parameters in another order
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            parameter.data.normal_(std=0.02, generator=generator)
    return Problem(model, [torch.randn(1, 3, height, width)], model)


def maps(height: int, width: int, heads: int, head_dim: int) -> list[Tensor]:
    return [torch.randn(1, height, width, heads, head_dim) for _ in range(3)]


ALL = ('float32', 'bfloat16', 'float64')
HALF = ('float32', 'bfloat16')
ONE = ('float32',)
CONTROL, MODEL = 'control', 'model'
TABLE: tuple[tuple[str, Callable[..., Problem], tuple, Sequence[str]], ...] = (
    (CONTROL, matrix_product, (MATRIX, MATRIX), ONE),
    # height, width, heads, kernel, dilation, with bias
    ('neighborhood_attention', neighborhood_attention, (14, 14, 16, 7, 1), ONE),
    ('neighborhood_attention', neighborhood_attention, (100, 167, 2, 7, 1), ALL),
    ('neighborhood_attention', neighborhood_attention, (100, 167, 2, 15, 6), ONE),
    ('neighborhood_attention', neighborhood_attention, (100, 167, 2, 29, 3), HALF),
    ('neighborhood_attention', neighborhood_attention, (50, 84, 8, 7, 7), ONE),
    ('neighborhood_attention', neighborhood_attention, (50, 84, 8, 7, 7, True), ONE),
    ('neighborhood_attention', neighborhood_attention, (200, 334, 2, 29, 6), ONE),
    ('neighborhood_attention', neighborhood_attention, (200, 334, 2, 7, 28), ONE),
    # height, width, heads, window, anchors, dilation: the stages of SSViT-S at 800x1336
    ('sparse_scan_attention', sparse_scan_attention, (200, 334, 2, 7, 29, 6), ONE),
    ('sparse_scan_attention', sparse_scan_attention, (100, 167, 4, 7, 15, 6), ONE),
    ('sparse_scan_attention', sparse_scan_attention, (50, 84, 8, 7, 7, 7), HALF),
    ('sparse_scan_attention', sparse_scan_attention, (25, 42, 16, 7, 3, 7), ONE),
    # height, width, heads, kernel: the slide stages of Slide-Swin-T at 800x1336, a larger kernel
    ('slide_attention', slide_attention, (200, 334, 3, 3), ONE),
    ('slide_attention', slide_attention, (100, 167, 6, 3), ALL),
    ('slide_attention', slide_attention, (50, 84, 12, 5), ONE),
    # height, width, heads of 8 channels, kernel, stride
    ('query_and_attend', query_and_attend_, (200, 334, 8, 3, 1), ONE),
    ('query_and_attend', query_and_attend_, (200, 334, 8, 7, 1), HALF),
    ('query_and_attend', query_and_attend_, (200, 334, 8, 13, 1), ONE),
    ('query_and_attend', query_and_attend_, (200, 334, 8, 3, 2), ONE),
    # height, width, heads, kernel, head_dim: stages of SASA-ResNet-50 at 800x1336
    ('stand_alone_attention', stand_alone_attention, (200, 334, 8, 7, 8), ONE),
    ('stand_alone_attention', stand_alone_attention, (100, 167, 8, 7, 16), HALF),
    ('stand_alone_attention', stand_alone_attention, (50, 84, 8, 7, 32), ONE),
    (MODEL, ssvit_tiny, (480, 640), ONE),
)


class Case(NamedTuple):
    """A line of the table, with one dtype and one pass.

    Attributes:
        kind: The operator, or `CONTROL` for what does not depend on mmlocalattn, or `MODEL`.
    """

    kind: str
    make: Callable[[], Problem]
    dtype: str
    backward: bool


def make_cases() -> dict[str, Case]:
    """By name, such as ``neighborhood_attention 100x167,2,7,1 float32 forward``."""
    cases = {}
    for kind, maker, shape, dtypes in TABLE:
        height, width, *rest = shape
        numbers = ','.join(map(str, (f'{height}x{width}', *map(int, rest))))
        for dtype in dtypes:
            for title, backward in PASSES.items():
                if backward and kind == CONTROL:
                    continue
                name = f'{maker.__name__.rstrip("_")} {numbers} {dtype} {title}'
                cases[name] = Case(kind, functools.partial(maker, *shape), dtype, backward)
    return cases


class Run(NamedTuple):
    """What is timed: gives the outputs, and the gradients of the tensors and of parameters."""

    call: Callable[[], list[Tensor]]
    parameters: int = 0

    def result(self) -> list[Tensor]:
        """With one vector for all parameters: the gradients of some, such as a bias that softmax
        cancels, are nothing but rounding."""
        tensors = [tensor.detach() for tensor in self.call()]
        count = len(tensors) - self.parameters
        rest = [torch.cat([t.flatten() for t in tensors[count:]])] if self.parameters else []
        return [*tensors[:count], *rest]


def make_run(case: Case) -> Run:
    torch.manual_seed(0)
    function, tensors, module = case.make()
    tensors = [tensor.to(getattr(torch, case.dtype)) for tensor in tensors]
    parameters = []
    if module is not None:
        parameters = [parameter for _, parameter in sorted(module.named_parameters())]
        module.train(case.backward)

    def forward() -> list[Tensor]:
        outputs = function(*tensors)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    if not case.backward:
        return Run(torch.no_grad()(forward))
    grads = [torch.randn_like(output) for output in torch.no_grad()(forward)()]
    leaves = [*(tensor.requires_grad_() for tensor in tensors), *parameters]

    def both() -> list[Tensor]:
        outputs = forward()
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    return Run(both, len(parameters))


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error as a fraction of the largest value of its tensor, infinite for NaN."""
    if [(t.shape, t.dtype) for t in actual] != [(t.shape, t.dtype) for t in expected]:
        return float('inf')
    worst = 0.0
    for ours, theirs in zip(actual, expected):
        difference = (ours.double() - theirs.double()).abs().max().item()
        if difference == 0:
            continue
        error = difference / max(theirs.double().abs().max().item(), 1e-30)
        worst = max(worst, error if error == error else float('inf'))
    return worst


def call_small() -> None:
    query, key, value = torch.zeros(3, 1, 3, 3, 1, 8)
    neighborhood.neighborhood_attention(query, key, value, 3)


class Side:
    """Answers the requests; holds the case that was prepared last."""

    def __init__(self) -> None:
        self.cases = make_cases()
        self.run: Run | None = None

    def describe(self) -> dict:
        missing = [name for name in OPS if not has_kernel(name, 'cpu')]
        if missing:
            raise RuntimeError(f'there are no compiled kernels of {", ".join(missing)}')
        call_small()  # says if the environment asks for an instruction set that is not there
        return {
            'package': str(Path(mmlocalattn.__file__).parent),
            'version': mmlocalattn.__version__,
            'torch': torch.__version__,
            'threads': torch.get_num_threads(),
            'cases': {name: case.kind for name, case in self.cases.items()},
            'matrix_gflop': 2 * MATRIX**3 / 1e9,
        }

    def instruction_sets(self) -> list[str]:
        """Those of this build and machine, the best one first: what does not raise."""
        found = []
        for name in INSTRUCTION_SETS:
            os.environ['MMLOCALATTN_CPU_ISA'] = name
            try:
                call_small()
            except RuntimeError:
                continue
            found.append(name)
        del os.environ['MMLOCALATTN_CPU_ISA']
        return found

    def prepare(self, name: str, save: str | None = None, expected: str | None = None) -> dict:
        """Make the run of a case, save its result or compare it with a saved one."""
        self.run = None  # frees the memory of the case before
        case = self.cases[name]
        self.run = make_run(case)
        start = time.perf_counter()
        result = self.run.result()
        seconds = time.perf_counter() - start
        if seconds < SLOW_SECONDS:
            (seconds,) = self.time(1)
        answer = {'tolerance': TOLERANCE[case.dtype], 'seconds': seconds}
        if save is not None:
            torch.save(result, save)
        if expected is not None:
            answer['error'] = relative_error(result, torch.load(expected))
        return answer

    def time(self, calls: int) -> list[float]:
        """Seconds of every call of what was prepared."""
        assert self.run is not None
        if calls > 1:
            self.run.call()  # does not count: the other side had the caches
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            self.run.call()
            seconds.append(time.perf_counter() - start)
        return seconds


def serve(requests: TextIO, answers: TextIO) -> None:
    """A request is ``[method of Side, arguments by name]``; an answer has a result or an error."""
    side = Side()
    for line in requests:
        method, arguments = json.loads(line)
        try:
            answer = {'result': getattr(side, method)(**arguments)}
        except Exception as error:
            answer = {'failure': f'{type(error).__name__}: {error}'.partition('\n')[0]}
        print(json.dumps(answer), file=answers, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--threads', type=int, help="default: PyTorch's")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin, answers)


if __name__ == '__main__':
    main()
