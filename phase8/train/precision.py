"""Which number format the matrix products of a training run in.

bfloat16 halves the memory traffic, and processors with instructions for it multiply several times faster than in
float32. A processor without them emulates it: on one with AVX2 alone, products of 2048 x 256 x 2048 took 0.5 GFLOP/s in
bfloat16 and 80 in float32 (`python -m timeit` on `a @ b`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from phase8.train.settings import Precision


def takes_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether products run in bfloat16 on this device; `auto` asks the device."""
    if precision is not Precision.auto:
        return precision is Precision.bfloat16
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return cpu_multiplies_bfloat16()
    return True


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (x86: AVX-512 BF16 or AMX; Arm: BF16)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, check, bool)() for check in checks):
        return True
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    return any("bf16" in line.split() for line in lines if line.startswith("Features"))
