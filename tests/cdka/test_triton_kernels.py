"""The CUDA kernels in Triton's interpreter; it must be chosen before Triton is imported, so a process does it."""

from __future__ import annotations

import os
import subprocess
import sys

CHECK = """
import torch
from cdka.triton_kernels import add_up, down_gradients

make = torch.Generator().manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
    for rows, m, r1, K in ((70, 130, 2, 32), (5, 96, 4, 64), (64, 128, 3, 6)):
        y, T, up = (torch.randn(s, generator=make).to(dtype) for s in ((rows, m * r1), (rows * r1, K), (K, m)))
        wide = [t.double() for t in (y, T, up)]
        blocks = wide[0].view(rows, m, r1).transpose(1, 2).reshape(rows * r1, m)
        scale = K**0.5
        dT, dup = down_gradients(y, T, up, r1)
        assert dT.dtype == dtype and dup.dtype == torch.float32
        torch.testing.assert_close(dT.double(), blocks @ wide[2].T, rtol=tolerance, atol=tolerance * m**0.5)
        spread = tolerance * (rows * r1) ** 0.5
        torch.testing.assert_close(dup.double(), wide[1].T @ blocks, rtol=tolerance, atol=spread)
        expected = wide[0] + (wide[1] @ wide[2]).view(rows, r1, m).transpose(1, 2).reshape(rows, m * r1)
        add_up(y, T, up, r1)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * scale)

from cdka import fused as module
from cdka.fused import fused, plain

module.triton_kernels.usable = lambda *_: True
x = torch.randn(2, 9, 48, generator=make).requires_grad_()
A = torch.randn(4, 4, 3, generator=make).requires_grad_()
B = torch.randn(4, 16, 16, generator=make).requires_grad_()
W, b = torch.randn(64, 48, generator=make), torch.randn(64, generator=make)
for weight, bias in ((W, b), (W, None), (None, None)):
    answers = []
    for function in (fused, plain):
        y = function(x, A, B, 0.5, weight, bias)
        answers.append((y, *torch.autograd.grad(y.square().sum(), (x, A, B))))
    for ours, theirs in zip(*answers):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)
print("agree")
"""


def test_the_kernels_agree_with_plain_products_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("agree")
