#!/usr/bin/env bash
# Makes the reference environment and builds mmlocalattn in it, editable. What is done is skipped, so running it
# again is quick; an interrupted run goes on where it stopped.
#
#   bash tools/setup_env.sh
#
# MMLOCALATTN_STACK=onedl takes the second supported row, onedl's mm* packages, instead of OpenMMLab's own.
# MMLOCALATTN_VENV is the folder of the virtual environment (default .venv in the repository, .venv-onedl for onedl),
# PYTHON the Python to make it with. setup.py's switches (FORCE_CUDA, MAX_JOBS, MMLOCALATTN_WITH_OPS, ...) work here
# too. A clone holds the kernels of one environment, the one set up last: setting the other one up again swaps them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=${MMLOCALATTN_STACK:-}
venv=${MMLOCALATTN_VENV:-.venv${stack:+-$stack}}
[ "${venv:0:1}" = / ] || venv=$PWD/$venv
python=$venv/bin/python
pins=requirements/${stack:+${stack}_}reference.txt
stamp=$venv/mmlocalattn-$(basename "$pins" .txt).sha256

say() { printf '[setup] %s\n' "$*"; }
die() {
    printf '[setup] error: %s\n' "$*" >&2
    exit 1
}
pip_install() { "$python" -m pip install --disable-pip-version-check --quiet "$@"; }
requirements_hash() { cat "$pins" requirements/{tests,lint}.txt | sha256sum; }

# Both stacks bring the same modules, and pip would install one over the other.
check_stack() {
    local other
    case "$stack" in
        '') other=onedl_mmengine ;;
        onedl) other=mmengine ;;
        *) die "there is no MMLOCALATTN_STACK=$stack; set it to onedl, or leave it unset for OpenMMLab's own packages" ;;
    esac
    if compgen -G "$venv/lib/python3*/site-packages/$other-*.dist-info" >/dev/null; then
        die "$venv has the mm* packages of the other stack; remove it, or name another folder in MMLOCALATTN_VENV"
    fi
}

# The pins exist for Python 3.11 and 3.12.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "the reference environment needs Python 3.11 or 3.12 and ${PYTHON:-python3} is not;" \
        'install one and name it, as in PYTHON=/usr/bin/python3.11 bash tools/setup_env.sh'
}

check_machine() {
    command -v "${CXX:-g++}" >/dev/null ||
        die "there is no C++ compiler ${CXX:-g++}; install one (Debian, Ubuntu: apt install g++)"
    local parent free_gib
    parent=$(dirname "$venv")
    mkdir -p "$parent"
    free_gib=$(($(df -Pk "$parent" | awk 'END {print $4}') >> 20))
    [ "$free_gib" -ge 10 ] ||
        die "$parent has $free_gib GiB free and 10 are needed; MMLOCALATTN_VENV can name another place"
}

make_venv() {
    if "$python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local base
    base=$(find_python)
    check_machine
    say "virtual environment $venv, $("$base" --version)"
    "$base" -m venv "$venv" ||
        die "$base makes no virtual environment (Debian, Ubuntu: apt install python3-venv)"
    rm -f "$stamp"
}

mmcv_pin='^(onedl-)?mmcv=='
install_mmcv() {
    # With a GPU but without nvcc only mmcv's CPU operators can be compiled.
    if [ -z "${CUDA_HOME:-}" ] && [ ! -d /usr/local/cuda ] && ! command -v nvcc >/dev/null; then
        export CUDA_VISIBLE_DEVICES=
    fi
    # The nvidia-* wheels have the CUDA headers that a small toolkit lacks beside nvcc.
    local include
    for include in "$venv"/lib/python3.*/site-packages/nvidia/*/include; do
        export CPATH=${CPATH:+$CPATH:}$include
    done
    local mmcv
    mmcv=$(grep -E "$mmcv_pin" "$pins")
    pip_install --no-build-isolation --no-deps "$mmcv"
    # pip may have kept a wheel that was compiled against another torch.
    "$python" -c 'import torch, mmcv._ext' 2>/dev/null ||
        pip_install --no-build-isolation --no-deps --no-cache-dir --force-reinstall "$mmcv"
}

install_reference() {
    say 'torch, mmdet, mmsegmentation, mmpretrain, tools: a download of about 3 GB'
    pip_install -r <(grep -vE "$mmcv_pin" "$pins") -r requirements/tests.txt -r requirements/lint.txt
    say 'mmcv: compiled from source once, about ten minutes on two cores'
    (install_mmcv)
    "$python" -c 'import torch, mmcv._ext, mmdet, mmseg, mmpretrain' ||
        die "the packages in $venv do not import, see above; remove the folder and run this again"
    requirements_hash >"$stamp"
}

build_package() {
    say 'mmlocalattn, editable'
    MMLOCALATTN_WITH_OPS=0 pip_install --no-build-isolation --no-deps -e .
    if [ "${MMLOCALATTN_WITH_OPS:-1}" = 0 ]; then
        return
    fi
    say 'mmlocalattn._ext: compiles what has changed, a few minutes the first time'
    # Objects are kept for each stack, so that swapping the kernels only links them.
    mkdir -p build
    PATH=$venv/bin:$PATH "$python" setup.py build_ext --inplace --build-temp "build/temp-${stack:-upstream}" \
        >build/setup_env.log 2>&1 || {
        tail -n 40 build/setup_env.log >&2
        die 'mmlocalattn._ext does not build, see above and build/setup_env.log'
    }
}

check_stack
make_venv
if [ -f "$stamp" ] && requirements_hash | cmp -s - "$stamp"; then
    say "$venv is complete"
else
    install_reference
fi
build_package
