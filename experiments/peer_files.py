"""Methods that write a file of their own, for `experiments.peers_scored`: NNCodec and ONNX Runtime's int8.

NNCodec (`nncodec`, ISO/IEC 15938-17; version 2.1.3 was used) wants numpy < 2, torch and torchvision, so it lives in an
environment of its own. Of torchvision it imports data sets that nobody here asks for; where no wheel fits the torch
there, a stub of that name does.

    python -m venv NNC && NNC/bin/pip install nncodec           # builds for about three minutes
    python -m experiments.peers_scored --methods NNCodec --nncodec-python NNC/bin/python

Its quantisation parameter qp sets one step for all matrices, (4 + qp mod 4) / 4 x 2^floor(qp / 4) at its default
density; dependent scalar quantisation (trellis-coded) and DeepCABAC are on, norms go in at its default of high
precision. What is counted is the bitstream.

ONNX Runtime's dynamic quantisation writes int8 weights with a scale a channel. The file that it writes is counted as it
is; a tied embedding is in it twice, once for the lookup and once for the output. Scored are the weights that its
integers stand for, with activations in float32, which is in its favour.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

QPS = (-32, -28, -24, -20, -16)
_CHILD = """
import contextlib, sys
import numpy as np
from nncodec.nn import decode, encode
source, target, qp = sys.argv[1:]
with np.load(source) as file:
    tensors = {name: file[name] for name in file.files}
with contextlib.redirect_stdout(sys.stderr):
    stream = bytes(encode(tensors, args={"qp": int(qp), "use_dq": True}))
    decoded = decode(bytearray(stream))
np.savez(target, bytes=len(stream), **{"/" + name: np.asarray(value) for name, value in decoded.items()})
"""

Code = Callable[[Any], tuple[Mapping[str, Tensor | np.ndarray], int]]


def nncodec(qp: int, python: Path | None) -> tuple[Code | None, str]:
    """The codec at one quantisation parameter, or why it cannot be had."""
    if python is None:
        return None, "needs an environment of its own (numpy < 2): see the head of experiments/peer_files.py"

    def code(original: Any) -> tuple[dict[str, np.ndarray], int]:
        tensors = {**original.matrices, **original.source.vectors()}
        with tempfile.TemporaryDirectory() as directory:
            source, target = Path(directory, "in.npz"), Path(directory, "out.npz")
            np.savez(source, **{name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()})
            subprocess.run([python, "-c", _CHILD, source, target, str(qp)], check=True, timeout=1800, cwd=directory)
            with np.load(target) as file:
                decoded = {name: file["/" + name].reshape(value.shape) for name, value in tensors.items()}
                return decoded, int(file["bytes"])

    return code, ""


def onnx_int8() -> tuple[Code | None, str]:
    """Dynamic quantisation, or why it cannot be had."""
    absent = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        return None, f'pip install "phase8[export]" (not installed: {", ".join(absent)})'
    return _onnx_int8, ""


def _onnx_int8(original: Any) -> tuple[dict[str, np.ndarray], int]:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from phase8.export.onnx_file import write_onnx

    with tempfile.TemporaryDirectory() as directory:
        plain, small = Path(directory, "plain.onnx"), Path(directory, "small.onnx")
        write_onnx(original.source.network, plain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(plain, small, weight_type=QuantType.QInt8, per_channel=True)
        size = small.stat().st_size
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(small).graph.initializer}
    return {name: _found(name, w.numpy(), stored) for name, w in original.matrices.items()}, size


def _found(name: str, w_OI: np.ndarray, stored: Mapping[str, np.ndarray]) -> np.ndarray:
    """What stands for a matrix: of all stored ones of its shape, as it is or transposed, the nearest."""
    best: tuple[float, np.ndarray] | None = None
    for key, values in stored.items():
        if values.ndim != 2 or sorted(values.shape) != sorted(w_OI.shape):
            continue
        value = values.astype(np.float32)
        if key.endswith("_quantized"):
            stem = key.removesuffix("_quantized")
            scale, zero = (stored[f"{stem}_{part}"].astype(np.float32) for part in ("scale", "zero_point"))
            if scale.size == values.shape[0] and scale.size > 1:  # else one a column, or one in all
                scale, zero = scale.reshape(-1, 1), zero.reshape(-1, 1)
            value = (value - zero) * scale
        for turned in (value, value.T):
            if turned.shape == w_OI.shape:
                error = float(np.square(turned - w_OI).sum())
                # A plain copy beside the quantised one (a tied embedding's lookup) is not what the output uses.
                error = error if key.endswith("_quantized") else error + float(np.square(w_OI).sum())
                if best is None or error < best[0]:
                    best = error, np.ascontiguousarray(turned)
    if best is None:
        raise ValueError(f"{name}: the quantised file holds no matrix of {w_OI.shape}")
    return best[1]
