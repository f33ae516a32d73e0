"""Count which class is taken for which, from the predictions that tools/test.py --out saves.

    python tools/test.py CONFIG CHECKPOINT --out PREDICTIONS
    python tools/analysis/confusion_matrix.py CONFIG PREDICTIONS SAVE_DIR

Rows are the true classes, columns the predicted ones. What is counted for each task stands in
mmlocalattn/visualisation/confusion.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import add_config_arguments, one_line_errors, output_path
from mmlocalattn.files import check_folder, write_json


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument('predictions', type=Path, help='what --out of tools/test.py named')
    parser.add_argument('save_dir', type=output_path, help='folder for the matrix and its picture')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='detection: lowest score that counts'
    )
    parser.add_argument(
        '--tp-iou-thr', type=float, default=0.5, help='detection: lowest IoU that counts'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.training import config_of
    from mmlocalattn.visualisation.confusion import count_confusion, draw_confusion

    with one_line_errors():
        check_folder(args.save_dir)
        cfg = config_of(args)
        confusion = count_confusion(cfg, args.predictions, args.score_thr, args.tp_iou_thr)
        content = dict(classes=confusion.classes, matrix=confusion.matrix.tolist())
        write_json(args.save_dir / 'confusion_matrix.json', content)
        picture = args.save_dir / 'confusion_matrix.png'
        draw_confusion(confusion, picture)
    print(*confusion.largest(), picture, sep='\n')


if __name__ == '__main__':
    main()
