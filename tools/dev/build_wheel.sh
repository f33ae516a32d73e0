#!/usr/bin/env bash
# Builds a wheel with the compiled kernels for the torch of an environment. Its version names that torch, as in
# 0.1.0+torch2.11.0.cpu: under another one it stops at import with a line that says so.
#
#   bash tools/dev/build_wheel.sh [--cuda] [FOLDER]
#
# --cuda adds the CUDA kernels, for TORCH_CUDA_ARCH_LIST, and the version ends with the CUDA of torch. FOLDER is where
# the wheel goes (default dist). PYTHON (default python) has torch, mmcv and ninja.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=$(command -v "${PYTHON:-python}") || {
    echo "[build_wheel] error: there is no ${PYTHON:-python}; name one in PYTHON" >&2
    exit 1
}
device=cpu
if [ "${1:-}" = --cuda ]; then
    export FORCE_CUDA=1
    device=cuda
    shift
else
    export CUDA_VISIBLE_DEVICES= FORCE_CUDA=0 # else setup.py could add them
fi
folder=$(realpath -m "${1:-dist}")

tag=$("$python" - "$device" <<'PY'
import sys

import torch

version = torch.__version__.partition('+')[0]
print(f'torch{version}.' + ('cpu' if sys.argv[1] == 'cpu' else f'cu{(torch.version.cuda or "").replace(".", "")}'))
PY
)
build=build/wheel-$tag
rm -rf "$build/lib"
mkdir -p "$build" "$folder"
PATH=$(cd "$(dirname "$python")" && pwd):$PATH "$python" setup.py --quiet \
    egg_info --egg-base "$build" --tag-build "+$tag" \
    build --build-base "$build" --build-lib "$build/lib" \
    bdist_wheel --skip-build --bdist-dir "$build/bdist" --dist-dir "$folder"
ls "$folder"/mmlocalattn-*"$tag"*.whl
