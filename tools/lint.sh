#!/usr/bin/env bash
# Lints everything that needs no torch and no mm package to be read: Python, C++ and CUDA, shell, and the files that
# GitHub and pre-commit read.
#
#   bash tools/lint.sh
#
# The Python in PATH serves if it has the versions of requirements/lint.txt, as that of tools/setup_env.sh does; mypy
# then knows the types of torch too. Else .venv-lint is made, in seconds. PYTHON names another Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Whether a Python has every pin.
has_tools() {
    "$1" - requirements/lint.txt 2>/dev/null <<'PY'
import sys
from importlib.metadata import version

pins = [line.split('==') for line in open(sys.argv[1]).read().split() if '==' in line]
sys.exit(any(version(name) != pin for name, pin in pins))
PY
}

python=$(command -v "${PYTHON:-python3}") || {
    echo "[lint] error: there is no ${PYTHON:-python3}; name one in PYTHON" >&2
    exit 1
}
if ! has_tools "$python"; then
    venv=$PWD/.venv-lint
    if ! has_tools "$venv/bin/python"; then
        echo '[lint] .venv-lint gets requirements/lint.txt'
        "$python" -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r requirements/lint.txt
    fi
    python=$venv/bin/python
fi
export PATH=${python%/*}:$PATH

failed=
# Runs a check; after one that failed the others still run.
lint() {
    printf '[lint] %s\n' "$1 ${*:2:3}"
    "$@" || failed+=" $1"
}
# Checks files against a schema that check-jsonschema brings.
schema() { lint check-jsonschema --quiet --builtin-schema "$@"; }

mapfile -t sources < <(find mmlocalattn/csrc examples tests/cuda_emulation tools/dev \
    -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort)
mapfile -t scripts < <(find tools .ci/run -name '*.sh' -o -name run | sort)

lint ruff check --quiet .
lint ruff format --check --quiet .
lint mypy
lint clang-format --dry-run -Werror "${sources[@]}"
for script in "${scripts[@]}"; do
    lint bash -n "$script"
done
schema vendor.github-workflows .github/workflows/*.yml
schema custom.github-workflows-require-timeout .github/workflows/*.yml
schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/{bug,feature}.yml
schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
schema vendor.citation-file-format --default-filetype yaml CITATION.cff
lint pre-commit validate-config .pre-commit-config.yaml
[ -z "$failed" ] || {
    echo "[lint] failed:$failed" >&2
    exit 1
}
