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

from phase8.errors import ModelError
from phase8.model.window import window

# Assumed, never measured here.
PI4_BYTES_PER_S = 2.5e9
PI4_FLOP_PER_S = 4.0e9
PROMPT_TOKENS, TIMED_TOKENS = 16, 24
CACHES = ("past_key_values", "cache_params", "state")
"""What architectures call what they keep from one token to the next, in their output and as an argument."""


def measure_latency_ms(network: PreTrainedModel) -> float:
    """Median milliseconds per generated token on this machine: FP32, batch 1, with the architecture's own cache.

    Where the window is shorter than prompt and answer, both are cut. State-space models call their cache otherwise; an
    architecture without any reads the whole text for every token.

    Raises:
        ModelError: the network gives no logits for a text of its own window.
    """
    room = window(network) or PROMPT_TOKENS + TIMED_TOKENS
    prompt = max(1, min(PROMPT_TOKENS, room // 2))
    steps = max(1, min(TIMED_TOKENS, room - prompt))
    ids_1L = torch.ones(1, prompt, dtype=torch.int64, device=network.device)
    times = []
    try:
        with torch.no_grad():
            output = network(input_ids=ids_1L)
            for _ in range(steps):
                kept = {name: output[name] for name in CACHES if output.get(name) is not None}
                ids_1L = torch.cat([ids_1L, ids_1L[:, :1]], dim=1)
                begin = time.perf_counter()
                output = network(input_ids=ids_1L[:, -1:] if kept else ids_1L, **kept)
                output.logits[0, -1].argmax().item()
                times.append(time.perf_counter() - begin)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        raise ModelError(
            f"the time per token cannot be measured: {type(error).__name__}: {str(error)[:200]}",
            where=type(network).__name__,
            fix="nothing else depends on it",
        ) from error
    return 1000 * statistics.median(times)


def estimate_pi4_ms(parameters: int) -> float:
    """Estimated milliseconds per token of a dense model with this many parameters on a Raspberry Pi 4."""
    return 1000 * max(4 * parameters / PI4_BYTES_PER_S, 2 * parameters / PI4_FLOP_PER_S)
