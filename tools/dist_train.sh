#!/usr/bin/env bash
# Train on several GPUs: bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# More than one machine: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. Without a GPU, GPUS is a number of
# processes.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
say_usage 'CONFIG GPUS [arguments of tools/train.py]' 2 $#
with_torch "$2" train.py "$1" --launcher pytorch "${@:3}"
