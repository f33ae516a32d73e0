"""A missing data set is found before anything is built."""

from pathlib import Path

import pytest

from mmlocalattn.data import check_data
from mmlocalattn.data.check import KINDS


@pytest.fixture
def dataset(tmp_path: Path) -> dict:
    """A data set with every kind of entry, all of it there."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'labels.json').touch()
    return dict(
        type='Toy',
        data_root=str(tmp_path),
        ann_file='labels.json',
        data_prefix=dict(img='images/', other=None),
    )


def loaders(dataset: dict) -> dict:
    return dict(train_dataloader=dict(dataset=dataset), val_dataloader=None)


def test_complete(dataset: dict) -> None:
    check_data(loaders(dataset), ('train', 'val', 'test'))


@pytest.mark.parametrize(
    ('change', 'missing'),
    [
        (dict(data_root='no/where'), "'no/where'"),
        (dict(ann_file='no.json'), "/no.json'"),
        (dict(ann_file='/no.json'), "'/no.json'"),
        (dict(data_prefix=dict(img='images/', seg='maps')), "/maps'"),
        (dict(data_prefix='maps'), "/maps'"),
        (dict(data_root=None), "'labels.json'"),
    ],
)
def test_missing(dataset: dict, change: dict, missing: str) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        check_data(loaders(dataset | change), ('train',))
    message = str(raised.value)
    assert f'{missing}, which train_dataloader (Toy) reads, does not exist' in message
    assert 'python tools/make_sample_data.py' in message
    assert '\n' not in message


@pytest.mark.parametrize('wrap', ['RepeatDataset', 'ConcatDataset', 'both'])
def test_wrapped(dataset: dict, wrap: str) -> None:
    gone = dataset | dict(data_root='no/where')
    wrapped = dict(type='ConcatDataset', datasets=[dataset, gone])
    if wrap != 'ConcatDataset':
        wrapped = dict(type=wrap, dataset=gone if wrap == 'RepeatDataset' else wrapped)
    with pytest.raises(FileNotFoundError, match='no/where'):
        check_data(loaders(wrapped), ('train',))


def test_only_the_named_splits(dataset: dict) -> None:
    cfg = loaders(dataset) | dict(test_dataloader=dict(dataset=dict(type='Toy', data_root='gone')))
    check_data(cfg, ('train', 'val'))
    with pytest.raises(FileNotFoundError, match='test_dataloader'):
        check_data(cfg, ('test',))


def test_remote_data_is_not_checked() -> None:
    remote = dict(type='Toy', data_root='s3://bucket/data', ann_file='labels.json')
    check_data(loaders(remote), ('train',))


def test_data_without_files_is_not_checked() -> None:
    check_data(loaders(dict(type='Toy')), ('train',))


def test_the_faq_has_every_kind_of_finding() -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'faq.md').read_text().replace('\n', ' ')
    assert [kind for kind in KINDS if f'`{kind}`' not in page] == []
