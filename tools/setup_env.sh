#!/usr/bin/env bash
# Makes the reference environment and builds mmlocalattn in it, editable. What is done is skipped, so running it
# again is quick; an interrupted run goes on where it stopped.
#
#   bash tools/setup_env.sh
#
# MMLOCALATTN_STACK names another supported row: onedl (onedl's mm* packages with a newer torch) or classic (torch
# 2.1, for which OpenMMLab publishes compiled mmcv).
# MMLOCALATTN_VENV is the folder of the virtual environment (default .venv in the repository, .venv-STACK for a
# row), PYTHON the Python to make it with. setup.py's switches (FORCE_CUDA, MAX_JOBS, MMLOCALATTN_WITH_OPS, ...)
# work here too. MMLOCALATTN_REQUIRE_HASHES=1 takes files of the SHA-256 in requirements/hashes/ alone, as PyPI has
# them: no wheels of another index, as PyTorch's own for a CPU. A clone holds the kernels of one environment, the one
# set up last: setting another one up swaps them. Compiled mmcv is kept in XDG_CACHE_HOME (default ~/.cache) for the next environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=${MMLOCALATTN_STACK:-}
venv=${MMLOCALATTN_VENV:-.venv${stack:+-$stack}}
[ "${venv:0:1}" = / ] || venv=$PWD/$venv
python=$venv/bin/python
pins=requirements/${stack:+${stack}_}reference.txt
stamp=$venv/mmlocalattn-$(basename "$pins" .txt).sha256
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mmlocalattn
requirements=("$pins" requirements/tests.txt)
[ -n "$stack" ] || requirements+=(requirements/lint.txt) # whose mypy then knows this torch; else lint.sh finds its own
index_probe='addict==2.4.0' # a few kB, and among the pins
mmcv_pin='^(onedl-)?mmcv=='
natten_pin='^natten==' # in the rows whose torch it supports

[ $# = 0 ] || {
    echo "usage: bash tools/setup_env.sh (what can be set is in its first lines)" >&2
    exit 2
}

say() { printf '[setup] %s\n' "$*"; }
die() {
    printf '[setup] error: %s\n' "$*" >&2
    exit 1
}

case "$stack" in
    '') pythons='3.11 3.12' ;;
    onedl) pythons='3.11 3.12 3.13' ;;
    classic) pythons='3.10 3.11' ;;
    *) die "there is no MMLOCALATTN_STACK=$stack; set it to onedl or classic, or leave it unset for the reference" ;;
esac

# run NAME USUALLY COMMAND...: runs a command of minutes. Its output goes to a log; shown are how long it should
# take, or took here the last time, and every 15 seconds where it is. `set -e` is off in a function that it runs.
run() {
    local name=$1 usually=$2 log=build/setup_$1.log record=$cache/times/$stack-$1 status=0
    shift 2
    mkdir -p build "$cache/times"
    [ ! -f "$record" ] || usually="$(cat "$record") s the last time"
    say "$name: $usually"
    : >"$log"
    local began=$SECONDS
    watch_log "$log" &
    watcher=$!
    "$@" >"$log" 2>&1 || status=$?
    kill "$watcher"
    watcher=
    if [ "$status" != 0 ]; then
        tail -n 40 "$log" >&2
        die "$name failed, see above and $log"
    fi
    echo $((SECONDS - began)) >"$record"
    say "$name: done in $((SECONDS - began)) s"
}
watcher=
trap '[ -z "$watcher" ] || kill "$watcher"' EXIT

watch_log() {
    local began=$SECONDS seconds
    while kill -0 $$ 2>/dev/null; do
        sleep 1
        seconds=$((SECONDS - began))
        if ((seconds > 0 && seconds % 15 == 0)); then
            say "  $seconds s: $(grep -v -e '^$' -e ^WARNING "$1" | tail -n 1 | sed -E 's/^(\[[0-9/]+\]) .* ([^ ]+\.(cpp|cu)) .*/\1 \2/' | cut -c 1-100)"
        fi
    done
}

# The pins of a row that match, or with -v those that do not, with their hashes if those are asked for.
pins_matching() {
    if [ "${MMLOCALATTN_REQUIRE_HASHES:-}" = 1 ]; then
        sed -E ':a; /\\$/ {N; s/ *\\\n */ /; ta}' "requirements/hashes/${stack:-reference}.txt" | grep -E "$@"
    else
        cat "${requirements[@]}" | grep -E "$@"
    fi
}

pip_install() {
    "$python" -m pip install --disable-pip-version-check --progress-bar off "$@"
}
requirements_hash() { cat "${requirements[@]}" | sha256sum; }

# All stacks bring the same modules, and pip would install one over the other.
check_stack() {
    local other
    for other in "$venv"/mmlocalattn-*.sha256; do
        [ ! -e "$other" ] || [ "$other" = "$stamp" ] ||
            die "$venv has the packages of another stack; remove it, or name another folder in MMLOCALATTN_VENV"
    done
}

find_python() {
    local candidate candidates=${PYTHON:-}
    [ -n "$candidates" ] || candidates="$(printf 'python%s ' $(printf '%s\n' $pythons | sort -rV)) python3"
    for candidate in $candidates; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] not in '$pythons'.split())" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "this environment needs Python ${pythons/ / or } and ${PYTHON:-python3} is not;" \
        "install one and name it, as in PYTHON=/usr/bin/python${pythons% *} bash tools/setup_env.sh"
}

# What would stop the work later, before anything is downloaded.
check_machine() {
    command -v "${CXX:-g++}" >/dev/null ||
        die "there is no C++ compiler ${CXX:-g++}; install one (Debian, Ubuntu: apt install g++)"
    local parent free_gib jobs available_mib
    parent=$(dirname "$venv")
    mkdir -p "$parent"
    free_gib=$(($(df -Pk "$parent" | awk 'END {print $4}') >> 20))
    [ "$free_gib" -ge 10 ] ||
        die "$parent has $free_gib GiB free and 10 are needed; MMLOCALATTN_VENV can name another place"
    if [ -r /proc/meminfo ]; then
        available_mib=$(($(awk '/^MemAvailable:/ {print $2}' /proc/meminfo) >> 10))
        [ "$available_mib" -ge 2500 ] ||
            die "$available_mib MiB of memory are free and a compiler needs 2500; close other programs or add swap"
        jobs=$((available_mib / 2500))
        [ "$jobs" -le "$(nproc)" ] || jobs=$(nproc)
        export MAX_JOBS=${MAX_JOBS:-$jobs}
    fi
}

check_index() {
    local folder
    folder=$(mktemp -d)
    "$python" -m pip --timeout 15 --retries 1 download --disable-pip-version-check --quiet --no-deps \
        --no-cache-dir --dest "$folder" "$index_probe" >"$folder/log" 2>&1 || {
        tail -n 3 "$folder/log" >&2
        die 'pip cannot fetch from its package index, see above; a proxy goes to HTTPS_PROXY,' \
            "a mirror to PIP_INDEX_URL, its certificate to PIP_CERT"
    }
    rm -r "$folder"
}

make_venv() {
    if "$python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local base
    base=$(find_python)
    say "virtual environment $venv, $("$base" --version)"
    "$base" -m venv "$venv" ||
        die "$base makes no virtual environment (Debian, Ubuntu: apt install python3-venv)"
    rm -f "$stamp"
}

install_mmcv() (
    # With a GPU but without nvcc only mmcv's CPU operators can be compiled.
    if [ -z "${CUDA_HOME:-}" ] && [ ! -d /usr/local/cuda ] && ! command -v nvcc >/dev/null; then
        export CUDA_VISIBLE_DEVICES=
    fi
    # The nvidia-* wheels have the CUDA headers that a small toolkit lacks beside nvcc.
    for include in "$venv"/lib/python3.*/site-packages/nvidia/*/include; do
        export CPATH=${CPATH:+$CPATH:}$include
    done
    PATH=$venv/bin:$PATH "$python" tools/dev/install_mmcv.py "$(pins_matching "$mmcv_pin")" --wheels "$cache/wheels"
)

# Its setup.py asks for the installed torch, and would compile CUDA kernels for hours if that saw a GPU.
install_natten() {
    NATTEN_CUDA_ARCH='' CUDA_VISIBLE_DEVICES='' pip_install --no-build-isolation --no-deps -r <(pins_matching "$natten_pin")
}

install_reference() {
    # Python compiles a module when it is first imported: most of them never are.
    run packages 'a download of about 3 GB, 3 to 10 minutes' \
        pip_install --no-compile -r <(pins_matching -v -e "$mmcv_pin" -e "$natten_pin")
    run mmcv 'compiled from source once, 3 to 6 minutes on two cores' install_mmcv
    if grep -qE "$natten_pin" "$pins"; then
        run natten 'from source, without CUDA, half a minute' install_natten
    fi
    "$python" -c 'import torch, mmcv._ext, mmdet, mmseg, mmpretrain' ||
        die "the packages in $venv do not import, see above; remove the folder and run this again"
    requirements_hash >"$stamp"
}

# Needs torch 2.4 or newer, which the classic row has not.
install_transformers() {
    local pins=requirements/transformers.txt folder=$venv/transformers
    [ "$stack" != classic ] && ! cmp -s "$pins" "$folder/pins.txt" || return 0
    rm -rf "$folder"
    pip_install --quiet --no-compile --no-deps --target "$folder" -r "$pins" ||
        die "pip cannot install $pins, see above"
    cp "$pins" "$folder/pins.txt"
}

install_package() {
    MMLOCALATTN_WITH_OPS=0 pip_install --quiet --no-build-isolation --no-deps -e . || return
    # Objects are kept for each stack, so that swapping the kernels only links them.
    [ "${MMLOCALATTN_WITH_OPS:-1}" = 0 ] ||
        PATH=$venv/bin:$PATH "$python" setup.py build_ext --inplace --build-temp "build/temp-${stack:-upstream}"
}

check_stack
if "$python" -m pip --version >/dev/null 2>&1 && [ -f "$stamp" ] && requirements_hash | cmp -s - "$stamp"; then
    say "$venv is complete"
else
    check_machine
    make_venv
    check_index
    install_reference
fi
install_transformers
run mmlocalattn 'compiles what has changed, 2 to 4 minutes the first time' install_package
