"""A narrower network that starts where the original stands: its stream rotated and cut, units and heads left out.

    residual stream    x in R^D. An orthogonal Q [D, D] turns the basis: x' = Q^T x. RMSNorm without gains does not see
                       a rotation, so its gains are first folded into the matrices that read it (Ashkboos et al. 2024,
                       SliceGPT, section 3.1). Q holds the principal directions of the normalised stream over all places
                       where it is read, strongest first; the first d are kept.
    feed-forward units the k units with the largest mean square of activation times squared norm of the output column
                       are kept; the output matrix is then refitted by least squares to what all units gave,
                       W' = W H[:, K] (H[K, K])^-1 with H the units' second moments.
    attention heads    likewise: a key-value head with its queries is kept or not, by the mean square of what its
                       queries give times the squared norm of the output matrix's columns for them.
    within each head   fewer channels, the others' rows and columns zero: `phase8.train.heads`.

Matrices of the narrow network are the upper left parts of matrices of the original's shapes whose other entries are 0:
zero channels stay zero through attention and feed-forward blocks, heads without values add nothing, and the norm
divides by D in both. So an artifact needs no other architecture, and stores only the parts (`phase8.codecs.lattice`).

With tied embeddings the last norm's gain cannot be folded into the head alone; its diagonal in the new basis is kept,
and training mends the rest.

Shapes: D width, d kept width, K kept feed-forward units, O rows and I columns of a matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phase8.errors import ModelError
from phase8.train.heads import channels_of, keep_directions, pair_strengths

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
def narrow(
    network: nn.Module,
    batches: Sequence[Tensor],
    *,
    width: int,
    units: int,
    heads: int | None = None,
    head_size: int | None = None,
) -> Narrow:
    """Cuts the residual stream to `width` channels, and each block to `units` units and `heads` key-value heads of
    `head_size` channels.

    Args:
        network: a causal LM with Llama's layout (`why_not`); not changed.
        batches: calibration text, int64 [B, T] each, whose activations choose the directions, units and heads.
        heads: None keeps all.
        head_size: None keeps all; an even number otherwise.

    Raises:
        ModelError: another layout; a width or a number of units or heads beyond the network's.
    """
    reason, config = why_not(network), network.config
    if reason is not None:
        raise ModelError(f"the network cannot be narrowed: {reason}", where=type(network).__name__)
    all_heads = config.num_key_value_heads
    heads = all_heads if heads is None else heads
    size = channels_of(config)
    head_size = size if head_size is None else head_size
    for what, kept, has in (
        ("width", width, config.hidden_size),
        ("units", units, config.intermediate_size),
        ("key-value heads", heads, all_heads),
        ("channels of a head", head_size, size),
    ):
        if not 1 <= kept <= has:
            raise ModelError(f"{what} to keep: {kept}, of {has}", where=type(network).__name__)
    wide = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    folded_gain = _fold_norms(wide)
    stream_DD, of_units, of_heads = _moments(wide, batches)
    of_pairs = pair_strengths(wide, batches[0]) if head_size < size else None
    if width < config.hidden_size:
        _, q_DD = torch.linalg.eigh(stream_DD)
        q_Dd = q_DD.flip(1)[:, :width].float()
    else:
        q_Dd = torch.eye(width)
    cut = copy.deepcopy(config)
    cut.head_dim = size
    cut.hidden_size, cut.intermediate_size = width, units
    cut.num_attention_heads = heads * (config.num_attention_heads // all_heads)
    cut.num_key_value_heads = heads
    cut.rms_norm_eps = config.rms_norm_eps * config.hidden_size / width
    result = type(network)(cut).float().eval().requires_grad_(False)
    scale = (config.hidden_size / width) ** 0.5
    target = dict(result.named_parameters())
    matrices = _rotated(wide, q_Dd)
    for number, (units_KK, heads_KK) in enumerate(zip(of_units, of_heads, strict=True)):
        prefix = f"model.layers.{number}."
        _keep_units(matrices, f"{prefix}mlp.", units_KK, units)
        best = _keep_heads(matrices, f"{prefix}self_attn.", heads_KK, heads, size)
        if of_pairs is not None:
            keep_directions(matrices, f"{prefix}self_attn.", of_pairs[number][best], head_size)
    for name, value in matrices.items():
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


def _moments(wide: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Second moments, float64: of the normalised stream over all its readers [D, D], of what each feed-forward block's
    and of what each attention's output matrix reads."""
    width = wide.config.hidden_size
    stream = torch.zeros(width, width, dtype=torch.float64)
    outputs = [(layer.mlp.down_proj, layer.self_attn.o_proj) for layer in wide.model.layers]
    units, heads = (
        [torch.zeros(pair[i].in_features, pair[i].in_features, dtype=torch.float64) for pair in outputs] for i in (0, 1)
    )
    hooks, tokens = [], 0

    def read(module: nn.Module, args: tuple[Tensor, ...], share: float) -> None:
        x = args[0].reshape(-1, width).double()
        moment = x.T @ x
        stream.add_(moment, alpha=share / float(moment.trace()))

    def written(into: Tensor):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, into.shape[0]).double()
            into.add_(x.T @ x)

        return hook

    for layer, of_units, of_heads in zip(wide.model.layers, units, heads, strict=True):
        hooks += [
            layer.self_attn.q_proj.register_forward_pre_hook(lambda m, a: read(m, a, 1.0)),
            layer.mlp.gate_proj.register_forward_pre_hook(lambda m, a: read(m, a, 1.0)),
            layer.mlp.down_proj.register_forward_pre_hook(written(of_units)),
            layer.self_attn.o_proj.register_forward_pre_hook(written(of_heads)),
        ]
    hooks.append(wide.get_output_embeddings().register_forward_pre_hook(lambda m, a: read(m, a, 2.0)))
    try:
        for batch in batches:
            wide(input_ids=batch, use_cache=False)
            tokens += batch.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return stream, *([moment / max(1, tokens) for moment in moments] for moments in (units, heads))


def _rotated(wide: nn.Module, q_Dd: Tensor) -> dict[str, Tensor]:
    """Every matrix in the new basis, by name."""
    found = {"model.embed_tokens.weight": wide.model.embed_tokens.weight @ q_Dd}
    found["lm_head.weight"] = wide.get_output_embeddings().weight @ q_Dd
    for name, module in wide.named_modules():
        kind = name.rpartition(".")[2]
        if kind in READS:
            found[f"{name}.weight"] = module.weight @ q_Dd
        elif kind in WRITES:
            found[f"{name}.weight"] = q_Dd.T @ module.weight
    return found


def _keep_units(matrices: dict[str, Tensor], block: str, h_KK: Tensor, units: int) -> None:
    down = matrices[f"{block}down_proj.weight"]
    if units == down.shape[1]:
        return
    keep = (h_KK.diagonal() * down.double().square().sum(0)).argsort(descending=True)[:units].sort().values
    matrices[f"{block}down_proj.weight"] = _refitted(down, h_KK, keep)
    for name in ("gate_proj", "up_proj"):
        matrices[f"{block}{name}.weight"] = matrices[f"{block}{name}.weight"][keep]


def _keep_heads(matrices: dict[str, Tensor], block: str, h_KK: Tensor, heads: int, size: int) -> Tensor:
    """`heads`: of keys and values; `size`: rows of one head. Returns which are kept."""
    output, keys = matrices[f"{block}o_proj.weight"], matrices[f"{block}k_proj.weight"]
    all_heads = len(keys) // size
    if heads == all_heads:
        return torch.arange(heads)
    of_columns = h_KK.diagonal() * output.double().square().sum(0)
    best = of_columns.view(all_heads, -1).sum(1).argsort(descending=True)[:heads].sort().values
    queries = torch.arange(output.shape[1]).view(all_heads, -1)[best].reshape(-1)
    rows = torch.arange(len(keys)).view(all_heads, -1)[best].reshape(-1)
    matrices[f"{block}o_proj.weight"] = _refitted(output, h_KK, queries)
    for name, keep in (("q_proj", queries), ("k_proj", rows), ("v_proj", rows)):
        matrices[f"{block}{name}.weight"] = matrices[f"{block}{name}.weight"][keep]
    return best


def _refitted(output: Tensor, h_KK: Tensor, keep: Tensor) -> Tensor:
    """The output matrix's kept columns, fitted to what all of them gave."""
    kept = h_KK[keep][:, keep]
    kept = kept + 1e-5 * kept.diagonal().mean() * torch.eye(len(keep), dtype=torch.float64)
    return torch.linalg.solve(kept, h_KK[keep] @ output.double().T).T.float()
