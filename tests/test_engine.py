"""The old places of names still have them, and say where they are now."""

import importlib
import importlib.util

import pytest

import mmlocalattn.engine


@pytest.mark.parametrize('name', mmlocalattn.engine.__all__)
def test_names(name: str) -> None:
    with pytest.warns(
        DeprecationWarning, match=rf'^mmlocalattn\.engine\.{name} is (\S+) now'
    ) as told:
        value = getattr(mmlocalattn.engine, name)
    module, _, new_name = str(told[0].message).split()[2].rpartition('.')
    assert getattr(importlib.import_module(module), new_name) is value
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ('module', 'name', 'new'),
    [
        ('export', 'FeatureMaps', 'mmlocalattn.export.files'),
        ('launch', 'load_config', 'mmlocalattn.training.config'),
        ('launch', 'config_of', 'mmlocalattn.training.arguments'),
        ('launch', 'adapt_to_device', 'mmlocalattn.training.launch'),
        ('pictures', 'draw_sample', 'mmlocalattn.visualisation.pictures'),
        ('visualisation', 'record_attention', 'mmlocalattn.visualisation.attention'),
    ],
)
def test_modules(module: str, name: str, new: str) -> None:
    old = f'mmlocalattn.engine.{module}'
    with pytest.warns(DeprecationWarning, match=rf'^{old}\.{name} is {new}\.{name} now'):
        exec(f'from {old} import {name}')
    assert importlib.util.find_spec(old).name == old
    assert getattr(mmlocalattn.engine, module) is importlib.import_module(old)


def test_other_names() -> None:
    with pytest.raises(AttributeError, match=r"'mmlocalattn\.engine' has no attribute 'other'"):
        mmlocalattn.engine.other  # noqa: B018
    with pytest.raises(ImportError, match='cannot import name'):
        from mmlocalattn.engine.export import other  # noqa: F401


def test_star() -> None:
    names: dict = {}
    with pytest.warns(DeprecationWarning, match='the old name goes'):
        exec('from mmlocalattn.engine import *', names)
    assert {*mmlocalattn.engine.__all__} <= {*names}
