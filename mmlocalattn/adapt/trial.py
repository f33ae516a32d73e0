"""Whether the model of a config runs: a loss and a prediction on random data, no data set needed.

swapped = swap_backbone(cfg, 'ssvit_t')
run_model(swapped)
"""

import copy

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from mmlocalattn.adapt.nodes import channels_of, dicts, preprocessor_of
from mmlocalattn.adapt.random_data import camera_batch, pose_batch, rotated_batch

SIDES = (128, 256)
"""Of the random images, pixels; the second for models that small ones are too small for."""
CLASSES = 2  # of random labels: few enough for every head
MANY_CLASSES, SOME_CLASSES = 1000, 100  # heads for more than so many get some instead


def run_model(cfg: Config) -> None:
    """Build the model of a config, take the loss of a random batch, and predict.

    Args:
        cfg: As for :func:`random_batch`.

    Raises:
        ValueError: If the loss is not finite or the number of predictions is wrong.
        Exception: What the model raises, on images of 256 pixels, where 128 are too few for it.
    """
    try:
        _run_model(cfg, SIDES[0])
    except Exception:
        _run_model(cfg, SIDES[1])


def small_model(cfg: Config, side: int) -> dict:
    """The model of a config, with its preprocessor, made to run on little.

    Args:
        cfg: Is not changed.
        side: Of square images, to which the preprocessor pads.

    Returns:
        A model that loads no weights and needs one process, with fewer classes if it has thousands
        (of LVIS, V3Det).
    """
    model = copy.deepcopy(cfg.model)
    model.setdefault('data_preprocessor', copy.deepcopy(cfg.get('data_preprocessor')))
    model.pop('pretrained', None)
    for part in dicts(model):
        if (part.get('init_cfg') or {}).get('type') in ('Pretrained', 'mmlocalattn.Released'):
            part['init_cfg'] = None
        if part.get('type') == 'MMSyncBN':  # needs several processes
            part['type'] = 'BN'
        if isinstance(part.get('num_classes'), int) and part['num_classes'] > MANY_CLASSES:
            part['num_classes'] = SOME_CLASSES
    for part in dicts(model.get('data_preprocessor') or {}):
        if part.get('size'):
            part['size'] = (side, side)
        part.pop('batch_augments', None)
    return model


def _run_model(cfg: Config, side: int) -> None:
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(small_model(cfg, side)))
    model.init_weights()  # some models have parameters that are not initialised before
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))  # as a runner does
    batch = random_batch(cfg, (side, side), training=True)
    try:
        losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    except NotImplementedError:
        if 'tracker' not in cfg.model:
            raise  # but the parts of some trackers are trained by configs of their own
        losses = dict(loss=torch.zeros(()))
    loss, _ = model.parse_losses(losses)
    if not torch.isfinite(loss):
        raise ValueError(f'loss is {loss}')
    model.eval()
    batch = random_batch(cfg, (side, side), training=False)
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch, training=False), mode='predict')
    if len(results) != len(batch['data_samples']):
        raise ValueError(f'{len(results)} predictions for {len(batch["data_samples"])} images')


def random_batch(
    cfg: Config,
    size: tuple[int, int],
    number: int = 2,
    training: bool = True,
    num_objects: int = 3,
) -> dict:
    """Random images with random labels, as the data loader of the config's toolbox packs them.

    Args:
        cfg: Of mmdet, mmsegmentation, mmpretrain, mmpose, mmrotate or mmdet3d.
        size: Height and width of the images; top-down pose estimators have one of their own.
        number: Of images; trackers get one video of two.
        training: Whether for a loss. It matters for trackers and semi-supervised detectors.
        num_objects: On each image, for detectors.

    Returns:
        ``inputs`` and ``data_samples``.

    Raises:
        ValueError: If the config is of another package, or of no top-down pose estimator.
    """
    scope = cfg.get('default_scope')
    if scope == 'mmdet':
        return _detection_batch(cfg, size, number, training, num_objects)
    if scope == 'mmpose':
        return pose_batch(cfg, number)
    if scope == 'mmrotate':
        return rotated_batch(cfg, size, number, num_objects)
    if scope == 'mmdet3d':
        return camera_batch(cfg, size, number, num_objects)
    shape = (channels_of(cfg), *size)
    images = [torch.randint(256, shape, dtype=torch.uint8) for _ in range(number)]
    if scope == 'mmseg':
        samples = [_segmentation_sample(size) for _ in images]
    elif scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(0) for _ in images]
    else:
        raise ValueError(
            f'default_scope is {scope!r}: there are random data for mmdet, mmseg, mmpretrain, '
            'mmpose, mmrotate and mmdet3d'
        )
    return dict(inputs=images, data_samples=samples)


def _segmentation_sample(size: tuple[int, int]) -> object:
    from mmseg.structures import SegDataSample

    labels = PixelData(data=torch.randint(CLASSES, (1, *size)))
    return SegDataSample(
        gt_sem_seg=labels,
        gt_edge_map=labels.clone(),
        gt_depth_map=PixelData(data=torch.rand(1, *size)),
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, flip=False),
    )


def _detection_batch(
    cfg: Config, size: tuple[int, int], number: int, training: bool, num_objects: int
) -> dict:
    from mmdet.testing import demo_mm_inputs, demo_track_inputs

    preprocessor, shape = preprocessor_of(cfg), (channels_of(cfg), *size)
    trains_on_images = training and preprocessor.get('use_det_processor')
    if 'Track' in str(preprocessor.get('type')) and not trains_on_images:
        return demo_track_inputs(
            batch_size=1, num_frames=2, key_frames_inds=[0], image_shapes=shape,
            num_classes=1, with_mask=True,
        )  # fmt: skip
    with_mask = 'mask' in repr(cfg.model).lower()  # those without do not pad masks
    batch = demo_mm_inputs(
        number, [shape] * number, [num_objects] * number, num_classes=CLASSES,
        with_mask=with_mask, with_semantic=True,
    )  # fmt: skip
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()  # the class that every head has
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes)  # for Fast R-CNN
    if training and 'semi_train_cfg' in cfg.model:
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(homography_matrix=torch.eye(3).numpy()))
        return {key: dict.fromkeys(branches, value) for key, value in batch.items()}
    return batch
