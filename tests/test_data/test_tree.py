"""What the names of files say: splits, pictures that are meant, classes."""

import os
from pathlib import Path

import pytest

from mmlocalattn.data.tree import nearest, read_lines, split_of, walk


@pytest.mark.parametrize(
    ('path', 'split'),
    [
        ('train/images/a.png', 'train'),
        ('images/train2017/a.png', 'train'),
        ('valid/a.png', 'val'),
        ('validation_set/a.png', 'val'),
        ('data/testing/a.png', 'test'),
        ('trainannot/a.png', 'train'),
        ('val_images/a.png', 'val'),
        ('test/train/a.png', 'train'),  # the innermost
        ('latest/a.png', None),
        ('trains/a.png', None),
        ('interval/a.png', None),
        ('a/test_1.png', None),  # a picture's own name says nothing
    ],
)
def test_split_of(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_split_of_annotation_files() -> None:
    assert split_of('annotations/instances_val2017.json', file_name=True) == 'val'
    assert split_of('train/_annotations.coco.json', file_name=True) == 'train'
    assert split_of('instances_default.json', file_name=True) is None


def test_walk_leaves_out_what_is_hidden_and_ends(tmp_path: Path) -> None:
    for name in ('a/1.PNG', 'a/.hidden.png', '.git/2.png', '__MACOSX/a/1.PNG', 'a/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink('..', tmp_path / 'a' / 'up')
    tree = walk(str(tmp_path))
    assert [tree.relative(path) for path in tree.files] == ['a/1.PNG', 'a/notes.txt']
    assert tree.pictures == (str(tmp_path / 'a' / '1.PNG'),)
    assert tree.ending('.txt') == [str(tmp_path / 'a' / 'notes.txt')]


def test_walk_says_what_links_to_nothing(tmp_path: Path) -> None:
    os.symlink('gone.png', tmp_path / 'a.png')
    assert len(walk(str(tmp_path)).pictures) == 1  # a finding, later
    os.symlink('gone.txt', tmp_path / 'a.txt')
    with pytest.raises(FileNotFoundError, match=r"/a\.txt' is a link to 'gone\.txt', which"):
        walk(str(tmp_path))


def test_walk_says_what_it_cannot_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'a').mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:
        if os.path.basename(path) == 'a':
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(PermissionError, match=f"'{tmp_path}/a'$"):
        walk(str(tmp_path))


def test_lists_of_classes_that_differ(tmp_path: Path) -> None:
    for folder, names in (('a', 'cat\ndog'), ('b', 'cat\ndog\n')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'classes.txt').write_text(names)
    names = 'classes.txt', 'labels.txt'
    assert walk(str(tmp_path)).class_names(*names)[1] == ['cat', 'dog']
    (tmp_path / 'b' / 'labels.txt').write_text('dog')
    assert walk(str(tmp_path)).class_names(*names)[1] == ['cat', 'dog']
    (tmp_path / 'b' / 'classes.txt').write_text('dog\ncat')
    with pytest.raises(ValueError, match=r"a/classes\.txt' and '.*b/classes\.txt' name different"):
        walk(str(tmp_path)).class_names(*names)


def test_find(tmp_path: Path) -> None:
    for split in ('train', 'val'):
        (tmp_path / 'images' / split).mkdir(parents=True)
        (tmp_path / 'images' / split / '1.png').touch()
    tree = walk(str(tmp_path))
    beside = str(tmp_path / 'annotations' / 'x.json')
    assert tree.find('images/val/1.png', beside) == str(tmp_path / 'images' / 'val' / '1.png')
    windows = 'C:\\data\\train\\1.png'
    assert tree.find(windows, beside) == str(tmp_path / 'images' / 'train' / '1.png')
    assert tree.find('1.png', beside, 'val') == str(tmp_path / 'images' / 'val' / '1.png')
    assert tree.find('2.png', beside) is None


def test_nearest() -> None:
    paths = ['/a/x/1.png', '/a/y/1.png']
    assert nearest(paths, 'y/1.png', '/b/1.xml') == '/a/y/1.png'
    assert nearest(paths, '1.png', '/a/y/1.xml') == '/a/y/1.png'
    assert nearest([], '1.png', '/a/y/1.xml') is None


def test_read_lines(tmp_path: Path) -> None:
    path = tmp_path / 'classes.txt'
    path.write_bytes('\ufeffcat \r\n\r\ndog'.encode())
    assert read_lines(str(path)) == ['cat', 'dog']
    path.write_bytes(b'\xff\xfe')
    with pytest.raises(ValueError, match=r"classes.txt' is no UTF-8 text"):
        read_lines(str(path))
