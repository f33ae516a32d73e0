_base_ = 'mmpretrain::_base_/default_runtime.py'

# Older checkpoints are kept because a run that is killed while it writes one resumes from the
# one before.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
