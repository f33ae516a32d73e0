"""Kill a small training at random moments, resume it, and compare its weights bit for bit; kill
downloads too.

    python tools/dev/kill_runs.py 20 [--seed S] [--out FILE.json]

The moments are spread over a folder's conversion and the rest of data preparation, forward and
backward, validation, checkpoints, their writing, what is between, and downloads from a server in
this process; at each a second process sends SIGKILL a few milliseconds later. A tenth as many get
SIGTERM, and as many SIGINT, and have to end within five seconds. What FILE.json has of the same
seed is not done again. Exit status 1 if a resumed training, its prepared data or a downloaded file
is not the uninterrupted one, or something is left beside it.
"""

import argparse
import json
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mmlocalattn.command_line import output_file, positive
from mmlocalattn.files import write_json

STATUS = {'SIGKILL': -9, 'SIGTERM': 143, 'SIGINT': 130}
SECONDS = 5
"""In which a training that is told to stop has to end."""

AT_ITS_END = 0.1  # seconds after the signal


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('number', nargs='?', type=positive, default=20, help='default: 20')
    parser.add_argument('--seed', type=int, help='of the moments; default a random one')
    parser.add_argument('--out', type=output_file, help='JSON file to write, and to go on from')
    return parser.parse_args(argv)


def kills(number: int, seed: int, done: Sequence[dict]) -> Iterator[dict]:
    """What comes of each kill.

    Args:
        number: Of kills.
        seed: Of their moments.
        done: What is known of the first ones.
    """
    from killing import downloads, moments, training

    with tempfile.TemporaryDirectory(prefix='kill_runs_') as name:
        folder = Path(name)
        training.write_data(folder)
        calls = training.count_calls(folder) + downloads.count_calls(folder)
        yield from done
        drawn = moments.draw(calls, number, seed)
        for index, moment in enumerate(drawn[len(done) :], len(done)):
            victim = downloads if moment.part in downloads.PARTS.values() else training
            yield {**asdict(moment), **victim.kill(folder, f'killed{index}', moment)}


def is_right(record: dict) -> bool:
    """Whether a training or a download ended as it had to, and then came to the same end.

    One that was at its end when the signal came was not interrupted.
    """
    if record['status'] == 0 and record['seconds'] < AT_ITS_END:
        return not record['differing']
    in_time = record['signal'] == 'SIGKILL' or record['seconds'] <= SECONDS
    ends = STATUS[record['signal']] == record['status'] and in_time
    return ends and record['resumed'] == 0 and not record['differing']


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    known: dict = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    seed = args.seed if args.seed is not None else known.get('seed', secrets.randbelow(10**6))
    done = known['kills'][: args.number] if known.get('seed') == seed else []
    records = []
    for record in kills(args.number, seed, done):
        records.append(record)
        if args.out:
            write_json(args.out, dict(seed=seed, kills=records))
        verdict = 'equal' if is_right(record) else f'WRONG {record}'
        start = 'went on' if record['went_on'] else 'began anew'
        where = f'{record["signal"]} in {record["part"]}, call {record["call"]}'
        print(f'{where}: ended in {record["seconds"]} s, {start}, {verdict}', flush=True)
    wrong = [record for record in records if not is_right(record)]
    counts = (
        ', '.join(f'{n} {name}' for name, n in Counter(r[key] for r in records).items())
        for key in ('signal', 'part')
    )
    print(f'seed {seed}: {"; ".join(counts)}; {len(wrong)} of {len(records)} wrong')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
