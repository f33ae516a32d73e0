#!/usr/bin/env bash
# Sets up if needed, lints, and runs every test, in as many processes as there are cores. Arguments go to pytest:
# bash tools/run_tests.sh -k neighborhood
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup_env.sh
venv=${MMLOCALATTN_VENV:-.venv${MMLOCALATTN_STACK:+-$MMLOCALATTN_STACK}}
[ "${venv:0:1}" = / ] || venv=$PWD/$venv
export PATH=$venv/bin:$PATH

lint() {
    printf '[lint] %s\n' "$*"
    "$@"
}
mapfile -t sources < <(find mmlocalattn/csrc tests/cuda_emulation tools/dev -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort)
lint ruff check --quiet .
lint ruff format --check --quiet .
lint mypy
lint clang-format --dry-run -Werror "${sources[@]}"
for script in tools/*.sh .ci/run; do
    lint bash -n "$script"
done

printf '[test] pytest %s\n' "$*"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest --numprocesses auto --dist loadgroup "$@"
