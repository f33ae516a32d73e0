"""Moved to tools/analysis/quickstart_report.py. This path goes with the next minor version."""

import os
import sys
from pathlib import Path

NEW = 'tools/analysis/quickstart_report.py'

if __name__ == '__main__':
    print(f'{sys.argv[0]} is {NEW} now', file=sys.stderr)
    path = str(Path(__file__).parents[1] / NEW)
    os.execv(sys.executable, [sys.executable, path, *sys.argv[1:]])
