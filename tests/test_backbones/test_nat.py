from backbone_contract import BackboneContract

from mmlocalattn.backbones.nat import NAT, DiNAT

NARROW = {
    'embed_dims': (8, 12, 16, 24),
    'depths': (2, 1, 2, 2),
    'num_heads': (2, 2, 2, 2),
    'mlp_ratios': (2, 2, 2, 2),
    'layer_scale': (None, None, 0.1, 0.1),
}
GOLDEN_ARCH = {
    'embed_dims': (16, 32, 64, 128),
    'depths': (2, 2, 2, 2),
    'num_heads': (1, 2, 2, 4),
    'mlp_ratios': (3, 3, 3, 3),
}
# With the last norm and a linear layer for 1000 classes
PARAMETERS = {
    (NAT, 'mini'): 19_984_174,
    (NAT, 'tiny'): 27_901_582,
    (NAT, 'small'): 50_743_297,
    (NAT, 'base'): 89_769_652,
    (DiNAT, 'mini'): 19_984_174,
    (DiNAT, 'tiny'): 27_901_582,
    (DiNAT, 'small'): 50_719_681,
    (DiNAT, 'base'): 89_769_652,
    (DiNAT, 'large'): 200_943_514,
}


def alone(backbone):
    """Parameters without the classification tail."""
    dims = {arch: settings['embed_dims'][-1] for arch, settings in backbone.arch_settings.items()}
    return {
        arch: PARAMETERS[backbone, arch] - 2 * dim - 1000 * (dim + 1) for arch, dim in dims.items()
    }


class TestNAT(BackboneContract):
    backbone = NAT
    narrow = NARROW
    parameters = alone(NAT)


class TestDiNAT(BackboneContract):
    backbone = DiNAT
    narrow = NARROW
    parameters = alone(DiNAT)
