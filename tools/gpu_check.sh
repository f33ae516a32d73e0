#!/usr/bin/env bash
# Builds the CUDA kernels for the GPU of this machine, tests them against the references and times them.
#
#   bash tools/gpu_check.sh [FOLDER]
#
# FOLDER (default build/gpu_check) gets check.json, operators.json, benchmark.json and logs. PYTHON (default python) needs
# torch, numpy, setuptools, ninja, pytest and rich, and no mm* package if MMCV_CSRC_DIR names the folder mmcv/ops/csrc
# of mmcv's source. What is quick comes first: python -m mmlocalattn.check takes seconds.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../build/gpu_check}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}

say() { printf '[gpu_check] %s\n' "$*"; }
die() {
    printf '[gpu_check] error: %s\n' "$*" >&2
    exit 1
}

# Runs a step, says how it went, and leaves its seconds and exit status in files; its output goes to a log.
step() {
    local name=$1 status=0 start=$SECONDS
    shift
    say "$name"
    "$@" >"$out/$name.log" 2>&1 || status=$?
    echo "$status $((SECONDS - start))" >"$out/$name.status"
    return $status
}

command -v "$python" >/dev/null || die "there is no $python; name one with torch in PYTHON"
for module in torch numpy setuptools ninja pytest rich; do
    "$python" -c "import $module" 2>/dev/null || die "$python has no $module: $python -m pip install $module"
done
"$python" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 64)' ||
    die "setuptools is too old, 64 is needed: $python -m pip install --upgrade setuptools"
# torch calls the program ninja, which lies beside an interpreter that is not activated.
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
command -v ninja >/dev/null || die "there is no program ninja: $python -m pip install --force-reinstall ninja"
capability=$("$python" -c '
import torch
if torch.cuda.is_available():
    print("{}.{}".format(*torch.cuda.get_device_capability()))')
[ -n "$capability" ] || die "torch sees no GPU, see nvidia-smi and CUDA_VISIBLE_DEVICES"
[ "${capability%.*}" -ge 8 ] || die "the GPU has compute capability $capability, the kernels need 8.0"

mkdir -p "$out"
rm -f "$out"/{check,operators,benchmark}.json "$out"/*.{log,status,xml}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability

step build "$python" setup.py build_ext --inplace || {
    tail -n 20 "$out/build.log" >&2
    die "the kernels do not build, see above and $out/build.log"
}
failed=''
step check "$python" -m mmlocalattn.check --device cuda --out "$out/operators.json" || failed=check
cat "$out/check.log"
step tests "$python" -m pytest -m cuda --junitxml="$out/tests.xml" tests/test_ops || {
    failed="$failed tests"
    tail -n 40 "$out/tests.log" >&2
}
step benchmark "$python" tools/benchmarks/bench_ops.py --device cuda --dtype bfloat16 --out "$out/benchmark.json" ||
    failed="$failed benchmark"
cat "$out/benchmark.log"

"$python" - "$out" <<'PY'
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import torch

out = Path(sys.argv[1])
steps = {}
for name in ('build', 'check', 'tests', 'benchmark'):
    status, seconds = map(int, (out / f'{name}.status').read_text().split())
    steps[name] = {'status': status, 'seconds': seconds}
suite = next(ElementTree.parse(out / 'tests.xml').iter('testsuite'))
tests = {key: int(suite.get(key)) for key in ('tests', 'failures', 'errors', 'skipped')}
machine = {
    'gpu': torch.cuda.get_device_name(),
    'capability': '{}.{}'.format(*torch.cuda.get_device_capability()),
    'torch': torch.__version__,
    'cuda': torch.version.cuda,
}
(out / 'check.json').write_text(json.dumps({**machine, 'steps': steps, 'tests': tests}, indent=2))
print(*machine.values(), sep='  ')
for name, step in steps.items():
    counts = ', '.join(f'{count} {key}' for key, count in tests.items()) if name == 'tests' else ''
    verdict = 'failed' if step['status'] else 'ok'
    print(f'{name:10} {verdict:7} {step["seconds"]:4} s  {counts}')
PY
[ -z "$failed" ] || die "failed: ${failed# }, see $out"
