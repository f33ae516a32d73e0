# Slide-CSwin-B, with the recipe of CSWin-B.
# Published: 84.7 top-1 (ImageNet table).
_base_ = './slide_cswin_t_300e_imagenet.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=768))
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.1))
custom_hooks = [dict(type='EMAHook', momentum=8e-5, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=1024)
