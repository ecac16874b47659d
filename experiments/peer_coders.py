"""Other quantisers of matrices, for `experiments.peers`: round-to-nearest, hqq, optimum-quanto, torchao, GGUF.

Each coder takes one matrix and returns what its decoder makes of it, and how many bits it stores. Bits are counted in
the peers' favour: codes at their nominal width without gaps (hqq packs 3 bits into 3.2, torchao holds every code in 8),
scales and zeros at 16 bits also where the library keeps 32, file headers not at all. GGUF's blocks are counted as they
are stored. Groups of weights run along the rows; a matrix whose rows are no multiple of 256 long is regrouped into rows
of 256 first, so that every coder can take it.

The libraries are optional (`pip install "phase8[peers]"`) and imported when a coder is asked for. GGUF's k-quants and
IQ types are not in the `gguf` package; they come from llama.cpp's `ggml-base` library through ctypes. The package
`llama-cpp-python` brings it along; where a full build is too much, its source alone yields it in a minute:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
    cmake --build build --target ggml-base                  # then --ggml-library build/bin/libggml-base.so
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GROUPS = (32, 64, 128)
ROW = 256
GGUF_TYPES = ("TQ1_0", "Q4_0")
"""Types that the `gguf` package quantises by itself and whose rate is near 1 to 4 bits."""
GGML_TYPES = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K",
)  # fmt: skip
"""Types that need the ggml library."""

Code = Callable[[Tensor], tuple[Tensor, float]]
"""float32 [O, I] -> what is decoded, float32 [O, I], and the bits that are stored."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One coder with one setting."""

    coder: str
    setting: str
    code: Code | None
    """None: not installed."""
    note: str = ""
    """How to install it, where it is not."""


def rows_of(matrix: Tensor) -> Tensor:
    """The matrix, or its weights in rows of 256 where its own rows are no multiple of that.

    Raises:
        ValueError: the number of weights is no multiple of 256.
    """
    if matrix.shape[1] % ROW == 0:
        return matrix.contiguous()
    if matrix.numel() % ROW:
        raise ValueError(f"a matrix of {tuple(matrix.shape)} cannot be cut into rows of {ROW} weights")
    return matrix.contiguous().view(-1, ROW)


def round_to_nearest(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, float]:
    """Asymmetric round-to-nearest: 2^bits levels from the least to the largest weight of each group.

    Scale and zero (the least weight) are float16. Example: 2 bits, weights 0, 1, 2, 6: scale 2, zero 0; 1 lies between
    the levels 0 and 2 and goes to the even code, 0.
    """
    grouped = matrix.reshape(-1, group)
    least, most = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
    zero = least.half().float()
    scale = ((most - least) / ((1 << bits) - 1)).half().float()
    codes = torch.round((grouped - zero) / torch.where(scale == 0, 1.0, scale)).clamp_(0, (1 << bits) - 1)
    return (codes * scale + zero).view(matrix.shape), matrix.numel() * (bits + 32 / group)


def _rtn() -> Iterator[Peer]:
    for bits in (1, 2, 3, 4):
        for group in GROUPS:
            yield Peer(
                coder="round-to-nearest",
                setting=f"{bits} bit, group {group}",
                code=lambda w, b=bits, g=group: round_to_nearest(w, b, g),
            )


def _hqq() -> Iterator[Peer]:
    from hqq.core.quantize import Quantizer

    def code(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, float]:
        packed, meta = Quantizer.quantize(
            matrix, nbits=bits, group_size=group, axis=1, device="cpu", compute_dtype=torch.float32
        )
        decoded = Quantizer.dequantize(packed, meta)
        return decoded, matrix.numel() * bits + 16 * (meta["scale"].numel() + meta["zero"].numel())

    for bits in (1, 2, 3, 4):
        for group in GROUPS:
            yield Peer(coder="hqq", setting=f"{bits} bit, group {group}", code=lambda w, b=bits, g=group: code(w, b, g))


def _quanto() -> Iterator[Peer]:
    from optimum.quanto import MaxOptimizer, qint2, qint4, quantize_weight
    from optimum.quanto.tensor.optimizers import HqqOptimizer

    def code(matrix: Tensor, kind: object, group: int, optimiser: object) -> tuple[Tensor, float]:
        scale, shift = optimiser(matrix, kind, 0, group)
        coded = quantize_weight(matrix, kind, 0, scale, shift, group, optimized=False)
        return coded.dequantize(), matrix.numel() * kind.bits + 16 * (scale.numel() + shift.numel())

    for kind in (qint2, qint4):
        for group in GROUPS:
            for optimiser in (MaxOptimizer(), HqqOptimizer()):
                name = type(optimiser).__name__.removesuffix("Optimizer").lower()
                yield Peer(
                    coder="optimum-quanto",
                    setting=f"{kind.bits} bit, group {group}, {name}",
                    code=lambda w, k=kind, g=group, o=optimiser: code(w, k, g, o),
                )


def _torchao() -> Iterator[Peer]:
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, quantize_
    from torchao.quantization.granularity import PerGroup

    def code(matrix: Tensor, bits: int, group: int, mapping: MappingType) -> tuple[Tensor, float]:
        layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
        layer.weight = torch.nn.Parameter(matrix.clone())
        module = torch.nn.Sequential(layer)
        kind = getattr(torch, f"int{bits}")
        quantize_(module, IntxWeightOnlyConfig(weight_dtype=kind, granularity=PerGroup(group), mapping_type=mapping))
        coded = module[0].weight
        stored = 16 * coded.scale.numel()
        if mapping is MappingType.ASYMMETRIC:
            stored += bits * coded.zero_point.numel()
        return coded.dequantize().detach(), matrix.numel() * bits + stored

    for bits in (2, 3, 4):
        for group in GROUPS:
            for mapping in (MappingType.SYMMETRIC, MappingType.ASYMMETRIC):
                yield Peer(
                    coder="torchao",
                    setting=f"int{bits}, group {group}, {mapping.name.lower()}",
                    code=lambda w, b=bits, g=group, m=mapping: code(w, b, g, m),
                )


def _gguf() -> Iterator[Peer]:
    import gguf
    from gguf import quants

    def code(matrix: Tensor, kind: gguf.GGMLQuantizationType) -> tuple[Tensor, float]:
        stored = quants.quantize(matrix.numpy(), kind)
        return torch.from_numpy(quants.dequantize(stored, kind)), 8.0 * stored.nbytes

    for name in GGUF_TYPES:
        kind = gguf.GGMLQuantizationType[name]
        yield Peer(coder="GGUF", setting=name, code=lambda w, k=kind: code(w, k))


def find_ggml(given: Path | None) -> Path | None:
    """The ggml-base library: the given one, or that of an installed llama-cpp-python."""
    if given is not None:
        return given if given.is_file() else None
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    suffix = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(sys.platform, "libggml-base.so")
    path = Path(found.origin).parent / "lib" / suffix
    return path if path.is_file() else None


def _ggml(library: Path) -> Iterator[Peer]:
    import gguf
    from gguf import quants

    ggml = ctypes.CDLL(str(library))
    floats = ctypes.POINTER(ctypes.c_float)
    whole = ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, whole, whole, whole, floats]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool

    def once(weights: np.ndarray, kind: gguf.GGMLQuantizationType, flat: bool) -> np.ndarray:
        rows, columns = weights.shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = np.zeros((rows, columns // block * size), dtype=np.uint8)
        importance = np.ones(columns, dtype=np.float32).ctypes.data_as(floats) if flat else None

        def part(begin: int, end: int) -> None:
            source = weights[begin:end].ctypes.data_as(floats)
            ggml.ggml_quantize_chunk(
                kind.value, source, stored[begin:].ctypes.data, 0, end - begin, columns, importance
            )

        threads = torch.get_num_threads()
        edges = np.linspace(0, rows, threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
            list(pool.map(part, edges[:-1], edges[1:]))
        return stored

    def code(matrix: Tensor, kind: gguf.GGMLQuantizationType) -> tuple[Tensor, float]:
        weights = np.ascontiguousarray(matrix.numpy())
        ggml.ggml_quantize_init(kind.value)
        results = []
        for flat in (True,) if ggml.ggml_quantize_requires_imatrix(kind.value) else (True, False):
            stored = once(weights, kind, flat)
            decoded = torch.from_numpy(quants.dequantize(stored, kind))
            results.append((float((decoded - matrix).square().sum()), decoded, 8.0 * stored.nbytes))
        return min(results, key=lambda result: result[0])[1:]

    for name in GGML_TYPES:
        kind = gguf.GGMLQuantizationType[name]
        yield Peer(coder="GGUF", setting=name, code=lambda w, k=kind: code(w, k))


def version(package: str) -> str:
    """The installed version, or an empty text."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def peers(ggml_library: Path | None) -> list[Peer]:
    """Every coder that can be run here, and for each that cannot one entry that says how to get it."""
    extra = 'pip install "phase8[peers]"'
    found = list(_rtn())
    for coder, package, make in (
        ("hqq", "hqq", _hqq),
        ("optimum-quanto", "optimum.quanto", _quanto),
        ("torchao", "torchao", _torchao),
        ("GGUF", "gguf", _gguf),
    ):
        try:
            found += list(make())
        except ImportError as error:
            found.append(Peer(coder=coder, setting="", code=None, note=f"{extra} ({package}: {error})"))
    library = find_ggml(ggml_library)
    try:
        if library is None:
            raise OSError("no ggml-base library; see the head of experiments/peer_coders.py")
        found += list(_ggml(library))
    except (ImportError, OSError) as error:
        found.append(Peer(coder="GGUF", setting="k-quants", code=None, note=str(error)))
    return found
