#!/usr/bin/env bash
# Runs the operators' contract, forward and backward of every operator, dtype and instruction set of this machine on
# odd shapes, strided and misaligned inputs, on CPU kernels compiled with AddressSanitizer and
# UndefinedBehaviorSanitizer. Arguments go to pytest.
#
#   bash tools/dev/sanitize.sh [--maxfail 1]
#
# PYTHON names the Python whose torch is used (default python), CXX a GCC (default g++).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(command -v "${PYTHON:-python}") || {
    echo "[sanitize] error: there is no ${PYTHON:-python}; name one in PYTHON" >&2
    exit 1
}
[ "${python:0:1}" = / ] || python=$PWD/$python
export CXX=${CXX:-g++}

# Calls instead of code at every access, and a trap (SIGILL) instead of a message at undefined behaviour, compile several
# times as fast. MMLOCALATTN_UBSAN_MESSAGES=1 has messages.
sanitizers='-fsanitize=address,undefined'
flags="-O0 $sanitizers --param asan-instrumentation-with-call-threshold=0"
[ -n "${MMLOCALATTN_UBSAN_MESSAGES:-}" ] || flags+=' -fsanitize-undefined-trap-on-error'
echo '[sanitize] compile the CPU kernels'
mkdir -p build
MMLOCALATTN_WITH_OPS=1 MMLOCALATTN_CXX_ARGS=$flags LDFLAGS=$sanitizers CUDA_VISIBLE_DEVICES= \
    PATH=$(dirname "$python"):$PATH \
    "$python" setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib >build/sanitize.log 2>&1 || {
    tail -n 40 build/sanitize.log >&2
    exit 1
}

# The libraries of the sanitizers must be loaded before Python.
libraries=
for library in libasan.so libubsan.so libstdc++.so; do
    libraries+="${libraries:+ }$("$CXX" -print-file-name="$library")"
done
echo '[sanitize] contract of the operators'
rm -f build/sanitize/report.*
root=$PWD
# In a folder without another mmlocalattn, which Python would find first.
sanitized() (
    cd build/sanitize
    LD_PRELOAD=$libraries ASAN_OPTIONS=detect_leaks=0:log_path=$PWD/report \
        UBSAN_OPTIONS=print_stacktrace=1:log_path=$PWD/report \
        PYTHONPATH=$PWD/lib OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" "$@"
)
# Without these kernels every test of them would be skipped.
sanitized -c '
from mmlocalattn import ops
assert "build/sanitize/lib" in ops.__file__, ops.__file__
assert all(ops.has_kernel(name, "cpu") for name in ops.OPS)'
sanitized -m pytest --quiet --numprocesses auto "$root/tests/test_ops" -k test_cpu_kernel_is_reference "$@" || {
    head -n 40 build/sanitize/report.* >&2
    exit 1
}
