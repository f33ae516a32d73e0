"""Registration of operators: schemas, names, what is refused."""

import importlib.util
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual
from torch.utils.flop_counter import FlopCounterMode

import mmlocalattn.ops
from mmlocalattn.ops import OPS, neighborhood_attention
from mmlocalattn.ops._library import register_operator
from mmlocalattn.ops.flops import JIT_HANDLES

# Compiled kernels, exported files and callers of torch.ops rely on what was once published.
SCHEMAS = """
neighborhood_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, SymInt[2] kernel_size,
    SymInt[2] dilation, float scale) -> (Tensor output, Tensor logsumexp)
_neighborhood_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value,
    Tensor? bias, Tensor output, Tensor logsumexp, SymInt[2] kernel_size, SymInt[2] dilation,
    float scale) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)
sparse_scan_attention(Tensor query, Tensor key, Tensor value, Tensor? sin, Tensor? cos,
    SymInt[2] local_kernel, SymInt[2] anchor_kernel, SymInt[2] anchor_dilation, float scale) ->
    (Tensor output, Tensor inner, Tensor local_logsumexp, Tensor anchor_logsumexp)
_sparse_scan_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value,
    Tensor? sin, Tensor? cos, Tensor output, Tensor inner, Tensor local_logsumexp,
    Tensor anchor_logsumexp, SymInt[2] local_kernel, SymInt[2] anchor_kernel,
    SymInt[2] anchor_dilation, float scale) ->
    (Tensor grad_query, Tensor grad_key, Tensor grad_value)
slide_attention(Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? bias,
    Tensor? position_bias, float scale) -> (Tensor output, Tensor logsumexp)
_slide_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor weight,
    Tensor? bias, Tensor? position_bias, Tensor logsumexp, float scale) ->
    (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_weight, Tensor grad_bias,
    Tensor grad_position_bias)
query_and_attend(Tensor scores, Tensor values, Tensor? position_bias, Tensor? attention_scale,
    int[2] kernel_size, int stride) -> (Tensor output, Tensor logsumexp)
_query_and_attend_backward(Tensor grad_output, Tensor scores, Tensor values, Tensor? position_bias,
    Tensor? attention_scale, Tensor logsumexp, int[2] kernel_size, int stride) ->
    (Tensor grad_scores, Tensor grad_values, Tensor grad_position_bias,
    Tensor grad_attention_scale)
stand_alone_attention(Tensor query, Tensor key, Tensor value, Tensor row_embedding,
    Tensor column_embedding, int[2] kernel_size, bool zero_padding, float scale) ->
    (Tensor output, Tensor logsumexp)
_stand_alone_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value,
    Tensor row_embedding, Tensor column_embedding, Tensor logsumexp, int[2] kernel_size,
    bool zero_padding, float scale) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value,
    Tensor grad_row_embedding, Tensor grad_column_embedding)
""".replace('\n    ', ' ').split('\n')[1:-1]


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.partition('(')[0])
def test_schema(schema: str) -> None:
    op = getattr(torch.ops.mmlocalattn, schema.partition('(')[0]).default
    assert str(op._schema) == f'mmlocalattn::{schema}'


def test_every_operator_is_registered_and_public() -> None:
    names = {name for op in OPS for name in (op, f'_{op}_backward')}
    assert {schema.partition('(')[0] for schema in SCHEMAS} <= names
    assert {f'mmlocalattn::{name}' for name in names} <= {*JIT_HANDLES}
    assert {*mmlocalattn.ops.__all__} == {*OPS, 'OPS', 'has_kernel', 'implementation'}


@pytest.mark.parametrize('name', OPS)
def test_operator_is_in_the_package_and_in_its_module(name: str) -> None:
    function = getattr(mmlocalattn.ops, name)
    module = importlib.import_module(function.__module__)
    assert function is getattr(module, name)
    assert function.__name__ == name


def test_function_hides_the_module_of_its_name() -> None:
    import mmlocalattn.ops.query_and_attend
    from mmlocalattn.ops.query_and_attend import query_and_attend, query_and_attend_reference

    assert mmlocalattn.ops.query_and_attend is query_and_attend
    module = sys.modules['mmlocalattn.ops.query_and_attend']
    assert module.query_and_attend_reference is query_and_attend_reference


def test_torch_before_2_7_is_enough() -> None:
    program = "import torch; vars(torch.compiler).pop('is_exporting', None); import mmlocalattn.ops"
    subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize('name', [name for op in OPS for name in (op, f'_{op}_backward')])
@pytest.mark.parametrize('key', ['AutogradCPU', 'AutogradCUDA'])
def test_extension_differentiates(name: str, key: str) -> None:
    built = importlib.util.find_spec('mmlocalattn._ext') is not None
    name = f'mmlocalattn::{name}'
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key) == built


@pytest.mark.skipif(
    importlib.util.find_spec('mmlocalattn._ext') is None, reason='there is no extension to load'
)
def test_extension_alone_knows_the_schemas() -> None:
    """And differentiates; `mmlocalattn.ops` may come after it."""
    program = """
import sys, torch
torch.ops.load_library(sys.argv[1])
ops = torch.ops.mmlocalattn
for schema in sys.argv[2:]:
    found = str(getattr(ops, schema.partition('(')[0]).default._schema)
    assert found == f'mmlocalattn::{schema}', found
x = torch.randn(1, 4, 5, 2, 4, requires_grad=True)
def grad():
    output, _ = ops.neighborhood_attention(x, x, x, None, (3, 3), (1, 1), 0.5)
    return torch.autograd.grad(output.sum(), x)[0]
alone = grad()
assert 'mmlocalattn' not in sys.modules
import mmlocalattn.ops
assert mmlocalattn.ops.has_kernel('slide_attention', 'cpu')
assert torch.equal(grad(), alone)
"""
    library = importlib.util.find_spec('mmlocalattn._ext').origin
    subprocess.run([sys.executable, '-c', program, library, *SCHEMAS], check=True)


def small() -> tuple[Tensor, Tensor]:
    """A map and what attention makes of it."""
    x = torch.randn(1, 4, 5, 2, 4, requires_grad=True)
    return x, neighborhood_attention(x, x, x, 3)


def test_graph_is_freed_and_can_be_kept() -> None:
    x, output = small()
    kept = torch.autograd.grad(output.sum(), x, retain_graph=True)
    assert torch.equal(*kept, *torch.autograd.grad(output.sum(), x))
    with pytest.raises(RuntimeError, match='backward through the graph a second time'):
        torch.autograd.grad(output.sum(), x)


def test_inputs_changed_before_the_backward_pass_are_noticed() -> None:
    x = torch.randn(1, 4, 5, 2, 4)
    value = x.clone().requires_grad_()
    output = neighborhood_attention(x, x, value, 3)
    x.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        output.sum().backward()


def test_only_what_needs_a_gradient_gets_one() -> None:
    query, key, value = torch.randn(3, 1, 4, 5, 2, 4)
    key.requires_grad_()
    neighborhood_attention(query, key, value, 3).sum().backward()
    assert (query.grad, value.grad) == (None, None)
    assert key.grad.abs().sum() > 0
    with torch.no_grad():
        assert neighborhood_attention(query, key, value, 3).grad_fn is None
    assert not neighborhood_attention(query, key.detach(), value, 3).requires_grad


def test_backward_in_another_thread() -> None:
    x, output = small()
    expected = torch.autograd.grad(output.sum(), x, retain_graph=True)
    with ThreadPoolExecutor(1) as pool:
        (actual,) = pool.submit(torch.autograd.grad, output.sum(), x).result()
    assert torch.equal(actual, *expected)


@pytest.mark.skipif(
    importlib.util.find_spec('mmlocalattn._ext') is None, reason='PyTorch loses the tangent then'
)
def test_forward_mode_is_refused() -> None:
    x = torch.randn(1, 4, 5, 2, 4)
    with dual_level(), pytest.raises(NotImplementedError, match='no derivative in forward mode'):
        neighborhood_attention(make_dual(x, x), x, x, 3)


def register(schema: str, **names: tuple[str, ...]) -> None:
    register_operator(
        schema,
        reference=lambda x, factor: x * factor,
        backward_reference=lambda grad_output, x, factor: grad_output * factor,
        fake=lambda x, factor: x.new_empty(x.shape),
        multiply_adds=lambda backward, x, **_: sum(x) + backward,
        **names,
    )


def test_reference_says_once_that_it_serves() -> None:
    register('test_served(Tensor x, float factor) -> Tensor output')
    op, x = torch.ops.mmlocalattn.test_served, torch.ones(2)
    with pytest.warns(UserWarning, match='test_served has no compiled cpu kernel, .* `pip '):
        op(x, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        op(x, 2.0)
        op(x.to('meta'), 2.0)


def test_one_tensor_and_one_output() -> None:
    register('test_scale(Tensor x, float factor) -> Tensor output')
    op, backward = torch.ops.mmlocalattn.test_scale, torch.ops.mmlocalattn._test_scale_backward
    assert str(backward.default._schema) == (
        'mmlocalattn::_test_scale_backward(Tensor grad_output, Tensor x, float factor) -> '
        'Tensor grad_x'
    )
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(op(x, 3.0), x * 3)
    assert torch.autograd.gradcheck(op, (x, 3.0))
    with FlopCounterMode(display=False) as counter:
        op(x, 3.0).sum().backward()
    assert counter.get_total_flops() == 2 * (5 + 5 + 1)


@pytest.mark.needs_torch('2.4', 'torch.library.opcheck')
def test_one_tensor_passes_the_checks_of_pytorch() -> None:
    register('test_checked(Tensor x, float factor) -> Tensor output')
    x = torch.randn(2, 3, requires_grad=True)
    op = torch.ops.mmlocalattn.test_checked.default
    assert set(torch.library.opcheck(op, (x, 3.0)).values()) == {'SUCCESS'}


@pytest.mark.parametrize(
    ('schema', 'names', 'message'),
    [
        ('no_tensor(float x) -> Tensor output', {}, 'must be NAME'),
        ('tensor_behind(Tensor x, int n, Tensor y) -> Tensor output', {}, 'must be NAME'),
        ('no_name(Tensor x) -> Tensor', {}, 'must be NAME'),
        ('unknown(Tensor x) -> Tensor output', dict(saved=('x',)), 'no x in'),
        ('unknown(Tensor x) -> Tensor output', dict(parameters=('output', 'y')), 'no output, y in'),
        ('unknown(Tensor x) -> Tensor output', dict(constants=('z',)), 'no z in'),
    ],
)
def test_refused(schema: str, names: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(schema, **names)
    assert not hasattr(torch.ops.mmlocalattn, schema.partition('(')[0])
