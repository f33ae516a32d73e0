# For `paramwise_cfg` of Mask2Former: a tenth of the rate for the backbone, no weight decay on its
# norms and position biases, nor on embeddings. In MMEngine the longest key that is part of a name
# counts alone, so that the rate is repeated.
undecayed = dict(lr_mult=0.1, decay_mult=0.0)
embedding = dict(lr_mult=1.0, decay_mult=0.0)
mask2former_keys = {
    'backbone': dict(lr_mult=0.1, decay_mult=1.0),
    'backbone.output_norms': undecayed,
    'backbone.stem.norm': undecayed,
    **{f'backbone.stem.{i}.': undecayed for i in (1, 4, 7, 10)},  # the norms of SSViT's stem
    'downsample.norm': undecayed,
    **{f'norm{i}.{name}': undecayed for i in (1, 2) for name in ('weight', 'bias')},
    'rel_pos_bias': undecayed,
    'query_embed': embedding,
    'query_feat': embedding,
    'level_embed': embedding,
}
