"""The names of the official releases; ``FAMILIES`` of the module ``convert`` says how each is read.

They stand apart so that a command line can offer them before PyTorch is imported.
"""

NAMES = (
    'ssvit',
    'slide_swin',
    'nat',
    'dinat',
    'qna_vit',
    'nat_det',
    'nat_seg',
    'dinat_mask2former',
)
