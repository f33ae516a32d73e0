"""What every operator must do, written once. A test class per operator subclasses
:class:`OpContract`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmlocalattn.ops import has_kernel

CPU_ISAS = {'AVX512': ('avx512', 'avx2', 'portable'), 'AVX2': ('avx2', 'portable')}.get(
    torch.backends.cpu.get_cpu_capability(), ('portable',)
)
if 'avx512' in CPU_ISAS and 'avx512_bf16' in Path('/proc/cpuinfo').read_text():
    CPU_ISAS = ('avx512_bf16', *CPU_ISAS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Case = dict[str, Any]


def strided(tensor: Tensor) -> Tensor:
    """A copy whose last axis is the slowest in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def misaligned(tensor: Tensor) -> Tensor:
    """A contiguous copy one element behind where memory is aligned, and at its very end."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return memory[1:].view(tensor.shape).copy_(tensor)


def part_of_a_projection(tensor: Tensor) -> Tensor:
    """The second of three, side by side in memory as a joint projection leaves them."""
    return torch.stack([tensor] * 3, -3).unbind(-3)[1]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    'contiguous': lambda tensor: tensor,
    'strided': strided,
    'misaligned': misaligned,
}
CUDA_LAYOUTS = LAYOUTS | {'part_of_a_projection': part_of_a_projection}


def whole(tensor: Tensor, most: int, step: float) -> Tensor:
    """Random multiples of ``step`` up to ``most`` of them of either sign, in the tensor's shape."""
    return torch.randint(-most, most + 1, tensor.shape, device=tensor.device).to(tensor) * step


def with_large_products(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key of products up to 2 500 of either sign that fp32 holds exactly.

    Those of a query are of order 1 apart: the even channels of all keys are the same.
    """
    query, key = query.clone(), whole(key, 2, 1.0)
    query[...] = whole(query, 1, 0.125)
    channels = (query.shape[-1] + 1) // 2
    query[..., ::2] = whole(query[..., :1], 8 * 2496 // (6 * channels), 0.125)
    key[..., ::2] = 6
    return query, key


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute error as a fraction of the largest expected value (of 1e-3 where all are
    smaller)."""
    if expected.numel() == 0:
        return 0.0
    expected = expected.double()
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


class OpContract:
    """Subclasses say how to call the operator; a case is a dict that they understand.

    Attributes:
        op_name: Name below ``torch.ops.mmlocalattn``.
        cases: Small problems: H != W, window as large as the map, dilation, a 1x1 map, odd
            head_dim.
        cuda_cases: More of them for CUDA, which has kernels of its own for some head_dims.
        large_case: A map as a detector has it, for CUDA.
        errors: ``(change of the first case or of its tensors, part of the message)``.
        autocast_keeps: Indices of tensors that stay in their own dtype under autocast.
    """

    op_name: str
    cases: dict[str, Case]
    cuda_cases: dict[str, Case]
    large_case: Case
    errors: dict[str, tuple[Case, str]]
    autocast_keeps: tuple[int, ...] = ()

    def tensors(
        self, case: Case, dtype: torch.dtype = torch.float64, device: str = 'cpu'
    ) -> tuple[Tensor, ...]:
        """The differentiable inputs, drawn from a normal distribution."""
        raise AssertionError('a subclass says it')

    def call(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        """The public function."""
        raise AssertionError('a subclass says it')

    def op_args(self, tensors: tuple[Tensor, ...], case: Case) -> tuple:
        """The arguments of ``torch.ops.mmlocalattn.<op_name>``, which are also those of the
        reference."""
        raise AssertionError('a subclass says it')

    def reference(self, *args: Any) -> tuple[Tensor, ...]:
        """The vectorised PyTorch reference."""
        raise AssertionError('a subclass says it')

    def oracle(self, tensors: tuple[Tensor, ...], case: Case) -> Tensor:
        """The definition in plain loops, float64."""
        raise AssertionError('a subclass says it')

    def output_shape(self, tensors: tuple[Tensor, ...], case: Case) -> tuple[int, ...]:
        return tensors[0].shape

    def grads(
        self, output: Tensor, tensors: tuple[Tensor, ...], grad_output: Tensor
    ) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, tensors, grad_output.to(output), materialize_grads=True)

    def run(self, tensors: tuple[Tensor, ...], case: Case, grad_output: Tensor) -> list[Tensor]:
        """Output and gradients of the public function."""
        tensors = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        output = self.call(tensors, case)
        return [output.detach(), *self.grads(output, tensors, grad_output)]

    def run_reference(
        self, tensors: tuple[Tensor, ...], case: Case, grad_output: Tensor
    ) -> list[Tensor]:
        """The same through autograd of the reference."""
        tensors = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        output = self.reference(*self.op_args(tensors, case))[0]
        return [output.detach(), *self.grads(output, tensors, grad_output)]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise the tests over the cases and errors of the operator."""
        for argument, values in (
            ('case', self.cases),
            ('cuda_case', [*self.cases, *self.cuda_cases]),
            ('error', self.errors),
        ):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, list(values))

    def test_has_kernel(self) -> None:
        try:
            import mmlocalattn._ext  # noqa: F401
        except ImportError:
            assert not has_kernel(self.op_name, 'cpu')
        else:
            assert has_kernel(self.op_name, 'cpu')
            assert has_kernel(f'_{self.op_name}_backward', 'cpu')

    def test_reference_is_oracle(self, case: str) -> None:
        tensors = self.tensors(self.cases[case])
        output = self.reference(*self.op_args(tensors, self.cases[case]))[0]
        torch.testing.assert_close(
            output, self.oracle(tensors, self.cases[case]), rtol=1e-12, atol=1e-12
        )

    @pytest.mark.parametrize('layout', LAYOUTS)
    @pytest.mark.parametrize('dtype', DTYPES, ids=str)
    @pytest.mark.parametrize('isa', CPU_ISAS)
    def test_cpu_kernel_is_reference(
        self,
        case: str,
        isa: str,
        dtype: torch.dtype,
        layout: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if not has_kernel(self.op_name, 'cpu'):
            pytest.skip('no compiled kernel on this platform to compare')
        monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
        self.check_kernel(self.cases[case], dtype, layout)

    @pytest.mark.cuda
    @pytest.mark.parametrize('layout', CUDA_LAYOUTS)
    @pytest.mark.parametrize('dtype', DTYPES, ids=str)
    def test_cuda_kernel_is_reference(
        self, cuda_case: str, dtype: torch.dtype, layout: str
    ) -> None:
        assert has_kernel(self.op_name, 'cuda'), 'build with FORCE_CUDA=1'
        case = (self.cases | self.cuda_cases)[cuda_case]
        self.check_kernel(case, dtype, layout, 'cuda')

    @pytest.mark.cuda
    @pytest.mark.parametrize('dtype', DTYPES, ids=str)
    def test_cuda_graph(self, dtype: torch.dtype) -> None:
        """Forward and backward wait for nothing, so that a graph can hold them, and repeat."""
        case = self.cuda_cases['dim32']
        tensors = self.tensors(case, dtype, 'cuda')
        grad_output = torch.randn(self.output_shape(tensors, case), dtype=dtype, device='cuda')
        expected = self.run(tensors, case, grad_output)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            actual = self.run(tensors, case, grad_output)
        for _ in range(2):
            graph.replay()
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected))

    @pytest.mark.cuda
    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
    def test_cuda_large_map(self, dtype: torch.dtype) -> None:
        self.check_large_map(self.large_case, dtype, 'cuda')

    @pytest.mark.cuda
    def test_cuda_autocast_mixed_dtypes(self, cuda_case: str) -> None:
        self.check_autocast((self.cases | self.cuda_cases)[cuda_case], 'cuda')

    @pytest.mark.cuda
    def test_cuda_streams(self) -> None:
        """Two of them run side by side, each after what its own stream has still to do."""
        case = self.cuda_cases['dim32']
        tensors = self.tensors(case, torch.float32, 'cuda')
        grad_output = torch.randn(self.output_shape(tensors, case), device='cuda')
        expected = self.run(tensors, case, grad_output)
        torch.cuda.synchronize()
        results = []
        for _ in range(2):
            with torch.cuda.stream(torch.cuda.Stream()):
                late = [torch.zeros_like(tensor) for tensor in tensors]
                torch.cuda._sleep(10_000_000)
                for tensor, value in zip(late, tensors):
                    tensor.copy_(value)
                results.append(self.run(tuple(late), case, grad_output))
        torch.cuda.synchronize()
        for actual in results:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected))

    def check_kernel(
        self, case: Case, dtype: torch.dtype, layout: str = 'contiguous', device: str = 'cpu'
    ) -> None:
        tensors = self.tensors(case, dtype, device)
        place = CUDA_LAYOUTS[layout]
        tensors = tuple(place(tensor) for tensor in tensors)
        shape = self.output_shape(tensors, case)
        grad_output = place(torch.randn(shape, dtype=dtype, device=device))
        actual = self.run(tensors, case, grad_output)
        if dtype not in (torch.float64, torch.float32):
            self.check_rounding(tensors, case, grad_output, actual)
            return
        # In float64: the rounding of a reference in fp32 differs from processor to processor.
        exact = self.run_reference(
            tuple(tensor.double() for tensor in tensors), case, grad_output.double()
        )
        tolerance = 1e-11 if dtype == torch.float64 else 1e-5
        for ours, truth in zip(actual, exact, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)

    def check_large_map(self, case: Case, dtype: torch.dtype, device: str = 'cpu') -> None:
        """Like `check_kernel`, with errors as fractions of the largest value: sums are long."""
        tensors = self.tensors(case, dtype, device)
        grad_output = torch.randn(self.output_shape(tensors, case), dtype=dtype, device=device)
        actual = self.run(tensors, case, grad_output)
        if dtype not in (torch.float64, torch.float32):
            self.check_rounding(tensors, case, grad_output, actual)
            return
        expected = self.run_reference(tensors, case, grad_output)
        for ours, theirs in zip(actual, expected, strict=True):
            assert relative_error(ours, theirs) < (1e-5 if dtype == torch.float32 else 1e-12)

    def check_rounding(
        self, tensors: tuple[Tensor, ...], case: Case, grad_output: Tensor, actual: list[Tensor]
    ) -> None:
        """The error of a low precision against fp32 is at most twice that of the reference at that
        precision."""
        reference = self.run_reference(tensors, case, grad_output)
        exact = self.run_reference(
            tuple(tensor.float() for tensor in tensors), case, grad_output.float()
        )
        dtype = grad_output.dtype
        floor = torch.finfo(dtype).eps / 2  # one rounding of the result
        for ours, theirs, truth in zip(actual, reference, exact, strict=True):
            assert ours.dtype == dtype
            assert relative_error(ours, truth) <= 2 * max(relative_error(theirs, truth), floor)

    def test_closed_form_backward(self, case: str) -> None:
        tensors = self.tensors(self.cases[case])
        grad_output = torch.randn(self.output_shape(tensors, self.cases[case])).double()
        args = self.op_args(tensors, self.cases[case])
        outputs = self.reference(*args)
        grads = self.backward_reference(grad_output, args, outputs)
        expected = self.run_reference(tensors, self.cases[case], grad_output)[1:]
        for ours, theirs in zip(grads, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    def backward_reference(self, grad_output: Tensor, args: tuple, outputs: tuple) -> list[Tensor]:
        """The closed-form gradients of the differentiable inputs."""
        raise AssertionError('a subclass says it')

    def test_gradcheck(self, case: str) -> None:
        tensors = tuple(tensor.requires_grad_() for tensor in self.tensors(self.cases[case]))
        assert torch.autograd.gradcheck(
            lambda *inputs: self.call(inputs, self.cases[case]), tensors, fast_mode=True
        )

    @pytest.mark.needs_torch('2.4', 'torch.library.opcheck')
    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize('requires_grad', [True, False], ids=['grad', 'nograd'])
    def test_opcheck(self, case: str, dtype: torch.dtype, requires_grad: bool) -> None:
        tensors = self.tensors(self.cases[case], dtype)
        args = self.op_args(
            tuple(tensor.requires_grad_(requires_grad) for tensor in tensors), self.cases[case]
        )
        op = getattr(torch.ops.mmlocalattn, self.op_name).default
        assert set(torch.library.opcheck(op, args).values()) == {'SUCCESS'}

    def test_autocast_mixed_dtypes(self, case: str) -> None:
        self.check_autocast(self.cases[case], 'cpu')

    def check_autocast(self, case: Case, device: str) -> None:
        tensors = self.tensors(case, torch.float32, device)
        mixed = tuple(tensor.bfloat16() if i % 2 else tensor for i, tensor in enumerate(tensors))
        mixed = tuple(tensor.detach().requires_grad_() for tensor in mixed)
        with torch.autocast(device, dtype=torch.bfloat16):
            output = self.call(mixed, case)
        assert output.dtype == torch.bfloat16
        cast = (
            tensor if i in self.autocast_keeps else tensor.bfloat16()
            for i, tensor in enumerate(mixed)
        )
        expected = self.call(tuple(cast), case)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        for tensor, grad in zip(mixed, self.grads(output, mixed, torch.ones_like(output))):
            assert grad.dtype == tensor.dtype

    @pytest.mark.needs_torch('2.4', 'torch.compile of an operator')
    def test_compile_fullgraph(self) -> None:
        compiled = torch.compile(self.call, fullgraph=True, backend='aot_eager', dynamic=True)
        for case in list(self.cases.values())[:2]:
            tensors = tuple(tensor.requires_grad_() for tensor in self.tensors(case))
            output, expected = compiled(tensors, case), self.call(tensors, case)
            torch.testing.assert_close(output, expected)
            grad_output = torch.randn_like(expected)
            for ours, theirs in zip(
                self.grads(output, tensors, grad_output), self.grads(expected, tensors, grad_output)
            ):
                torch.testing.assert_close(ours, theirs)

    def test_backward_is_deterministic(self, case: str) -> None:
        tensors = self.tensors(self.cases[case], torch.float32)
        grad_output = torch.randn(self.output_shape(tensors, self.cases[case]))
        first = self.run(tensors, self.cases[case], grad_output)
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if threads > 1 else 2)
        second = self.run(tensors, self.cases[case], grad_output)
        torch.set_num_threads(threads)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second))

    def test_checkpointing(self, case: str) -> None:
        tensors = tuple(tensor.requires_grad_() for tensor in self.tensors(self.cases[case]))
        results = []
        for run in (self.call, partial(checkpoint, self.call, use_reentrant=False)):
            output = run(tensors, self.cases[case])
            results.append(self.grads(output, tensors, torch.ones_like(output)))
        assert all(torch.equal(*pair) for pair in zip(*results))

    def test_meta_device(self, case: str) -> None:
        tensors = tuple(tensor.to('meta') for tensor in self.tensors(self.cases[case]))
        meta_case = {
            key: value.to('meta') if isinstance(value, Tensor) else value
            for key, value in self.cases[case].items()
        }
        output = self.call(tensors, meta_case)
        assert output.device.type == 'meta'
        assert output.shape == self.output_shape(tensors, self.cases[case])

    def test_empty_batch(self) -> None:
        case = next(iter(self.cases.values()))
        tensors = tuple(
            tensor[:0] if tensor.dim() == 5 else tensor for tensor in self.tensors(case)
        )
        shape = self.output_shape(tensors, case)
        results = self.run(tensors, case, torch.zeros(shape, dtype=tensors[0].dtype))
        assert [result.shape for result in results] == [
            shape,
            *(tensor.shape for tensor in tensors),
        ]
        assert all(result.abs().sum() == 0 for result in results)

    def test_nan_is_not_swallowed(self) -> None:
        case = next(iter(self.cases.values()))
        query, *rest = self.tensors(case, torch.float32)
        query[0, 0, 0] = float('nan')
        assert self.call((query, *rest), case)[0, 0, 0].isnan().all()

    def test_large_logits_do_not_overflow(self) -> None:
        case = next(iter(self.cases.values()))
        query, *rest = self.tensors(case, torch.float32)
        output = self.call((query * 1e4, *rest), case)
        expected = self.reference(
            *self.op_args(tuple(t.double() for t in (query * 1e4, *rest)), case)
        )[0]
        assert relative_error(output, expected) < 1e-3

    def test_second_derivative_raises(self) -> None:
        case = next(iter(self.cases.values()))
        tensors = tuple(tensor.requires_grad_() for tensor in self.tensors(case))
        output = self.call(tensors, case).square().sum()
        (grad,) = torch.autograd.grad(output, tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match='no second derivative'):
            grad.sum().backward()

    def test_error(self, error: str) -> None:
        change, message = self.errors[error]
        case = dict(next(iter(self.cases.values())))
        tensors = list(self.tensors(case, torch.float32))
        for key, value in change.items():
            if isinstance(key, int):
                tensors[key] = value(tensors[key])
            else:
                case[key] = value
        with pytest.raises(ValueError, match=message):
            self.call(tuple(tensors), case)


class SoftmaxContract(OpContract):
    """What an operator with a softmax owes besides: gradients of large logits.

    Attributes:
        steep_cases: Cases whose logits `steep_tensors` makes large.
    """

    steep_cases: dict[str, Case]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        super().pytest_generate_tests(metafunc)
        if 'steep_case' in metafunc.fixturenames:
            metafunc.parametrize('steep_case', list(self.steep_cases))

    def steep_tensors(self, case: Case) -> tuple[Tensor, ...]:
        """Tensors in fp32 whose logits reach 1e4 and are exact, some of each window close."""
        raise AssertionError('a subclass says it')

    @pytest.mark.parametrize('isa', CPU_ISAS)
    def test_gradients_of_large_logits(
        self, steep_case: str, isa: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not has_kernel(self.op_name, 'cpu'):
            pytest.skip('no compiled kernel on this platform to compare')
        monkeypatch.setenv('MMLOCALATTN_CPU_ISA', isa)
        self.check_large_logits(self.steep_cases[steep_case])

    @pytest.mark.cuda
    def test_cuda_gradients_of_large_logits(self, steep_case: str) -> None:
        self.check_large_logits(self.steep_cases[steep_case], 'cuda')

    def test_reference_gradients_of_large_logits(self, steep_case: str) -> None:
        case = self.steep_cases[steep_case]
        tensors = self.steep_tensors(case)
        grad_output = torch.randn(self.output_shape(tensors, case))
        args = self.op_args(tensors, case)
        grads = self.backward_reference(grad_output, args, self.reference(*args))
        self.check_accuracy(tensors, case, grad_output, grads)

    def check_large_logits(self, case: Case, device: str = 'cpu') -> None:
        tensors = tuple(tensor.to(device) for tensor in self.steep_tensors(case))
        grad_output = torch.randn(self.output_shape(tensors, case), device=device)
        actual = self.run(tensors, case, grad_output)
        self.check_accuracy(tensors, case, grad_output, actual)

    def check_accuracy(
        self, tensors: tuple[Tensor, ...], case: Case, grad_output: Tensor, actual: list[Tensor]
    ) -> None:
        """Of gradients, or of the output and them, in fp32."""
        exact = tuple(tensor.double() for tensor in tensors)
        truths = self.run_reference(exact, case, grad_output.double())[-len(actual) :]
        for ours, truth in zip(actual, truths, strict=True):
            assert relative_error(ours, truth) < 2e-5
