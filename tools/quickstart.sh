#!/usr/bin/env bash
# From a clone to a trained detector: sets up, makes the sample data, trains, tests and draws.
#
#   bash tools/quickstart.sh [--smoke] [detection|segmentation]
#
# Results go to work_dirs/quickstart (detection: Mask R-CNN with SSViT, the default) or
# work_dirs/quickstart_segmentation (UPerNet with SSViT). What is done is skipped and an interrupted
# training goes on from its last epoch; remove the folder to start again. --smoke only shows that
# everything runs: a few images and iterations, in work_dirs/quickstart_smoke*.
set -euo pipefail

usage() {
    echo 'usage: bash tools/quickstart.sh [--smoke] [detection|segmentation]' >&2
    exit 2
}

task=detection
smoke=
for arg in "$@"; do
    case "$arg" in
        --smoke) smoke=_smoke ;;
        detection | segmentation) task=$arg ;;
        *) usage ;;
    esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "$task" in
    detection)
        config=configs/quickstart_maskrcnn_ssvit.py
        work_dir=work_dirs/quickstart$smoke
        short=train_cfg.max_epochs=1
        ;;
    segmentation)
        config=configs/quickstart_upernet_ssvit.py
        work_dir=work_dirs/quickstart${smoke}_segmentation
        short='train_cfg.max_iters=4 train_cfg.val_interval=4'
        ;;
esac
options=()
if [ -n "$smoke" ]; then
    # shellcheck disable=SC2206  # split into words
    options=(--cfg-options $short default_hooks.logger.interval=1
        train_dataloader.dataset.indices=32 val_dataloader.dataset.indices=8
        test_dataloader.dataset.indices=8)
fi

step() { printf '\n== %s\n' "$*"; }

step 'set up'
bash tools/setup_env.sh
python=${MMLOCALATTN_VENV:-.venv${MMLOCALATTN_STACK:+-$MMLOCALATTN_STACK}}/bin/python
# Without nvcc the set-up compiles for the CPU only, and a GPU would miss mmcv's operators.
if ! command -v nvcc >/dev/null; then
    export CUDA_VISIBLE_DEVICES=
fi
# Threads that wait sleep instead of spinning: far faster when the cores have other work too.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

step 'sample data'
if [ -d data/digit_cards ]; then
    echo 'data/digit_cards is there'
else
    "$python" tools/make_sample_data.py
fi

step "train $config"
if [ -e "$work_dir/trained" ]; then
    echo "$work_dir is trained"
else
    "$python" tools/train.py "$config" --work-dir "$work_dir" --resume "${options[@]}"
    touch "$work_dir/trained"
fi

step "test $config"
if [ -e "$work_dir/tested" ]; then
    echo "$work_dir is tested"
else
    rm -rf "$work_dir/test" "$work_dir/pictures"
    "$python" tools/test.py "$config" "$(cat "$work_dir/last_checkpoint")" \
        --work-dir "$work_dir/test" --show-dir "$work_dir/pictures" "${options[@]}"
    touch "$work_dir/tested"
fi

step 'report'
"$python" tools/analysis/quickstart_report.py "$work_dir"
