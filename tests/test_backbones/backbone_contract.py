"""What every pyramid backbone must do, written once. A test class per backbone subclasses
:class:`BackboneContract`."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmlocalattn.registry import MODELS

IMAGE_SIZES = ((1, 1), (32, 32), (37, 53), (64, 20))
OLD_ANSWERS = Path(__file__).parents[1] / 'data' / 'old_answers.json'


def waves(tensor: Tensor, phase: float = 0.0) -> Tensor:
    """Numbers in the shape of a tensor that no random generator and no version of torch changes."""
    steps = torch.arange(tensor.numel(), dtype=torch.float64)
    return torch.sin(steps * 0.7 + steps.square() * 1e-4 + phase).view(tensor.shape)


def answers(model: nn.Module) -> list[float]:
    """What a backbone makes of one image, and its gradient: some sums of it.

    Args:
        model: Its weights are overwritten, as random ones differ between releases of torch; those
            that begin with one value, as in a norm, are changed.
    """
    model.double().eval()
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            if weight.dim() > 1:
                weight.copy_(waves(weight, index) * 1.5 * weight[0].numel() ** -0.5)
            else:
                is_constant = bool((weight == weight[0]).all())
                weight.copy_(weight * is_constant + waves(weight, index) * 0.1)
    image = waves(torch.empty(1, 3, 109, 150)).requires_grad_()
    outputs = model(image)
    sums = [(output * waves(output)).mean() for output in outputs]
    sum(sums).backward()
    means = [output.abs().mean() for output in outputs]
    gradient = [(image.grad * waves(image)).sum(), image.grad.abs().sum()]
    return [value.item() for value in (*sums, *means, *gradient)]


class BackboneContract:
    """Subclasses name a backbone and say what is known about it.

    Attributes:
        backbone: The class.
        narrow: An ``arch`` dict of a tiny model, every option of the family in it.
        options: Constructor arguments that the tests of this class use beside ``arch``.
        in_a_graph: What a graph for all sizes has otherwise than ``narrow``: fewer blocks, where
            they are alike.
        parameters: Number of parameters of the backbone alone by ``arch``, without output norms.
        strides: Of the maps.
        argument: Name of the constructor's first argument.
    """

    backbone: type
    narrow: dict[str, Any]
    options: dict[str, Any] = {}  # noqa: RUF012
    in_a_graph: dict[str, Any] = {}  # noqa: RUF012
    parameters: dict[str, int]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    argument = 'arch'

    def build(self, **options: Any) -> nn.Module:
        """The tiny model."""
        return self.backbone(self.narrow, **{**self.options, **options})

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for argument, values in (('arch', self.backbone.arch_settings), ('size', IMAGE_SIZES)):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, values, ids=str)

    def test_is_registered(self) -> None:
        arch = {self.argument: self.narrow}
        cfg = dict(type=f'mmlocalattn.{self.backbone.__name__}', **arch, **self.options)
        assert type(MODELS.build(cfg)) is self.backbone

    def test_rejects_an_unknown_option_and_options_without_a_name(self) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'drop_rate'"):
            self.build(drop_rate=0.1)
        with pytest.raises(TypeError, match='positional argument'):
            self.backbone(self.narrow, 7, 3, (0, 1, 2, 3), 0)

    def test_parameters(self, arch: str) -> None:
        with torch.device('meta'):
            model = self.backbone(arch, output_norm=False, **self.options)
        assert sum(p.numel() for p in model.parameters()) == self.parameters[arch]
        assert model.out_channels == tuple(self.backbone.arch_settings[arch]['embed_dims'])

    def test_any_image_and_every_parameter_gets_a_gradient(self, size: tuple[int, int]) -> None:
        model = self.build()
        outputs = model(torch.randn(2, 3, *size))
        assert [output.shape[2:] for output in outputs] == [
            (-(-size[0] // stride), -(-size[1] // stride)) for stride in self.strides
        ]
        assert all(output.is_contiguous() for output in outputs)
        assert all(torch.isfinite(output).all() for output in outputs)
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None or not parameter.requires_grad, name
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name

    def test_the_weights_learn_where_there_is_something_to_attend_to(self) -> None:
        model = self.build()
        outputs = model(torch.randn(1, 3, 256, 288))
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name

    def test_state_does_not_depend_on_the_image(self) -> None:
        model = self.build().eval()
        before = {name: tensor.shape for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            model(torch.randn(1, 3, 37, 53))
            model(torch.randn(1, 3, 64, 64))
        assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before

    def test_old_answers_stay(self, request: pytest.FixtureRequest) -> None:
        """A change of results is written in CHANGELOG.md; then pytest --record-old-answers."""
        actual = answers(self.build())
        known = json.loads(OLD_ANSWERS.read_text()) if OLD_ANSWERS.exists() else {}
        if request.config.getoption('--record-old-answers'):
            known[type(self).__name__] = actual
            OLD_ANSWERS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + '\n')
        assert actual == pytest.approx(known[type(self).__name__], rel=1e-6, abs=0)

    def test_a_batch_is_its_images(self) -> None:
        model, images = self.build().eval(), torch.randn(2, 3, 72, 100)
        with torch.no_grad():
            together = model(images)
            apart = [model(image[None]) for image in images]
        for index, maps in enumerate(together):
            expected = torch.cat([outputs[index] for outputs in apart])
            torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)

    def test_checkpointing_changes_nothing(self) -> None:
        results = []
        for with_cp in (False, True):
            torch.manual_seed(1)
            model = self.build(with_cp=with_cp)
            outputs = model(torch.randn(2, 3, 64, 40))
            sum(output.square().sum() for output in outputs).backward()
            results.append((outputs, [p.grad for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)

    def test_freezing(self) -> None:
        model = self.build(frozen_stages=2)
        assert model.train() is model
        frozen = [model.stem, *model.stages[:2]]
        assert all(not module.training for part in frozen for module in part.modules())
        assert not any(p.requires_grad for part in frozen for p in part.parameters())
        assert all(p.requires_grad for p in model.output_norms.parameters())
        assert any(p.requires_grad for p in model.stages[2].parameters())

    def test_out_indices(self) -> None:
        model = self.build(out_indices=(1, 2))
        outputs = model(torch.randn(1, 3, 64, 64))
        assert tuple(output.shape[1] for output in outputs) == model.out_channels
        sum(output.square().sum() for output in outputs).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []

    def test_drop_path_rises_over_the_blocks(self) -> None:
        model = self.build(drop_path_rate=0.5)
        rates = [module.rate for module in model.modules() if type(module).__name__ == 'DropPath']
        assert rates == sorted(rates)
        assert rates[-1] == pytest.approx(0.5)

    def test_arguments_are_not_edited(self) -> None:
        narrow = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.narrow.items()
        }
        before = copy.deepcopy((narrow, self.options))
        self.backbone(narrow, out_indices=[1, 3], **self.options)
        assert (narrow, self.options) == before

    def test_rejects_arch(self) -> None:
        names = list(self.backbone.arch_settings)
        with pytest.raises(ValueError, match='or a dict, got') as error:
            self.backbone('huge')
        assert all(name in str(error.value) for name in names)
        with pytest.raises(ValueError, match=r"unknown=\['windows'\]"):
            self.backbone({**self.narrow, 'windows': (7,) * len(self.narrow['depths'])})

    def test_autocast(self) -> None:
        model, image = self.build().eval(), torch.randn(2, 3, 64, 96)
        with torch.autocast('cpu', torch.bfloat16):
            outputs = model(image)
            sum(output.float().square().sum() for output in outputs).backward()
        with torch.no_grad():
            exact = model(image)
        for output, expected in zip(outputs, exact, strict=True):
            error = (output.float() - expected).abs().mean()
            assert error < 0.03 * expected.abs().mean()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    @pytest.mark.needs_torch('2.8', 'torch.compile of a backbone')
    def test_compiles_to_one_graph(self) -> None:
        torch.compiler.reset()  # what other models compiled counts towards one limit
        model, image = self.build(out_indices=(0, 1)), torch.randn(2, 3, 64, 40)
        results = []
        for run in (model, torch.compile(model, fullgraph=True, backend='aot_eager')):
            model.zero_grad()
            outputs = run(image)
            sum(output.square().sum() for output in outputs).backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append((outputs, grads))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.needs_torch('2.8', 'torch.compile of a backbone')
    def test_one_graph_serves_other_sizes(self) -> None:
        torch.compiler.reset()
        narrow = {**self.narrow, **self.in_a_graph}
        model = self.backbone(narrow, out_indices=(0,), **self.options).eval()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
        with torch.no_grad():
            compiled(torch.randn(2, 3, 72, 90))
            image = torch.randn(3, 3, 100, 118)  # windows are cut alike
            with torch.compiler.set_stance('fail_on_recompile'):
                actual = compiled(image)
            torch.testing.assert_close(actual, model(image), rtol=1e-4, atol=1e-5)
