"""A random backbone from a seed, on an image of any size, and whether it keeps what it promises."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmlocalattn import backbones

ALLOWED = 0.0
"""Largest error: a promise is kept or not."""

MOST_HEIGHT, MOST_WIDTH = 97, 131


@dataclass
class Problem:
    """A model and an image.

    Attributes:
        operator: Name of the backbone.
        model: In training or in evaluation.
        image: (B, C, H, W).
        strides: Of the maps that it returns.
        text: What it is, in a line.
    """

    operator: str
    model: nn.Module
    image: Tensor
    strides: list[int]
    text: str

    def check(self) -> tuple[str, float]:
        """Run forward and backward twice, from the same state.

        Returns:
            The first promise that is broken and infinity, or nothing and 0.
        """
        runs = [self.run(copy.deepcopy(self.model)) for _ in range(2)]
        (outputs, grads), (outputs_again, grads_again) = runs
        sizes = [
            tuple(math.ceil(side / stride) for side in self.image.shape[2:])
            for stride in self.strides
        ]
        missing = [name for name, grad in grads.items() if grad is None]
        unbounded = [name for name, grad in grads.items() if grad is not None and _bad(grad)]
        promises = {
            'a map of another size': [tuple(x.shape[2:]) for x in outputs] == sizes,
            'a map that is not finite': not any(map(_bad, outputs)),
            f'no gradient of {missing[:3]}': not missing,
            f'a gradient that is not finite of {unbounded[:3]}': not unbounded,
            'other maps in a second run': _equal(outputs, outputs_again),
            'other gradients in a second run': _equal([*grads.values()], [*grads_again.values()]),
        }
        broken = [name for name, is_kept in promises.items() if not is_kept]
        return (broken[0], math.inf) if broken else ('', 0.0)

    def run(self, model: nn.Module) -> tuple[list[Tensor], dict[str, Tensor | None]]:
        """The maps, and the gradients of the parameters that have one."""
        torch.manual_seed(0)  # of drop path
        outputs = model(self.image)
        loss = sum((output * output.detach().cos()).sum() for output in outputs)
        if loss.requires_grad:  # not all is frozen
            loss.backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        return [output.detach() for output in outputs], trained


def _bad(tensor: Tensor) -> bool:
    return not tensor.isfinite().all().item()


def _equal(ours: list, theirs: list) -> bool:
    return all(
        one is other if one is None else torch.equal(one, other)
        for one, other in zip(ours, theirs, strict=True)
    )


def problem(seed: int) -> Problem:
    """The model of a seed; also sets the number of threads."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(rng.choice((1, 2)))
    name = rng.choice([*_FAMILIES])
    stages = rng.choice((4, 4, 3, 2, 1))
    arch, options = _FAMILIES[name](rng, stages)
    out_indices = sorted(rng.sample(range(stages), rng.randint(1, stages)))
    kept = out_indices[-1] + 1
    options |= dict(
        in_channels=rng.choice((1, 3, 3, 4)),
        out_indices=out_indices,
        output_norm=rng.random() < 0.5,
        frozen_stages=rng.choice((-1, -1, 0, rng.randint(0, kept))),
        norm_eval=rng.random() < 0.3,
        with_cp=rng.random() < 0.3,
        drop_path_rate=rng.choice((0.0, 0.0, 0.3)),
    )
    model = getattr(backbones, name)(arch, **options)
    is_training = rng.random() < 0.5
    # Batch norms in training take the deviation of at least two numbers.
    size = (2 if is_training else rng.randint(1, 2), options['in_channels'], *_size(rng))
    text = f'{name} {"train" if is_training else "eval"} {size}, {arch}, {options}'
    strides = [4 << index for index in out_indices]
    return Problem(name, model.train(is_training), torch.randn(size), strides, text)


def _size(rng: random.Random) -> tuple[int, int]:
    """Small sides as often as large ones."""
    height, width = (
        min(most, round(math.exp(rng.uniform(0, math.log(most + 1)))))
        for most in (MOST_HEIGHT, MOST_WIDTH)
    )
    return height, width


def _each(stages: int, value: Callable[[], Any]) -> tuple:
    return tuple(value() for _ in range(stages))


def _transformer(rng: random.Random, stages: int, step: int = 1) -> dict:
    """Keys that all families but SASA have; channels of a head are multiples of ``step``."""
    heads = _each(stages, lambda: rng.choice((1, 2, 3)))
    return dict(
        embed_dims=tuple(number * step * rng.randint(1, 8 // step) for number in heads),
        depths=_each(stages, lambda: rng.randint(1, 2)),
        num_heads=heads,
        mlp_ratios=_each(stages, lambda: rng.choice((1, 2, 3))),
    )


def _odd(rng: random.Random, low: int, high: int) -> int:
    return rng.randrange(low, high + 1, 2)


def _layer_scale(rng: random.Random, stages: int) -> dict:
    scales = _each(stages, lambda: rng.choice((None, 0.1)))
    return dict(layer_scale=scales) if rng.random() < 0.5 else {}


def _ssvit(rng: random.Random, stages: int) -> tuple[dict, dict]:
    arch = _transformer(rng, stages, step=4) | _layer_scale(rng, stages)
    return arch, dict(scan=rng.choice(('adaptive', 'fixed')))


def _nat(rng: random.Random, stages: int) -> tuple[dict, dict]:
    arch = _transformer(rng, stages, step=2) | _layer_scale(rng, stages)
    dilations = _each(stages, lambda: _each(rng.randint(1, 2), lambda: rng.randint(1, 9)))
    return arch, dict(
        kernel_size=_odd(rng, 3, 13), dilations=dilations, pad_small_maps=rng.random() < 0.3
    )


def _slides(rng: random.Random, stages: int) -> dict:
    return dict(num_slide_stages=rng.randint(0, stages), kernel_size=rng.choice((3, 3, 5, 7)))


def _slide_swin(rng: random.Random, stages: int) -> tuple[dict, dict]:
    return _transformer(rng, stages), _slides(rng, stages) | dict(window_size=rng.randint(1, 14))


def _slide_pvt(rng: random.Random, stages: int) -> tuple[dict, dict]:
    ratios = dict(sr_ratios=_each(stages, lambda: rng.choice((1, 2, 4, 8))))
    return _transformer(rng, stages) | ratios, _slides(rng, stages)


def _slide_cswin(rng: random.Random, stages: int) -> tuple[dict, dict]:
    splits = dict(split_sizes=_each(stages, lambda: rng.choice((1, 2, 7, None))))
    heads = _each(stages, lambda: rng.choice((2, 4)))  # one half for each direction
    dims = tuple(number * rng.randint(1, 6) for number in heads)
    sizes = dict(num_heads=heads, embed_dims=dims)
    return _transformer(rng, stages) | sizes | splits, _slides(rng, stages)


def _slide_nat(rng: random.Random, stages: int) -> tuple[dict, dict]:
    arch = _transformer(rng, stages, step=2) | _layer_scale(rng, stages)
    return arch, _slides(rng, stages)


def _qna(rng: random.Random, stages: int) -> tuple[dict, dict]:
    window_heads = _each(stages, lambda: rng.choice((1, 2)))
    heads = tuple(number * rng.choice((1, 2)) for number in window_heads)
    return dict(
        embed_dims=_each(stages, lambda: 8 * rng.randint(1, 5)),  # twice as many heads go down
        depths=_each(stages, lambda: rng.randint(0, 2)),
        num_heads=heads,
        kernel_sizes=_each(stages, lambda: _odd(rng, 3, 7)),
        window_depths=_each(stages, lambda: rng.randint(1, 2)),
        window_heads=window_heads,
        window_sizes=_each(stages, lambda: rng.randint(1, 14)),
        mlp_ratios=_each(stages, lambda: rng.choice((1, 2))),
    ), {}


def _sasa(rng: random.Random, stages: int) -> tuple[dict, dict]:
    heads = _each(stages, lambda: rng.choice((1, 2)))
    stem = rng.choice(('conv', 'attention'))
    dims = [4 * number * rng.randint(2, 8) for number in heads]
    if stem == 'attention':  # four heads in a quarter of the channels
        dims[0] = 32 * rng.randint(1, 2)
    arch = dict(
        embed_dims=tuple(dims),
        depths=_each(stages, lambda: rng.randint(1, 2)),
        num_heads=heads,
    )
    return arch, dict(
        stem=stem,
        conv_stages=rng.randint(0, stages),
        kernel_size=_odd(rng, 3, 11),
        padding=rng.choice(('mask', 'zero')),
        zero_init_residual=rng.random() < 0.5,
    )


_FAMILIES: dict[str, Callable[[random.Random, int], tuple[dict, dict]]] = {
    'SSViT': _ssvit,
    'NAT': _nat,
    'DiNAT': _nat,
    'SlideSwin': _slide_swin,
    'SlidePVT': _slide_pvt,
    'SlidePVTv2': _slide_pvt,
    'SlideCSwin': _slide_cswin,
    'SlideNAT': _slide_nat,
    'QnAViT': _qna,
    'SASAResNet': _sasa,
}
