#!/usr/bin/env bash
# Test on several GPUs: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# More than one machine: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. Without a GPU, GPUS is a number of
# processes.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
say_usage 'CONFIG CHECKPOINT GPUS [arguments of tools/test.py]' 3 $#
with_torch "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
