"""The page in a browser, and what Python knows of it."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser
from torch import Tensor, nn

from mmlocalattn.ops import OPS
from mmlocalattn.registry import MODELS
from mmlocalattn.visualisation.attention import Attention, record_attention
from mmlocalattn.visualisation.page import TEMPLATE, write_page

pytestmark = pytest.mark.xdist_group('attention_page')  # one browser
SHAPE = (96, 128)  # of the image
WIDTHS = dict(embed_dims=(8,), mlp_ratios=(2,))
WINDOWS = dict(window_depths=(0,), window_heads=(1,), window_sizes=(7,), kernel_sizes=(3,))
BACKBONES = [  # one stage of each family; in the page they are stages 0 to 4
    dict(type='SSViT', arch={**WIDTHS, 'depths': (2,), 'num_heads': (2,)}),
    dict(
        type='DiNAT',
        arch={**WIDTHS, 'depths': (2,), 'num_heads': (2,)},
        dilations=[[3, 1]],
    ),
    dict(type='SlideNAT', arch={**WIDTHS, 'depths': (1,), 'num_heads': (2,)}),
    dict(type='QnAViT', arch={**WIDTHS, 'depths': (1,), 'num_heads': (2,), **WINDOWS}),
    dict(
        type='SASAResNet',
        depth=dict(embed_dims=(32,), depths=(1,), num_heads=(2,)),
        padding='zero',
    ),
]


def test_every_operator_is_explained() -> None:
    text = TEMPLATE.read_text()
    table = text.partition('const EXPLANATIONS = {')[2].partition('};')[0]
    assert {*re.findall(r'^  (\w+):', table, re.MULTILINE)} == {*OPS}


@pytest.fixture(scope='module')
def layers() -> list[tuple[Attention, list[int]]]:
    torch.manual_seed(0)
    layers = []
    for stage, cfg in enumerate(BACKBONES):
        backbone = MODELS.build({**cfg, 'out_indices': (0,)}).eval()
        for name, parameter in backbone.named_parameters():
            if '.attn.' in name and parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5)
        for attention in record_attention(backbone, torch.randn(1, 3, *SHAPE)):
            layers.append((dataclasses.replace(attention, stage=stage), [0, 1]))
    return layers


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    return np.full((*SHAPE, 3), 128, np.uint8)


@pytest.fixture(scope='module')
def page(layers, image, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('page') / 'attention.html'
    kept = write_page(path, layers, image, [(30, 40)], '<config>', 'random weights', 10**7)
    assert kept == [attention.query_size for attention, _ in layers]
    return path


@pytest.fixture(scope='module')
def browser(page: Path) -> Iterator[Browser]:
    with Browser(page) as browser:
        browser.wait_for('document.body.dataset.ready')
        yield browser
    assert browser.requests == [page.as_uri()]
    assert browser.errors == []


@pytest.fixture
def fresh(browser: Browser) -> Browser:
    """The page as it was when it was opened."""
    browser.press('Escape')
    browser.move('h1')
    reset = "choose(data.layers[0]), pick(30.5, 40.5), $('marks').checked = true, render(), true"
    browser.evaluate(f'({reset})')
    return browser


def middle(row: int, column: int) -> tuple[float, float]:
    """Of a position of the map of 24 x 32, as fractions of the width and the height."""
    return (column + 0.5) / 32, (row + 0.5) / 24


def drawn(browser: Browser, layer: int, head: int, query: tuple[int, int]) -> Tensor:
    row, column = query
    values = browser.evaluate(f'[...attention(data.layers[{layer}], {head}, {row}, {column})]')
    return torch.tensor(values)


def test_every_family_is_in_the_page(layers) -> None:
    assert len({attention.operator for attention, _ in layers}) == 5
    assert max(len(attention.steps) for attention, _ in layers) == 2


def test_the_page_computes_the_attention(browser: Browser, layers) -> None:
    for i, (attention, heads) in enumerate(layers):
        rows, columns = attention.query_size
        for query in ((0, 0), (rows // 2, columns // 3), (rows - 1, columns - 1)):
            maps = attention.map(*query)
            for head in heads:
                difference = (drawn(browser, i, head, query) - maps[head].flatten()).abs()
                assert difference.max() <= 0.01 * maps[head].abs().max(), (attention, query)


def test_the_pointer_chooses_the_query(fresh: Browser) -> None:
    assert fresh.evaluate('[state.row, state.column]') == [10, 7]  # 40 / 4, 30 / 4
    fresh.move('#view', *middle(6, 16))
    fresh.wait_for('state.row === 6 && state.column === 16')
    fresh.wait_for("document.querySelector('#numbers').textContent.includes('row 6, column 16')")


def test_a_click_holds_the_query(fresh: Browser) -> None:
    fresh.click('#view', *middle(6, 16))
    fresh.wait_for('state.pinned && state.row === 6')
    fresh.move('#view', *middle(20, 30))
    fresh.wait_for("document.querySelector('#hint').textContent.startsWith('Held')")
    assert fresh.evaluate('[state.row, state.column]') == [6, 16]
    fresh.press('Down')
    fresh.wait_for('state.row === 7 && state.column === 16')
    fresh.press('Left')
    fresh.wait_for('state.row === 7 && state.column === 15')
    fresh.press('Escape')
    fresh.wait_for('!state.pinned')
    fresh.move('#view', *middle(2, 3))
    fresh.wait_for('state.row === 2 && state.column === 3')


def test_stage_block_and_head_are_chosen(fresh: Browser, layers) -> None:
    fresh.click('#stages button:nth-child(2)')
    fresh.wait_for('state.layer.stage === 1 && state.layer.block === "0"')
    fresh.wait_for("document.querySelector('#caption').textContent.includes('3 apart')")
    fresh.click('#blocks button:nth-child(2)')
    fresh.wait_for('state.layer.block === "1"')
    assert fresh.evaluate('state.head') == -1  # the mean
    fresh.click('#heads button:nth-child(3)')
    fresh.wait_for('state.head === 1')
    for selector in ('#stages button', '#blocks button'):
        pressed = f"document.querySelector('{selector}[aria-pressed=true]').textContent"
        assert fresh.evaluate(pressed) == '1'
    fresh.wait_for("document.querySelectorAll('#heads button')[2].ariaPressed === 'true'")


def test_the_picture_shows_the_attention(fresh: Browser, layers) -> None:
    """Positions are redder where the weight is larger, and grey where it is none."""
    index, (attention, _) = next(
        (i, layer) for i, layer in enumerate(layers) if layer[0].operator == 'slide_attention'
    )
    fresh.evaluate(
        f"(choose(data.layers[{index}]), $('marks').checked = false, pick(66, 50), render(), true)"
    )
    weights = attention.map(12, 16).mean(0)

    def pixel(row: int, column: int) -> list[int]:
        x, y = middle(row, column)
        place = f'{x} * c.width, {y} * c.height, 1, 1'
        return fresh.evaluate(
            f"(c => [...c.getContext('2d').getImageData({place}).data])($('view'))"
        )

    seen = sorted((float(weights[r, c]), r, c) for r in (11, 12, 13) for c in (15, 16, 17))
    colours = [pixel(row, column) for _, row, column in seen]
    red = [colour[0] for colour in colours]
    assert red == sorted(red)
    assert red[-1] > 1.5 * red[0]
    assert colours[-2][0] > colours[-2][2] + 30  # more red than blue
    assert len({*pixel(1, 1)[:3]}) == 1


def test_what_the_page_says(fresh: Browser) -> None:
    assert fresh.evaluate('document.querySelector("#title").textContent') == '<config>'
    assert fresh.evaluate('document.querySelector("#weights").textContent') == 'random weights'
    text = fresh.evaluate('document.body.innerText')
    assert 'Sparse scan attention' in text
    assert 'anchors, by how much the query takes of them' in text


def test_the_file_is_whole(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert '://' not in text


def test_queries_are_left_out_to_stay_below_the_bound(layers, image, tmp_path) -> None:
    """What is left is exact, anchors too."""
    path, bound = tmp_path / 'small.html', 200_000
    kept = write_page(path, layers, image, [(127, 95)], 'config', 'w.pth', bound)
    assert bound / 2 < path.stat().st_size <= bound
    with Browser(path) as browser:
        browser.wait_for('document.body.dataset.ready')
        for i, (attention, _) in enumerate(layers[:3]):
            assert kept[i] < attention.query_size
            row, column = browser.evaluate(f'(choose(data.layers[{i}]), [state.row, state.column])')
            map_ = attention.map(row, column)[0].flatten()
            difference = (drawn(browser, i, 0, (row, column)) - map_).abs()
            assert difference.max() <= 0.01 * map_.abs().max()
        before = browser.evaluate('[state.row, state.column]')
        browser.evaluate("($('view').focus(), true)")
        browser.press('Left')
        browser.wait_for(f'state.column < {before[1]}')
        browser.wait_for('state.layer.kept[1].includes(state.column)')


def test_a_bound_that_is_too_small_is_refused(layers, image, tmp_path) -> None:
    path = tmp_path / 'none.html'
    with pytest.raises(ValueError, match=r'choose fewer stages.*--max-mb'):
        write_page(path, layers, image, [(0, 0)], 'config', 'w.pth', 30_000)
    assert not path.exists()
