"""A narrower network that starts where the original stands: its residual stream rotated, then cut.

    residual stream    x in R^D. An orthogonal Q [D, D] turns the basis: x' = Q^T x. RMSNorm without gains does not see
                       a rotation, so its gains are first folded into the matrices that read it (Ashkboos et al. 2024,
                       SliceGPT, section 3.1). Q holds the principal directions of the normalised stream over all places
                       where it is read, strongest first; the first d are kept.
    feed-forward units the k units with the largest mean square of activation times squared norm of the output column
                       are kept; the output matrix is then refitted by least squares to what all units gave,
                       W' = W H[:, K] (H[K, K])^-1 with H the units' second moments.

Matrices of the narrow network are the upper left parts of matrices of the original's shapes whose other entries are 0:
zero channels stay zero through attention and feed-forward blocks, and the norm divides by D in both. So an artifact
needs no other architecture, and stores only the parts (`phase8.codecs.lattice`).

With tied embeddings the last norm's gain cannot be folded into the head alone; its diagonal in the new basis is kept,
and training mends the rest.

Shapes: D width, d kept width, K kept feed-forward units, O rows and I columns of a matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phase8.errors import ModelError

READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
WRITES = ("o_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A narrow network and how its tensors lie in the original's."""

    network: nn.Module
    """Of the original's class, with fewer channels and units; float32, no gradients."""
    norm_scale: float
    """The gains of the narrow norms are this many times those of the wide ones: sqrt(D / d)."""

    def widened(self, vectors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Norm gains as the original's architecture needs them: unscaled, and 0 where nothing was kept."""
        wide = {}
        for name, vector in vectors.items():
            wide[name] = torch.zeros(shapes[name])
            wide[name][: vector.numel()] = vector.detach() / self.norm_scale
        return wide


def why_not(network: nn.Module) -> str | None:
    """The reason why this network cannot be narrowed, None where it can: Llama's layout, without biases, is needed."""
    config = network.config
    decoder = getattr(network, "model", None)
    layers = getattr(decoder, "layers", None)
    if layers is None or not hasattr(decoder, "norm") or not hasattr(decoder, "embed_tokens"):
        return "its layers are not laid out as Llama's"
    needed = {*(f"self_attn.{n}.weight" for n in ("q_proj", "k_proj", "v_proj", "o_proj"))}
    needed |= {*(f"mlp.{n}.weight" for n in ("gate_proj", "up_proj", "down_proj"))}
    needed |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    for layer in layers:
        has = {name for name, _ in layer.named_parameters()}
        if has != needed:
            return f"its layers have other tensors than Llama's: {', '.join(sorted(has ^ needed)[:3])}"
    if type(decoder.norm).__name__ not in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm"):
        return f"its norm is {type(decoder.norm).__name__}"
    if getattr(config, "rope_parameters", None) is None or not hasattr(config, "intermediate_size"):
        return "its configuration is not Llama's"
    return None


@torch.no_grad()
def narrow(network: nn.Module, batches: Iterable[Tensor], *, width: int, units: int) -> Narrow:
    """Cuts the residual stream to `width` channels and each feed-forward block to `units` units.

    Args:
        network: a causal LM with Llama's layout (`why_not`); not changed.
        batches: calibration text, int64 [B, T] each, whose activations choose the directions and units.

    Raises:
        ModelError: another layout; a width or number of units beyond the network's.
    """
    reason, config = why_not(network), network.config
    if reason is not None:
        raise ModelError(f"the network cannot be narrowed: {reason}", where=type(network).__name__)
    if not 1 <= width <= config.hidden_size or not 1 <= units <= config.intermediate_size:
        raise ModelError(
            f"width {width} and {units} units are not within {config.hidden_size} and {config.intermediate_size}",
            where=type(network).__name__,
        )
    wide = copy.deepcopy(network).float().eval().requires_grad_(False)
    folded_gain = _fold_norms(wide)
    stream_DD, moments = _moments(wide, batches)
    if width < config.hidden_size:
        _, q_DD = torch.linalg.eigh(stream_DD)
        q_Dd = q_DD.flip(1)[:, :width].float()
    else:
        q_Dd = torch.eye(width)
    cut = copy.deepcopy(config)
    cut.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cut.hidden_size, cut.intermediate_size = width, units
    cut.rms_norm_eps = config.rms_norm_eps * config.hidden_size / width
    result = type(network)(cut).float().eval().requires_grad_(False)
    scale = (config.hidden_size / width) ** 0.5
    target = dict(result.named_parameters())
    for name, value in _rotated(wide, q_Dd, moments, units).items():
        if name in target:
            target[name].copy_(value)
    for name, parameter in target.items():
        if name.endswith("norm.weight"):
            parameter.fill_(scale)
    if folded_gain is not None:
        target["model.norm.weight"].copy_(scale * (q_Dd * (folded_gain[:, None] * q_Dd)).sum(0))
    return Narrow(network=result, norm_scale=scale)


def _fold_norms(wide: nn.Module) -> Tensor | None:
    """Moves the norms' gains into the matrices that read them; returns the last one where the head is tied."""
    for layer in wide.model.layers:
        for norm, readers in (
            (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
            (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1.0)
    head, last = wide.get_output_embeddings(), wide.model.norm
    if head.weight is wide.get_input_embeddings().weight:
        return last.weight.clone()
    head.weight.mul_(last.weight)
    last.weight.fill_(1.0)
    return None


def _moments(wide: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Second moments of the normalised stream over all its readers, float64 [D, D], and of each block's units."""
    width = wide.config.hidden_size
    stream = torch.zeros(width, width, dtype=torch.float64)
    units = [
        torch.zeros(layer.mlp.down_proj.in_features, layer.mlp.down_proj.in_features, dtype=torch.float64)
        for layer in wide.model.layers
    ]
    hooks, tokens = [], 0

    def read(module: nn.Module, args: tuple[Tensor, ...], share: float) -> None:
        x = args[0].reshape(-1, width).double()
        moment = x.T @ x
        stream.add_(moment, alpha=share / float(moment.trace()))

    def unit(into: Tensor):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, into.shape[0]).double()
            into.add_(x.T @ x)

        return hook

    for layer, into in zip(wide.model.layers, units, strict=True):
        hooks += [
            layer.self_attn.q_proj.register_forward_pre_hook(lambda m, a: read(m, a, 1.0)),
            layer.mlp.gate_proj.register_forward_pre_hook(lambda m, a: read(m, a, 1.0)),
            layer.mlp.down_proj.register_forward_pre_hook(unit(into)),
        ]
    hooks.append(wide.get_output_embeddings().register_forward_pre_hook(lambda m, a: read(m, a, 2.0)))
    try:
        for batch in batches:
            wide(input_ids=batch, use_cache=False)
            tokens += batch.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return stream, [moment / max(1, tokens) for moment in units]


def _rotated(wide: nn.Module, q_Dd: Tensor, moments: list[Tensor], units: int) -> dict[str, Tensor]:
    """Every matrix of the narrow network, by name."""
    found = {"model.embed_tokens.weight": wide.model.embed_tokens.weight @ q_Dd}
    found["lm_head.weight"] = wide.get_output_embeddings().weight @ q_Dd
    for number, (layer, h_KK) in enumerate(zip(wide.model.layers, moments, strict=True)):
        prefix = f"model.layers.{number}."
        for name, module in layer.named_modules():
            kind = name.rpartition(".")[2]
            if kind in READS:
                found[f"{prefix}{name}.weight"] = module.weight @ q_Dd
            elif kind in WRITES:
                found[f"{prefix}{name}.weight"] = q_Dd.T @ module.weight
        down = found[f"{prefix}mlp.down_proj.weight"]
        if units < down.shape[1]:
            keep = (h_KK.diagonal() * down.double().square().sum(0)).argsort(descending=True)[:units].sort().values
            kept = h_KK[keep][:, keep]
            kept = kept + 1e-5 * kept.diagonal().mean() * torch.eye(units, dtype=torch.float64)
            refitted = torch.linalg.solve(kept, h_KK[keep] @ down.double().T).T
            found[f"{prefix}mlp.down_proj.weight"] = refitted.float()
            for name in ("gate_proj", "up_proj"):
                found[f"{prefix}mlp.{name}.weight"] = found[f"{prefix}mlp.{name}.weight"][keep]
    return found
