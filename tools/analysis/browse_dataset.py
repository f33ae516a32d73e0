"""Draw the images of a data set with its boxes, masks, index maps or labels.

Drawn is what the data loader of the config makes, after its random augmentation: what the model
trains on. This does for detection, segmentation and classification what browse_dataset.py of mmdet,
mmsegmentation and mmpretrain do. That of mmsegmentation 1.2.2 hands OpenCV an array that is not
contiguous, and stops.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import (
    add_config_arguments,
    add_data_arguments,
    one_line_errors,
    output_folder,
)
from mmlocalattn.files import check_folder


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument(
        '--output-dir', type=output_folder, help='default work_dirs/<config name>/browse_<split>'
    )
    parser.add_argument('--number', type=int, default=20, help='of images, default 20; 0 for all')
    args = parser.parse_args(argv)
    if args.number < 0:
        parser.error(f'--number must not be negative, got {args.number}')
    folder = f'work_dirs/{Path(args.config).stem}/browse_{args.split}'
    args.output_dir = args.output_dir or Path(folder)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from rich.progress import track

    from mmlocalattn.data.images import write_image
    from mmlocalattn.training import config_of
    from mmlocalattn.visualisation.pictures import (
        build_dataset,
        build_visualizer,
        draw_item,
        read_item,
    )

    with one_line_errors():
        check_folder(args.output_dir)
        cfg = config_of(args)
        dataset = build_dataset(cfg, args.split, args.number)
        visualizer = build_visualizer(cfg, dataset.metainfo)
    number = min(args.number or len(dataset), len(dataset))
    for index in track(range(number), description='drawing'):
        with one_line_errors():
            item = read_item(dataset, index)
            stem = Path(item['data_samples'].get('img_path', 'image')).stem
            picture = draw_item(visualizer, item)
            write_image(args.output_dir / f'{index:06d}_{stem}.png', picture)
    print(f'{number} of {len(dataset)} images in {args.output_dir}')


if __name__ == '__main__':
    main()
