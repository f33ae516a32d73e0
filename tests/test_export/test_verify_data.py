"""The drawn images that an exported file is verified on, with labels for models of digits alone."""

from pathlib import Path

import pytest
import tiny_data

from mmlocalattn.export.verify_data import open_data
from mmlocalattn.training import load_config


@pytest.mark.parametrize(
    ('task', 'classes', 'is_labelled'),
    [
        ('SEGMENTATION', ('background', '0', '3'), True),
        ('SEGMENTATION', ('0', '1', '2'), False),  # values of maps whose classes nobody named
        ('SEGMENTATION', ('background', '0', 'tree'), False),
        ('DETECTION', ('3', '0'), True),
        ('DETECTION', ('dark', '0'), False),
    ],
)
def test_labels_of_drawn_images(
    task: str, classes: tuple[str, ...], is_labelled: bool, tmp_path: Path
) -> None:
    entries = (
        "data['metainfo'].pop('palette', None)\n" + f"data['metainfo']['classes'] = {classes}\n"
    )
    path = tiny_data.write_config(
        tmp_path / 'c.py', getattr(tiny_data, task), tmp_path / 'nowhere', entries
    )
    with open_data(load_config(path), 'sample', 0) as data:
        assert (data.evaluator is not None) == is_labelled
        assert ('without labels' in data.source) != is_labelled
        assert len([data.items[i] for i in range(2)]) == 2
