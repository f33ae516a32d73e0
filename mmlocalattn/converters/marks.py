"""By which names of weights a checkpoint of each official release is known."""

from collections.abc import Collection, Set

from mmlocalattn.converters import mask2former, nat, qna_vit, slide_swin, ssvit

MARKS: dict[str, Set[str]] = {
    'ssvit': ssvit.MARKS,
    'slide_swin': slide_swin.MARKS,
    'nat': nat.MARKS,
    'dinat': nat.MARKS,
    'qna_vit': qna_vit.MARKS,
    'nat_det': nat.DETECTOR_MARKS,
    'nat_seg': nat.SEGMENTOR_MARKS,
    'dinat_mask2former': mask2former.MARKS,
}


def families_of(names: Collection[str]) -> list[str]:
    """The releases, by the names that ``tools/convert_checkpoint.py`` takes, of such weights."""
    return [family for family, marks in MARKS.items() if marks <= set(names)]
