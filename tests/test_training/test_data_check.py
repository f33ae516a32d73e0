"""What a run says of its data before its model is built, and what it does for them."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from broken_data import (
    SPLITS,
    classes,
    coco_config,
    draw,
    each,
    first,
    folder,  # noqa: F401
    full,
    map_config,
    said,
    set_,
    with_file,
    without,
    write_image,
)
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmlocalattn.data import findings
from mmlocalattn.data.findings import Budget
from mmlocalattn.training.data_check import check_all, check_class_names, check_sample


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize('config', [coco_config, map_config])
def test_nothing_is_said_of_good_data(
    config: Callable[[], Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(config(), lambda cfg: None, capsys) == []


@pytest.mark.usefixtures('folder')
def test_labels_from_one_are_right_with_reduce_zero_label(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = np.repeat([[0, 1, 2, 3]], 30, 0).repeat(10, 1).astype(np.uint8)
    changes = [draw(labels, name, split) for name in '12' for split in SPLITS]
    reduce = [set_(f'{split}_dataloader.dataset.reduce_zero_label', True) for split in SPLITS]
    assert said(map_config(), each(*changes, *reduce), capsys) == []


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize('orientation', [3, 6])
def test_orientation_that_is_ignored_or_keeps_the_size_is_right(
    orientation: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = coco_config()
    write_image(Path('train/1.jpg'), orientation=orientation)
    if orientation == 6:
        cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert said(cfg, lambda cfg: None, capsys) == []


@pytest.mark.usefixtures('folder')
def test_area_and_iscrowd_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    """MMDetection and pycocotools read what is written, and the files of people stay."""
    for split in SPLITS:
        with_file(lambda content: [it.pop('area') for it in content['annotations']], split)(None)
        with_file(lambda content: [it.pop('iscrowd') for it in content['annotations']], split)(None)
    before = Path('train.json').read_bytes()
    cfg = coco_config()
    cfg.work_dir = 'runs/a'
    check_sample(cfg, SPLITS)
    assert Path('train.json').read_bytes() == before
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file
    for split in SPLITS:
        (path,) = Path('runs/a/data').glob(f'{split}_*.json')
        assert cfg[f'{split}_dataloader'].dataset.ann_file == str(path.resolve())
        entries = json.loads(path.read_text())['annotations']
        assert [(entry['area'], entry['iscrowd']) for entry in entries] == [(120, 0)] * 2
    capsys.readouterr()
    check_sample(cfg, SPLITS)
    assert capsys.readouterr().out == ''


@pytest.mark.usefixtures('folder')
def test_what_is_not_looked_at_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    check_sample(coco_config(), SPLITS, budget=Budget(items=1, megabytes=1e-9))
    assert capsys.readouterr().out == (
        r'not checked: the objects of train.json (0 MB); the objects of val.json (0 MB) '
        '(python tools/analysis/check_data.py CONFIG does)\n'
    )
    cfg = map_config()
    check_sample(cfg, SPLITS, budget=Budget(items=1))
    assert capsys.readouterr().out == (
        'not checked: 1 of 2 index maps of train_dataloader; 1 of 2 index maps of val_dataloader '
        '(python tools/analysis/check_data.py CONFIG does)\n'
    )


@pytest.mark.usefixtures('folder')
def test_classes_of_files_that_are_too_large_are_checked() -> None:
    cfg = coco_config()
    classes('dog', 'cat')(cfg)
    with pytest.raises(ValueError, match='has another order than the file'):
        check_sample(cfg, SPLITS, budget=Budget(megabytes=0))


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize('size', ['small', 'large'])
def test_names_of_classes_alone(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == 'large':
        monkeypatch.setattr(Budget, 'takes', lambda *_: False)
    cfg = coco_config()
    cfg.test_dataloader = cfg.val_dataloader
    check_class_names(cfg)
    cfg.test_dataloader.dataset.metainfo.classes = ('dog', 'cat')
    with pytest.raises(ValueError, match=r'val\.json: metainfo.classes has another order than the'):
        check_class_names(cfg)


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize('end', [None, 10, 20, 400])
def test_files_that_cannot_be_read_say_nothing_of_names(end: int | None) -> None:
    """Nor do categories of pictures say anything of those of the file."""
    file, cfg = Path('val.json'), coco_config()
    cfg.test_dataloader = cfg.val_dataloader
    content = json.loads(file.read_text())
    content['images'][0]['categories'] = [dict(id=1, name='outdoors')]
    text = json.dumps(dict(reversed(content.items())) if end else content)
    file.write_text(text[:end])
    check_class_names(cfg)


@pytest.mark.usefixtures('folder')
def test_first_pictures_of_files_that_are_too_large_are_checked() -> None:
    cfg = coco_config()
    first('images', width=30)(cfg)
    with pytest.raises(ValueError, match=r'30x30 .* in the file, but the picture is'):
        check_sample(cfg, SPLITS, budget=Budget(items=1, megabytes=0))


@pytest.mark.usefixtures('folder')
def test_maps_that_no_pipeline_loads_may_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = map_config()
    cfg.val_dataloader.dataset.pipeline.pop()
    Path('maps_val/1.png').unlink()
    check_sample(cfg, SPLITS)
    assert capsys.readouterr().out == ''


@pytest.mark.usefixtures('folder')
def test_labels_are_those_of_the_order_in_the_file() -> None:
    """Of MMDetection, which is why ``metainfo.classes`` may not have another."""
    entry = coco_config().train_dataloader.dataset
    for classes_of_config in (('cat', 'dog'), ('dog', 'cat')):
        entry.metainfo.classes = classes_of_config
        dataset = DATASETS.build({**entry, 'pipeline': [], '_scope_': 'mmdet'})
        labels = [dataset.get_data_info(i)['instances'][0]['bbox_label'] for i in range(2)]
        assert labels == [0, 1]


@pytest.mark.usefixtures('folder')
def test_wrong_maps_beyond_the_sample_are_found_by_the_whole_check() -> None:
    cfg = map_config()
    draw(full(9), '2')(cfg)
    check_sample(cfg, SPLITS, budget=Budget(items=1))
    (found,) = check_all(cfg, SPLITS)
    assert found.file == 'maps_train/2.png'


@pytest.mark.usefixtures('folder')
def test_wrong_sizes_beyond_the_sample_are_found_by_the_whole_check() -> None:
    cfg = coco_config()
    with_file(lambda content: content['images'][1].update(width=30))(cfg)
    check_sample(cfg, SPLITS, budget=Budget(items=1))
    (found,) = check_all(cfg, SPLITS)
    assert (found.kind, found.entry) == ('image size', "image 'train/2.jpg'")


@pytest.mark.usefixtures('folder')
def test_the_sample_ends_after_five_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(step=3)  # seconds, that pass from one look at it to the next
    monkeypatch.setattr(findings, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    check_sample(coco_config(), SPLITS)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('not checked: ')
    assert '2 of 2 images of val_dataloader' in line


@pytest.mark.usefixtures('folder')
def test_only_the_first_process_speaks_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without('area')(None)
    monkeypatch.setenv('RANK', '1')
    cfg = coco_config()
    check_sample(cfg, SPLITS)
    assert capsys.readouterr().out == ''
    assert (
        Path(cfg.train_dataloader.dataset.ann_file).parent == Path('work_dirs/run/data').resolve()
    )
    assert not Path('work_dirs').exists()


@pytest.mark.usefixtures('folder')
def test_number_of_errors_is_said() -> None:
    cfg = coco_config()
    first('images', width=30)(cfg)
    Path('train/2.jpg').unlink()
    with pytest.raises(
        ValueError, match=r' \(1 more: python tools/analysis/check_data.py CONFIG\)$'
    ):
        check_sample(cfg, SPLITS)


def label_config(number: int = 2, **entries: object) -> Config:
    data = dict(type='CustomDataset', data_prefix='labelled', pipeline=[], **entries)
    model = dict(type='ImageClassifier', head=dict(type='LinearClsHead', num_classes=number))
    return Config(
        dict(default_scope='mmpretrain', model=model, train_dataloader=dict(dataset=data))
    )


@pytest.fixture
def labelled(folder: Path) -> None:  # noqa: F811
    for number, name in enumerate(('cat', 'dog')):
        Path(f'labelled/{name}').mkdir(parents=True)
        write_image(Path(f'labelled/{name}/{number}.jpg'))


@pytest.mark.usefixtures('labelled')
@pytest.mark.parametrize(
    ('number', 'change', 'expected'),
    [
        (
            1,
            lambda: None,
            'model.head.num_classes: 1, but the data of train_dataloader have 2 classes, '
            "('cat', 'dog'): there is no output for the rest. Set model.head.num_classes=2, or the "
            'classes in metainfo',
        ),
        (
            2,
            lambda: Path('labelled/cat/0.jpg').write_text(''),
            'labelled/cat/0.jpg: this image cannot be read (the file is empty). Copy it again, or '
            'take it out of the data set',
        ),
    ],
)
def test_errors_of_labelled_images(
    number: int, change: Callable[[], object], expected: str
) -> None:
    change()
    with pytest.raises(ValueError, match=f'^{re.escape(expected)}$'):
        check_sample(label_config(number), ['train'])


@pytest.mark.usefixtures('labelled')
def test_labels_of_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    Path('list.txt').write_text('cat/0.jpg 0\ndog/1.jpg 2\n')
    expected = (
        'labelled/dog/1.jpg: its label in train_dataloader is 2, and there are 2 classes. Write 0 '
        'to 1, or name the classes in metainfo'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(expected)}$'):
        check_sample(label_config(2, ann_file='list.txt'), ['train'])
    check_sample(label_config(3, ann_file='list.txt'), ['train'])
    assert capsys.readouterr().out == (
        "warning: labelled, class 1, '1': no image of train_dataloader is of it. Add some, or take "
        'it out of the classes and num_classes\n'
    )


@pytest.mark.usefixtures('labelled')
def test_head_with_more_classes_than_folders(capsys: pytest.CaptureFixture[str]) -> None:
    check_sample(label_config(1000), ['train'])
    assert 'warning: model.head.num_classes: 1000, but the data' in capsys.readouterr().out


@pytest.mark.usefixtures('labelled')
@pytest.mark.parametrize(
    ('entries', 'expected'),
    [
        (
            dict(metainfo=dict(classes=('cat', 'cow', 'dog'))),
            "The number of subfolders (2) doesn't match the number of specified classes (3). "
            'Please check the data folder.',
        ),
        (dict(extensions=['.bmp']), r'Found 0 files in subfolders of: .*'),
    ],
)
def test_data_sets_that_cannot_be_made(entries: dict, expected: str) -> None:
    line = 'train_dataloader.dataset, CustomDataset: it cannot be made: '
    pattern = re.escape(line + expected).replace(r'\.\*', '.*')
    with pytest.raises(ValueError, match=f'^{pattern}$'):
        check_sample(label_config(2, **entries), ['train'])
