"""COCO json: one file, or one for each split. Entries are kept as they are."""

import os
from collections import Counter
from pathlib import Path

from mmlocalattn.data.coco import CocoReader, check_ids
from mmlocalattn.data.findings import Budget, Finding
from mmlocalattn.data.records import ObjectRecord, PictureRecord, Records, task_of
from mmlocalattn.data.text_files import parse_json
from mmlocalattn.data.tree import SplitName, Tree, repeated, split_of

KEYS = (b'"images"', b'"annotations"', b'"categories"')
MAX_FILES = 40  # a folder with more JSON files has one for each picture


def read_coco(tree: Tree) -> Records | None:
    """Read a folder with annotations in COCO's format.

    Raises:
        ValueError: If it is not clear which file is meant, or one cannot be read.
    """
    records = Records('COCO', 'detection', [])
    contents = _contents(tree, records)
    if not contents:
        return None
    files = _choose(tree, list(contents), records)
    first = contents[files.get('train') or next(iter(files.values()))]
    categories = _used_categories(first, list(contents.values()))
    records.classes = [category['name'] for category in categories]
    records.category_ids = [category['id'] for category in categories]
    for name in repeated(records.classes):
        problem = f'two categories are called {name!r}: they cannot be told apart'
        path = next(iter(files.values()))
        records.findings.append(Finding('error', 'classes', path, '', problem, 'Merge them'))
    for split, path in files.items():
        _read_file(tree, records, split, path, contents[path])
    records.task = task_of(records.pictures)
    return records


def _contents(tree: Tree, records: Records) -> dict[str, dict]:
    """The JSON files of the folder that are COCO's, with their content.

    Raises:
        ValueError: If one that looks like it cannot be read.
    """
    paths = tree.ending('.json')
    if len(paths) > MAX_FILES:
        paths = [path for path in paths if 'annotation' in tree.relative(path).lower()]
    contents: dict[str, dict] = {}
    if len(paths) > MAX_FILES:
        return contents
    reader = CocoReader(Budget())
    broken: list[str] = []
    for path in paths:
        text = Path(path).read_bytes()
        if b'"segments_info"' in text or not any(key in text for key in KEYS):
            continue  # panoptic, or something else
        if not all(key in text for key in KEYS):
            broken += _broken(path, text)
            continue  # captions, or something else
        try:
            content = reader.read(path)
        except ValueError as error:
            raise ValueError(f'{path!r}: {error}') from error
        if content and any('bbox' in it or 'segmentation' in it for it in content['annotations']):
            contents[path] = content
        else:
            problem = 'no annotation of it has a box or mask, so it is not read'
            records.findings.append(Finding('note', 'data set', path, '', problem))
    if contents and broken:
        raise ValueError(broken[0])
    return contents


def _broken(path: str, text: bytes) -> list[str]:
    """What is wrong with a file that has a part of what COCO's have, as one that is cut off."""
    try:
        parse_json(text)
    except ValueError as error:
        return [f'{path!r}: it is no JSON file: {error}']
    return []


def _choose(tree: Tree, paths: list[str], records: Records) -> dict[SplitName | None, str]:
    """The file of each split; None is that of a folder with one file.

    Raises:
        ValueError: If there are two for one.
    """
    by_split: dict[SplitName | None, list[str]] = {}
    for path in paths:
        by_split.setdefault(split_of(tree.relative(path), file_name=True), []).append(path)
    if len(by_split) > 1 and None in by_split:
        for path in by_split.pop(None):
            problem = 'it names no split, as others do, so it is not read'
            records.findings.append(Finding('note', 'data set', path, '', problem))
    files = {}
    for split, several in by_split.items():
        named = [path for path in several if os.path.basename(path).startswith('instances')]
        if named:
            for path in sorted(set(several) - set(named)):
                problem = f'it is not read, as {os.path.basename(named[0])!r} is there'
                records.findings.append(Finding('note', 'data set', path, '', problem))
        several = named or several
        if len(several) > 1:
            names = ' and '.join(repr(tree.relative(path)) for path in several[:3])
            raise ValueError(
                f'{tree.root!r} has {names}: which is meant? Leave one of them there, or call them '
                'train.json and val.json'
            )
        files[split] = several[0]
    return files


def _used_categories(first: dict, contents: list[dict]) -> list[dict]:
    """The categories without the one that Roboflow puts in front, which nothing is annotated as."""
    used = Counter(entry['category_id'] for content in contents for entry in content['annotations'])
    above = {entry.get('supercategory') for entry in first['categories']}
    return [
        entry for entry in first['categories'] if used[entry['id']] or entry['name'] not in above
    ] or first['categories']


def _read_file(
    tree: Tree, records: Records, split: SplitName | None, path: str, content: dict
) -> None:
    """Add the pictures of one file to the records."""
    records.findings += check_ids(path, content)
    labels = {name: label for label, name in enumerate(records.classes)}
    label_of = {entry['id']: labels.get(entry['name'], -1) for entry in content['categories']}
    pictures: dict[object, PictureRecord] = {}
    for image in content['images']:
        name = image['file_name']
        found = tree.find(name, path, split) or os.path.join(os.path.dirname(path), name)
        picture = PictureRecord(found, path, split, source=image)
        if image['width'] and image['height']:
            picture.written_size = image['width'], image['height']
        pictures[image['id']] = picture
    for entry in content['annotations']:
        picture_of = pictures.get(entry['image_id'])
        if picture_of and entry['category_id'] in label_of and not entry.get('ignore'):
            picture_of.objects.append(_object(entry, label_of[entry['category_id']]))
    records.pictures += pictures.values()
    folders = {_folder(picture) for picture in pictures.values()}
    same = all(
        label_of.get(number) == label for label, number in enumerate(records.category_ids)
    ) and _order(records, content) == list(range(len(records.classes)))
    sized = all(picture.written_size for picture in pictures.values())
    if same and sized and len(folders) == 1 and '' not in folders:
        records.native[split] = path, folders.pop()


def _order(records: Records, content: dict) -> list[int]:
    names = [entry['name'] for entry in content['categories']]
    places = {name: place for place, name in reversed([*enumerate(records.classes)])}
    return [places[name] for name in names if name in places]


def _object(entry: dict, label: int) -> ObjectRecord:
    return ObjectRecord(
        label,
        f'annotation {entry["id"]}',
        entry.get('bbox'),
        crowd=bool(entry.get('iscrowd', 0)),
        source=entry,
    )


def _folder(picture: PictureRecord) -> str:
    """The folder that the file name of a picture is relative to; empty if there is none."""
    assert picture.source is not None
    name = os.path.normpath(picture.source['file_name'])
    if picture.path.endswith(os.sep + name):
        return picture.path[: -len(name) - 1]
    return ''
