"""Random data as the toolboxes beside mmdet, mmseg and mmpretrain pack them.

Each needs its toolbox alone: mmpose (top-down), mmrotate, mmdet3d (models of a camera).
"""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmlocalattn.adapt.nodes import channels_of, dicts

_CODE_SIZES = ('bbox_code_size', 'code_size')  # numbers of a box in space, of heads and coders


def pose_input_size(cfg: Config) -> tuple[int, int] | None:
    """(height, width) of the crops of a top-down pose estimator, which its heads are made for.

    None if the config has no codec that names them.
    """
    for part in dicts(cfg.get('model') or {}):
        codecs = part.get('decoder')
        for codec in codecs if isinstance(codecs, (list, tuple)) else [codecs]:
            if isinstance(codec, dict) and 'input_size' in codec:
                width, height = codec['input_size']
                return height, width
    return None


def pose_batch(cfg: Config, number: int) -> dict:
    """Crops of one person each, encoded by the last transforms of the config's own pipeline.

    Raises:
        ValueError: If the config has no input size, no ``GenerateTarget`` or no keypoints.
    """
    from mmpose.registry import TRANSFORMS

    size = pose_input_size(cfg)
    loader = cfg.get('train_dataloader') or {}
    targets = (part for part in dicts(loader) if part.get('type') == 'GenerateTarget')
    target = next(targets, None)
    if size is None or target is None:
        raise ValueError('no top-down config: its data are no crops of one size with targets')
    height, width = size
    points = keypoints_of(cfg)
    corner = np.array([width, height], dtype=np.float32)
    samples = []
    for index in range(number):
        person = dict(
            id=index,
            img_id=index,
            img=np.random.randint(256, size=(height, width, channels_of(cfg)), dtype=np.uint8),
            img_shape=size,
            ori_shape=size,
            input_size=(width, height),
            input_center=corner / 2,
            input_scale=corner,
            flip_indices=list(range(points)),
            bbox=np.array([[0, 0, width, height]], dtype=np.float32),
            bbox_center=corner[None] / 2,
            bbox_scale=corner[None],
            bbox_score=np.ones(1, dtype=np.float32),
            keypoints=np.random.rand(1, points, 2).astype(np.float32) * corner,
            keypoints_visible=np.ones((1, points), dtype=np.float32),
            dataset_keypoint_weights=np.ones(points, dtype=np.float32),
        )
        for transform in (target, dict(type='PackPoseInputs')):
            person = TRANSFORMS.build(transform)(person)
        samples.append(person)
    return {key: [sample[key] for sample in samples] for key in ('inputs', 'data_samples')}


def keypoints_of(cfg: Config) -> int:
    """Keypoints that the head of a pose estimator finds, or the one in it (VisPredictHead)."""
    head = cfg.model.get('head') or {}
    for part in dicts(head):
        for key in ('out_channels', 'num_joints', 'num_keypoints'):
            if isinstance(part.get(key), int):
                return part[key]
    raise ValueError(f'the head {head.get("type")} does not say how many keypoints it finds')


def has_corners(cfg: Config) -> bool:
    """Whether boxes of mmrotate are of four corners at the end of the training pipeline."""
    kinds = []
    for part in dicts(cfg.get('train_dataloader')):
        kinds += [part.get('box_type'), (part.get('box_type_mapping') or {}).get('gt_bboxes')]
    return list(filter(None, kinds))[-1:] == ['qbox']


def rotated_batch(cfg: Config, size: tuple[int, int], number: int, num_objects: int) -> dict:
    """Images with turned boxes, of the class that every head has."""
    from mmrotate.testing import demo_mm_inputs

    shape = (channels_of(cfg), *size)
    batch = demo_mm_inputs(
        number,
        [shape] * number,
        [num_objects] * number,
        num_classes=2,
        use_box_type=True,
        use_qbox=has_corners(cfg),
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()
    return batch


def camera_batch(cfg: Config, size: tuple[int, int], number: int, num_objects: int) -> dict:
    """Images of a camera with boxes in space, some metres in front of it."""
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample

    height, width = size
    camera = torch.eye(4)
    camera[0, 0] = camera[1, 1] = focal = float(width)
    camera[0, 2], camera[1, 2] = width / 2, height / 2
    sizes = [part.get(key, 7) for part in dicts(cfg.model) for key in _CODE_SIZES]
    box_dim = max(sizes)  # nine with a velocity
    samples = []
    for _ in range(number):
        depths = torch.rand(num_objects) * 10 + 10
        centers = torch.rand(num_objects, 2) * torch.tensor([width, height]) / 2
        centers += torch.tensor([width, height]) / 4
        place = (centers - camera[:2, 2]) / focal * depths[:, None]
        boxes = torch.ones(num_objects, box_dim)  # sizes, angle and velocity of 1
        boxes[:, :3] = torch.cat([place, depths[:, None]], 1)
        reach = focal / depths[:, None]  # pixels of a metre
        labels = torch.zeros(num_objects, dtype=torch.long)
        boxes_3d = CameraInstance3DBoxes(boxes, box_dim=box_dim, origin=(0.5, 0.5, 0.5))
        samples.append(
            Det3DDataSample(
                metainfo=dict(
                    img_shape=size,
                    ori_shape=size,
                    pad_shape=size,
                    scale_factor=np.ones(1, dtype=np.float32),  # of boxes and of points
                    cam2img=camera.tolist(),
                    lidar2img=camera.numpy(),  # ImVoxelNet's, as if lidar and camera were one
                    depth2img=camera.numpy(),
                    trans_mat=np.diag([0.25, 0.25, 1]).astype(np.float32),  # SMOKE's, at stride 4
                    affine_aug=False,
                    box_type_3d=CameraInstance3DBoxes,
                ),
                gt_instances=InstanceData(
                    bboxes=torch.cat([centers - reach, centers + reach], 1), labels=labels
                ),
                gt_instances_3d=InstanceData(
                    bboxes_3d=boxes_3d,
                    labels_3d=labels,
                    centers_2d=centers,
                    depths=depths,
                    attr_labels=labels,
                ),
            )
        )
    shape = (channels_of(cfg), *size)
    images = [torch.randint(256, shape, dtype=torch.uint8) for _ in range(number)]
    return dict(inputs=dict(img=images), data_samples=samples)
