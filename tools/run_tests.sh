#!/usr/bin/env bash
# Sets up if needed, lints, and runs every test, in as many processes as there are cores. Arguments go to pytest:
# bash tools/run_tests.sh -k neighborhood
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup_env.sh
venv=${MMLOCALATTN_VENV:-.venv${MMLOCALATTN_STACK:+-$MMLOCALATTN_STACK}}
[ "${venv:0:1}" = / ] || venv=$PWD/$venv
export PATH=$venv/bin:$PATH

bash tools/lint.sh

printf '[test] pytest %s\n' "$*"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest --numprocesses auto --dist loadgroup "$@"
