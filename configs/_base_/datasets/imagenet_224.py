# ImageNet-1k at 224x224, 128 images per GPU: random crop and flip, RandAugment 9 (mstd 0.5), random
# erasing 0.25; whole images for testing, the centre 224 of 256.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)
