"""What tests call float32 is not TF32 on any GPU."""

import os
import subprocess
import sys

import torch


def test_float32_is_float32() -> None:
    assert torch.get_float32_matmul_precision() == 'highest'
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_where_the_environment_asks_for_tf32() -> None:
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', f'{__file__}::{test_float32_is_float32.__name__}'],
        env=os.environ | {'TORCH_ALLOW_TF32_CUBLAS_OVERRIDE': '1'},
        capture_output=True,
        text=True,
    )
    assert '1 passed' in result.stdout, result.stdout
