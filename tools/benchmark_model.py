"""Time the backbone of a config on random images: python tools/benchmark_model.py CONFIG."""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmlocalattn.engine import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(':')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'), help='image size'
    )
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--backward', action='store_true', help='forward and backward')
    parser.add_argument('--rounds', type=int, default=3, help='timed rounds after one to warm up')
    return parser.parse_args()


def make_run(backbone: nn.Module, images: torch.Tensor, backward: bool) -> Callable[[], None]:
    """One forward pass, or one forward and backward pass, to the end of its work."""

    def run() -> None:
        with torch.set_grad_enabled(backward):
            outputs = backbone(images)
        if backward:
            sum(output.sum() for output in outputs).backward()
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    return run


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args.config)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise SystemExit(f'error: {error}') from None
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    backbone_cfg = {**cfg.model.backbone, 'norm_cfg': dict(type='BN')}
    backbone = MODELS.build(backbone_cfg).to(args.device).train(args.backward)
    images = torch.randn(args.batch, 3, *args.shape, device=args.device)
    run = make_run(backbone, images, args.backward)
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    result = {
        'config': args.config,
        'pass': 'forward and backward' if args.backward else 'forward',
        'images': list(images.shape),
        'device': args.device,
        'threads': torch.get_num_threads(),
        'seconds': round(statistics.median(seconds[1:]), 3),
    }
    print(json.dumps(result))


if __name__ == '__main__':
    main()
