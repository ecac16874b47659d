"""Llama's passes over short sequences on a processor, forward and backward, written out.

    x = E[tokens]                                                   the residual stream, float32
    each block:   a = norm(x) g      q, k, v = a Wqkv^T             p = softmax(turned q . turned k), y = p v
                  x = x + y Wo^T
                  a = norm(x) g'     z, u = a Wgu^T                 m = silu(z) u
                  x = x + m Wd^T
    h = norm(x) g''                  logits = h W^T                 norm(x) = x r,  r = (mean x^2 + eps)^(-1/2)

What transformers' modules and autograd compute, with fewer passes over memory: products that read the same are one
product, an activation is brought into the products' format once, attention takes all places of a short sequence at once
(torch's own kernel goes block by block in float32), directions of a head that are zero are left out
(`phase8.train.heads`), a block that is zero is passed by, and of the logits only a few places are held, so that their
probabilities stay in the cache of the processor. Products are in `dtype`, what is between them is computed in float32;
attention's scores and probabilities, the most numbers of all, are kept in `dtype`, as products read and write them.

    norm       dx += r da g - x r^3 mean(x da g)
    attention  dv = p^T dy      dp = dy v^T      ds = p (dp - sum(dp p))      dq = ds k      dk = ds^T q
    head       dh = s W         dW = s^T h                       s = dKL / dlogits (`phase8.train.answers`)

Shapes: B sequences of T tokens, P = B T places, C channels, H heads of D channels, G key-value heads of n = H / G
queries each, U feed-forward units, V vocabulary, K kept answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from phase8.train.answers import kept_divergence
from phase8.train.heads import TakingPart, channels_of, taking_part
from phase8.train.slicing import why_not

LONGEST = 512
"""Tokens of a sequence: attention holds H T^2 numbers of each."""
LOGITS_IN_CACHE = 1 << 19
"""Logits at a time, 2 MiB in float32."""


def why_not_written_out(network: nn.Module, length: int, device: torch.device) -> str | None:
    """The reason why `Llama` cannot stand for this network, None where it can."""
    config = network.config
    if device.type != "cpu":
        return "a GPU has kernels of its own"
    if type(network).__name__ not in ("LlamaForCausalLM", "MistralForCausalLM"):
        return f"it is {type(network).__name__}"
    if length > LONGEST:
        return f"sequences of {length} tokens are long"
    if config.hidden_act != "silu" or network.lm_head.bias is not None:
        return "its activation or its head is not Llama's"
    if getattr(config, "sliding_window", None) is not None and config.sliding_window < length:
        return "its attention has a window"
    return why_not(network)


class Llama:
    """One network's passes; holds no state of a pass, so that threads share it.

    Args:
        network: of which `why_not_written_out` says None; tensors that a pass is not given are taken from it.
        dtype: of the products.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        config = network.config
        self._own, self._dtype = dict(network.named_parameters()), dtype
        self._rotary, self._eps, self._layers = network.model.rotary_emb, config.rms_norm_eps, config.num_hidden_layers
        self._H, self._G = config.num_attention_heads, config.num_key_value_heads
        self._D = channels_of(config)
        self._head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"

    @torch.no_grad()
    def logits(self, tokens_BT: Tensor) -> Iterator[Tensor]:
        """Of all places in order, float32 [few, V], with the network's own tensors."""
        run = _Pass(self, {}, tokens_BT, forward_alone=True)
        h_PC, head_VC = run.forward(), run.matrix(self._head)
        for few_PC in h_PC.split(_few(head_VC)):
            yield (few_PC @ head_VC.mT).float()

    @torch.no_grad()
    def divergence(
        self,
        weights: Mapping[str, Tensor],
        tokens_BT: Tensor,
        theirs_BTK: Tensor,
        answers_BTK: Tensor,
        *,
        share: float,
        certainty: float = 0.0,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """w KL(original || network) of each sequence, float32 [B], and the gradient of `share` times their sum.

        Args:
            weights: tensors put in for the network's, by name; in whose order the gradients come, in float32.
            theirs_BTK: the original's log-probabilities of its likeliest tokens, and `answers_BTK` which they are.
            certainty: of w, see `phase8.train.answers`.
        """
        run = _Pass(self, weights, tokens_BT)
        h_PC, head_VC = run.forward(), run.matrix(self._head)
        theirs_PK, answers_PK = theirs_BTK.flatten(0, 1), answers_BTK.flatten(0, 1)
        slope_PV = h_PC.new_empty(len(h_PC), len(head_VC))
        of_place_P, few = theirs_PK.new_empty(len(h_PC)), _few(head_VC)
        for first in range(0, len(h_PC), few):
            some = slice(first, first + few)
            q_PV = torch.softmax(h_PC[some] @ head_VC.mT, -1, dtype=torch.float32)
            of_place_P[some], slope = kept_divergence(q_PV, theirs_PK[some], answers_PK[some], certainty)
            slope_PV[some] = slope.mul_(share / tokens_BT.shape[1])
        run.add(self._head, slope_PV, h_PC)
        run.backward(slope_PV @ head_VC)
        return of_place_P.view(tokens_BT.shape).mean(-1), run.gradients()


def _few(head_VC: Tensor) -> int:
    """Places whose logits are held at a time."""
    return max(1, LOGITS_IN_CACHE // len(head_VC))


class _Pass:
    """One forward pass, and the backward one over what it left."""

    def __init__(
        self, llama: Llama, weights: Mapping[str, Tensor], tokens_BT: Tensor, *, forward_alone: bool = False
    ) -> None:
        self._llama, self._weights, self._tokens_BT = llama, weights, tokens_BT
        self._forward_alone = forward_alone
        self._found: dict[str, Tensor] = {}
        self._kept: list[tuple[Any, ...]] = []
        length = tokens_BT.shape[1]
        cos, sin = llama._rotary(torch.empty(1, dtype=torch.float32), torch.arange(length)[None])
        scales = torch.tensor([llama._D**-0.5] * llama._H + [1.0] * llama._G)[:, None]  # queries, keys
        self._cos_THD, self._sin_THD = (table[0, :, None, : llama._D // 2] * scales for table in (cos, sin))
        later_TT = torch.full((length, length), -torch.inf, dtype=llama._dtype).triu_(1)
        self._later_TT = later_TT.repeat(llama._H // llama._G, 1)

    def _keep(self, *what: Any) -> None:
        if not self._forward_alone:
            self._kept.append(what)

    def vector(self, name: str) -> Tensor:
        """A tensor as it is."""
        return self._weights[name] if name in self._weights else self._llama._own[name]

    def matrix(self, *names: str, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """Matrices one above the other, or some rows of them, in the products' format."""
        matrices = [self.vector(name) for name in names]
        if rows:
            matrices = [matrix[some] for matrix, some in zip(matrices, rows, strict=True)]
        if len(matrices) == 1:
            return matrices[0].to(self._llama._dtype)
        rows = [len(matrix) for matrix in matrices]
        whole = matrices[0].new_empty(sum(rows), matrices[0].shape[1], dtype=self._llama._dtype)
        for part, matrix in zip(whole.split(rows), matrices, strict=True):
            part.copy_(matrix)
        return whole

    def add(
        self, names: str | list[str], slope_PO: Tensor, input_PI: Tensor, at: tuple[Tensor, ...] = (), along: int = 0
    ) -> None:
        """To the gradients of matrices that were one product; `at`: their rows (`along` 1: columns) that were in it."""
        names = [names] if isinstance(names, str) else names
        if not any(name in self._weights for name in names):
            return
        counts = [len(some) for some in at] or [len(self.vector(name)) for name in names]
        for number, part in enumerate((slope_PO.mT @ input_PI).split(counts if along == 0 else len(slope_PO.mT))):
            name, part = names[number], part.float()
            if at:
                part = torch.zeros_like(self.vector(name)).index_copy_(along, at[number], part)
            self._found[name] = part + self._found[name] if name in self._found else part

    def gradients(self) -> tuple[Tensor, ...]:
        """Of every tensor that was given."""
        return tuple(
            self._found[name] if name in self._found else torch.zeros_like(w) for name, w in self._weights.items()
        )

    # Forward ------------------------------------------------------------------------------------------------------

    def forward(self) -> Tensor:
        x_PC = self.vector("model.embed_tokens.weight")[self._tokens_BT.flatten()].float()
        for number in range(self._llama._layers):
            prefix = f"model.layers.{number}."
            x_PC = self._attend(prefix, x_PC)
            x_PC = self._feed_forward(prefix, x_PC)
        return self._norm("model.norm.weight", x_PC)

    def _norm(self, name: str, x_PC: Tensor) -> Tensor:
        """norm(x) g, in the products' format."""
        mean_P1 = torch.linalg.vector_norm(x_PC, dim=-1, keepdim=True).square_().div_(x_PC.shape[1])
        r_P1 = mean_P1.add_(self._llama._eps).rsqrt_()
        self._keep(x_PC, r_P1)
        return (x_PC * r_P1).mul_(self.vector(name)).to(self._llama._dtype)

    def _pass_by(self, *names: str) -> bool:
        """Whether a block adds nothing, as all of these are zero; what it adds is a product of them, so that all its
        slopes are zero, too. At 280x two of the embedded model's four feed-forward blocks come to this."""
        passed_by = not any(bool(self.vector(name).any()) for name in names)
        if passed_by:
            self._keep(None)
        return passed_by

    def _attend(self, prefix: str, x_PC: Tensor) -> Tensor:
        at, (B, T) = prefix + "self_attn.", self._tokens_BT.shape
        if self._pass_by(f"{at}o_proj.weight", f"{at}v_proj.weight"):
            return x_PC
        H, G, D = self._llama._H, self._llama._G, self._llama._D
        a_PC = self._norm(prefix + "input_layernorm.weight", x_PC)
        names = [f"{at}{name}_proj.weight" for name in "qkv"]
        part = taking_part(*(self.vector(name) for name in names), self.vector(f"{at}o_proj.weight"), G, D)
        w_qkv = self.matrix(*names, rows=(part.queries, part.keys, part.values) if part else ())
        turn = self._turn(part)
        turning = (H + G) * 2 * turn[0].shape[2]
        qk, v = (a_PC @ w_qkv.mT).split([turning, len(w_qkv) - turning], 1)
        q, k = self._turned(qk.view(B, T, H + G, -1), *turn).split([H, G], 2)
        q, k, v = (self._heads_first(x) for x in (q, k, v.view(B, T, G, -1)))
        p = torch.softmax(torch.baddbmm(self._later_TT, q, k.mT), -1)
        y_P = self._heads_last(p @ v).reshape(B * T, -1)
        w_o = self.vector(f"{at}o_proj.weight")
        w_o = (w_o[:, part.outputs] if part else w_o).to(self._llama._dtype)
        self._keep(a_PC, w_qkv, q, k, v, p, y_P, w_o, part, turn)
        return x_PC + y_P @ w_o.mT

    def _turn(self, part: TakingPart | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the pairs that take part, of every head of queries and keys, [T, H + G, M]."""
        if part is None:
            return self._cos_THD, self._sin_THD
        H, G = self._llama._H, self._llama._G
        pairs = torch.cat([part.pairs_GM.repeat_interleave(H // G, 0), part.pairs_GM])
        heads = torch.arange(H + G)[:, None]
        return self._cos_THD[:, heads, pairs], self._sin_THD[:, heads, pairs]

    def _turned(self, x_BTHD: Tensor, cos_THD: Tensor, sin_THD: Tensor) -> Tensor:
        """Rotary positions: every pair of channels (d, d + D / 2) of queries and keys turned by its place's angle,
        queries scaled; float32."""
        x_BTHD, found = x_BTHD.float(), x_BTHD.new_empty(x_BTHD.shape, dtype=torch.float32)
        (one, two), (into_one, into_two) = x_BTHD.chunk(2, -1), found.chunk(2, -1)
        torch.mul(one, cos_THD, out=into_one)
        torch.mul(two, cos_THD, out=into_two)
        into_one.addcmul_(two, sin_THD, value=-1.0)
        into_two.addcmul_(one, sin_THD)
        return found

    def _heads_first(self, x_BTHD: Tensor) -> Tensor:
        """[B, T, H, D] -> [B G, n T, D] in the products' format: the queries of one key-value head together."""
        B, T, H, D = x_BTHD.shape
        found = x_BTHD.new_empty((B, H, T, D), dtype=self._llama._dtype).copy_(x_BTHD.transpose(1, 2))
        return found.view(B * self._llama._G, -1, D)

    def _heads_last(self, x: Tensor) -> Tensor:
        """The way back: [B G, n T, D] -> [B, T, H, D]."""
        B, T = self._tokens_BT.shape
        return x.view(B, -1, T, x.shape[-1]).transpose(1, 2)

    def _feed_forward(self, prefix: str, x_PC: Tensor) -> Tensor:
        at = prefix + "mlp."
        if self._pass_by(f"{at}down_proj.weight", f"{at}up_proj.weight"):
            return x_PC
        a_PC = self._norm(prefix + "post_attention_layernorm.weight", x_PC)
        w_gu, w_d = self.matrix(f"{at}gate_proj.weight", f"{at}up_proj.weight"), self.matrix(f"{at}down_proj.weight")
        z, u = (a_PC @ w_gu.mT).chunk(2, 1)
        s = silu(z)
        m = s * u
        self._keep(a_PC, w_gu, z, u, s, m, w_d)
        return x_PC + m @ w_d.mT

    # Backward -----------------------------------------------------------------------------------------------------

    def backward(self, slope_PC: Tensor) -> None:
        """From the slope of what `forward` gave."""
        dx_PC = self._back_norm("model.norm.weight", slope_PC, torch.zeros(slope_PC.shape))
        for number in reversed(range(self._llama._layers)):
            prefix = f"model.layers.{number}."
            dx_PC = self._back_feed_forward(prefix, dx_PC)
            dx_PC = self._back_attend(prefix, dx_PC)
        name = "model.embed_tokens.weight"
        if name in self._weights:
            found = self._found.setdefault(name, torch.zeros_like(self._weights[name]))
            found.index_add_(0, self._tokens_BT.flatten(), dx_PC)

    def _back_norm(self, name: str, da_PC: Tensor, dx_PC: Tensor) -> Tensor:
        x_PC, r_P1 = self._kept.pop()
        if name in self._weights:
            self._found[name] = (da_PC * (x_PC * r_P1)).sum(0)
        dn_PC = da_PC * self.vector(name)
        along_P1 = (dn_PC * x_PC).sum(-1, keepdim=True).div_(-x_PC.shape[1]).mul_(r_P1.pow(3))
        return dx_PC.addcmul_(dn_PC, r_P1).addcmul_(x_PC, along_P1)

    def _back_feed_forward(self, prefix: str, dx_PC: Tensor) -> Tensor:
        at = prefix + "mlp."
        if (kept := self._kept.pop())[0] is None:
            return dx_PC
        a_PC, w_gu, z, u, s, m, w_d = kept
        d_PC = dx_PC.to(self._llama._dtype)
        self.add(f"{at}down_proj.weight", d_PC, m)
        dm = d_PC @ w_d
        d_gu = dm.new_empty(len(dm), 2 * dm.shape[1])
        dz, du = d_gu.chunk(2, 1)
        torch.mul(dm, s, out=du)
        torch.ops.aten.silu_backward(dm.mul_(u), z, grad_input=dz)
        self.add([f"{at}gate_proj.weight", f"{at}up_proj.weight"], d_gu, a_PC)
        return self._back_norm(prefix + "post_attention_layernorm.weight", d_gu @ w_gu, dx_PC)

    def _back_attend(self, prefix: str, dx_PC: Tensor) -> Tensor:
        at, (B, T) = prefix + "self_attn.", self._tokens_BT.shape
        if (kept := self._kept.pop())[0] is None:
            return dx_PC
        a_PC, w_qkv, q, k, v, p, y_P, w_o, part, (cos_THD, sin_THD) = kept
        d_PC = dx_PC.to(self._llama._dtype)
        self.add(f"{at}o_proj.weight", d_PC, y_P, at=(part.outputs,) if part else (), along=1)
        dy = self._heads_first((d_PC @ w_o).view(B, T, self._llama._H, -1))
        ds = torch.ops.aten._softmax_backward_data(dy @ v.mT, p, -1, p.dtype)
        d_qk = torch.cat([self._heads_last(ds @ k), self._heads_last(ds.mT @ q)], 2)
        d_qk = self._turned(d_qk, cos_THD, -sin_THD).to(v.dtype)
        d_qkv = torch.cat([d.flatten(0, 1).flatten(1) for d in (d_qk, self._heads_last(p.mT @ dy))], 1)
        rows = (part.queries, part.keys, part.values) if part else ()
        self.add([f"{at}{name}_proj.weight" for name in "qkv"], d_qkv, a_PC, at=rows)
        return self._back_norm(prefix + "input_layernorm.weight", d_qkv @ w_qkv, dx_PC)
