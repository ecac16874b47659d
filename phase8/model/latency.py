"""How long one token takes, measured here and estimated for the target device.

The estimate for a Raspberry Pi 4 (four Cortex-A72 cores, 1 GB) takes the larger of two bounds for one token at batch 1:
reading every FP32 weight once from memory, and two operations per weight. Both rates are assumptions about such a
board, not measurements; the figure is an estimate and called so.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import PreTrainedModel

# Assumed, never measured here.
PI4_BYTES_PER_S = 2.5e9
PI4_FLOP_PER_S = 4.0e9
PROMPT_TOKENS, TIMED_TOKENS = 16, 24


def measure_latency_ms(network: PreTrainedModel) -> float:
    """Median milliseconds per generated token on this machine (FP32, batch 1, key-value cache)."""
    token = torch.ones(1, PROMPT_TOKENS, dtype=torch.int64, device=network.device)
    times = []
    with torch.no_grad():
        output = network(input_ids=token, use_cache=True)
        for _ in range(TIMED_TOKENS):
            begin = time.perf_counter()
            output = network(input_ids=token[:, :1], past_key_values=output.past_key_values, use_cache=True)
            output.logits[0, -1].argmax().item()
            times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def estimate_pi4_ms(parameters: int) -> float:
    """Estimated milliseconds per token of a dense model with this many parameters on a Raspberry Pi 4."""
    return 1000 * max(4 * parameters / PI4_BYTES_PER_S, 2 * parameters / PI4_FLOP_PER_S)
