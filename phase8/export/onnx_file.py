"""A network as ONNX: `input_ids` int64 [B, T] -> `logits` float32 [B, T, V].

Every token sees itself and those before it. One pass without a cache, as scoring needs it; whoever generates with it
computes every prefix anew. torch traces the network (`torch.export`) and translates the trace, so this works for any
architecture that can be traced with free batch and sequence sizes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import PreTrainedModel

from phase8.errors import ModelError
from phase8.export.extra import optional
from phase8.model.window import window

_LIMIT_BYTES = 2**31 - 2**24
"""A protobuf message holds 2 GiB; a little is for the graph."""


def write_onnx(network: PreTrainedModel, path: Path) -> None:
    """Writes one ONNX file.

    Raises:
        ModelError: a library is not installed, the model is too large, or torch cannot trace it.
    """
    for name in ("onnx", "onnxscript"):
        optional(name)
    if 4 * sum(parameter.numel() for parameter in network.parameters()) > _LIMIT_BYTES:
        raise ModelError(
            "one ONNX file holds at most 2 GiB, and this model is larger",
            where=type(network).__name__,
            fix="export to gguf",
        )

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.network(input_ids=input_ids, use_cache=False).logits

    longest = window(network) or 2**31 - 1
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=1, max=longest)}
    # Sizes other than 0 and 1, which the tracer would take for constants.
    example = torch.zeros((2, min(8, longest)), dtype=torch.long)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes of the tracer to its own authors
            program = torch.onnx.export(
                Logits().eval(),
                (example,),
                dynamo=True,
                dynamic_shapes={"input_ids": dims},
                input_names=["input_ids"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the tracer raises what an architecture's code leads to
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ModelError(
            f"torch cannot trace this architecture: {reason}",
            where=type(network).__name__,
            fix="export to safetensors",
        ) from error
    if program is None:
        raise ModelError("torch gave no program", where=type(network).__name__, fix="export to safetensors")
    program.save(str(path), external_data=False)
