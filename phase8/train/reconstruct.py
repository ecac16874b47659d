"""Trains the continuous parameters of an encoded model so that it answers as the original does.

Each iteration rebuilds every weight matrix from the parameters of its group (`Trainable.weights`), runs the original
network with these matrices in place of its own (nothing is copied or wrapped), and lowers

    KL(original || rebuilt) per token  [+ hidden_weight * mean over layers of |h - h'|^2 / |h|^2]

with Adam. Parameters differ in scale by orders of magnitude (a codebook entry, a block's scale, a norm's gain), so each
tensor has its own step: `lr` times its codec's `relative_step` times its root mean square. Gradients pass through the
Grokfast filter first. With `weight_phase` the first part of the iterations lowers the relative squared error of the
weights instead.

What comes out is never worse than what went in: the divergence on held-out sequences, of the *exported and decoded*
groups, decides which of the two is returned. The same seed on the same machine gives the same bytes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from phase8.codecs import EncodedGroup, get_codec
from phase8.errors import CodecError, ModelError
from phase8.model.source import in_place, unique_parameters
from phase8.train.divergence import check_replacements, kl_per_token, mean_kl, network_logits
from phase8.train.grokfast import GrokfastFilter
from phase8.train.lightning import quiet, run_trainer
from phase8.train.precision import takes_bfloat16
from phase8.train.settings import GrokfastConfig, OptimizerConfig

_TEACHER_CACHE_BYTES = 512 * 2**20
"""The original's logits are kept between iterations while they take less than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionResult:
    """What training the continuous parameters brought."""

    groups: list[EncodedGroup]
    """In the order given: the trained ones where `kept`, else the very ones that were given."""
    losses: list[float]
    """The loss of every iteration: squared relative weight errors in the weight phase, then nats per token."""
    held_out_before: float
    """Mean KL per token on the held-out sequences, nats, of the groups as given."""
    held_out_after: float
    """The same of the trained groups, exported and decoded; NaN where training diverged."""
    kept: bool
    diverged: bool
    """A loss was not finite, and training stopped there; or a parameter left the range that its codec can store."""
    weights_s: float
    """Seconds spent rebuilding weights in the forward pass, out of `seconds`."""
    seconds: float


def reconstruct(
    model: nn.Module,
    groups: Sequence[EncodedGroup],
    *,
    calibration: Tensor,
    held_out: Tensor,
    config: OptimizerConfig,
    grokfast: GrokfastConfig,
    seed: int,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> ReconstructionResult:
    """Trains the continuous parameters of `groups` against the original `model`; see the module's docstring.

    Args:
        model: the original causal LM of transformers, with its own weights; it is not changed.
        groups: encoded groups whose tensors bear the names of the model's parameters.
        calibration: token ids, int64 [N, T], to train on.
        held_out: token ids, int64 [M, T], that decide whether the result is kept.
        on_step: called after each iteration with its number, from 1, and its loss.

    Raises:
        ModelError: the groups do not fit the model, or there are no tokens.
    """
    start = time.perf_counter()
    device = torch.device(device)
    if calibration.ndim != 2 or held_out.ndim != 2 or 0 in (*calibration.shape, *held_out.shape):
        raise ModelError(
            f"calibration {tuple(calibration.shape)} and held-out tokens {tuple(held_out.shape)} need to be two "
            "non-empty tables of token ids",
            where="reconstruction",
            fix="raise optimizer.calibration_sequences and optimizer.held_out_sequences",
        )
    groups = list(groups)
    network = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    before_weights = _decoded(network, groups)
    check_replacements(network, before_weights)
    held_out = held_out.to(device)
    before = mean_kl(network, before_weights, held_out)
    del before_weights

    with _deterministic(device), quiet():
        trainer = _Reconstruction(network, groups, calibration, config, grokfast, seed, on_step)
        if trainer.parameters_:
            weight_steps = round(config.weight_phase * grokfast.iterations)
            trainer.run("weights", weight_steps, device)
            trainer.run("logits", grokfast.iterations - weight_steps, device)
        trainer.cpu()
        network.to(device)
        try:
            trained = [trainable.export() for trainable in trainer.trainables]
        except CodecError:  # a parameter left the range that the codec can store
            trained, trainer.diverged = None, True

    after = math.nan if trained is None else mean_kl(network, _decoded(network, trained), held_out)
    kept = trained is not None and (after < before or (math.isnan(before) and not math.isnan(after)))
    return ReconstructionResult(
        groups=trained if kept else groups,
        losses=trainer.losses,
        held_out_before=before,
        held_out_after=after,
        kept=kept,
        diverged=trainer.diverged,
        weights_s=trainer.weights_s,
        seconds=time.perf_counter() - start,
    )


class _Reconstruction(lightning.LightningModule):
    """The original network, frozen, and the trainable groups that rebuild its weights."""

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[EncodedGroup],
        calibration: Tensor,
        config: OptimizerConfig,
        grokfast: GrokfastConfig,
        seed: int,
        on_step: Callable[[int, float], None] | None,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.grokfast = network, config, grokfast
        self.trainables = nn.ModuleList([get_codec(group.codec).trainable(group) for group in groups])
        self.parameters_ = [p for p in self.trainables.parameters() if p.requires_grad]
        self.losses: list[float] = []
        self.diverged, self.weights_s = False, 0.0
        self._calibration, self._on_step = calibration, on_step
        self._order = torch.Generator().manual_seed(seed)
        self._upcoming: Tensor = torch.empty(0, dtype=torch.int64)
        self._teacher_logits: dict[int, Tensor] = {}
        bytes_per_sequence = calibration.shape[1] * network.config.vocab_size * 2
        self._cache_sequences = _TEACHER_CACHE_BYTES // bytes_per_sequence if config.hidden_weight == 0.0 else 0
        self._places = unique_parameters(network)

    def run(self, objective: str, steps: int, device: torch.device) -> None:
        """Trains for `steps` iterations with a fresh optimiser and filter."""
        if steps == 0 or self.diverged:
            return
        self._objective, self._steps = objective, steps
        self._filter = GrokfastFilter.from_config(self.grokfast)
        batches = DataLoader([self._draw() for _ in range(steps)], batch_size=None)
        run_trainer(self, batches, steps, device)

    def _draw(self) -> Tensor:
        """The next batch's sequence numbers: the calibration set in random order, again and again."""
        size = self.settings.batch_sequences
        while len(self._upcoming) < size:
            fresh = torch.randperm(len(self._calibration), generator=self._order)
            self._upcoming = torch.cat([self._upcoming, fresh])
        batch, self._upcoming = self._upcoming[:size], self._upcoming[size:]
        return batch

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor | None:
        weights = self._rebuilt_weights()
        loss = self._weight_error(weights) if self._objective == "weights" else self._answer_error(weights, rows)
        value = float(loss.detach())
        self.losses.append(value)
        if not math.isfinite(value):
            self.diverged = self.trainer.should_stop = True
            return None
        if self._on_step is not None:
            self._on_step(len(self.losses), value)
        return loss

    def _rebuilt_weights(self) -> dict[str, Tensor]:
        start = time.perf_counter()
        weights = {
            name: in_place(self._places[name], weight)
            for trainable in self.trainables
            for name, weight in trainable.weights().items()
        }
        self.weights_s += time.perf_counter() - start
        return weights

    def _weight_error(self, weights: dict[str, Tensor]) -> Tensor:
        """Sum over tensors of |W - W'|^2 / |W|^2."""
        errors = []
        for name, weight in weights.items():
            original = self._places[name][1].float()
            errors.append((weight - original).square().sum() / original.square().sum().clamp_min(1e-30))
        return torch.stack(errors).sum()

    def _answer_error(self, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        tokens = self._calibration[rows.cpu()].to(self.device)
        with self._autocast():
            if self.settings.hidden_weight > 0.0:
                return self._divergence_with_hidden(weights, tokens)
            student = network_logits(self.network, weights, tokens)
        return kl_per_token(self._teacher(rows.tolist(), tokens), student, self.settings.temperature)

    def _autocast(self) -> torch.autocast:
        enabled = takes_bfloat16(self.settings.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _teacher(self, rows: list[int], tokens: Tensor) -> Tensor:
        """The original's logits, remembered per calibration sequence while there is room."""
        if not all(row in self._teacher_logits for row in rows):
            with (
                torch.no_grad(),
                self._autocast(),
            ):
                logits = network_logits(self.network, {}, tokens)
            if len(self._teacher_logits) + len(rows) > self._cache_sequences:
                return logits
            self._teacher_logits |= dict(zip(rows, logits.bfloat16(), strict=True))
        return torch.stack([self._teacher_logits[row] for row in rows])

    def _divergence_with_hidden(self, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
        settings = {"input_ids": tokens, "use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            teacher = functional_call(self.network, {}, (), settings)
        student = functional_call(self.network, weights, (), settings, tie_weights=True)
        errors = [
            (theirs.float() - ours.float()).square().sum() / theirs.float().square().sum()
            for theirs, ours in zip(teacher.hidden_states[1:], student.hidden_states[1:], strict=True)
        ]
        divergence = kl_per_token(teacher.logits, student.logits, self.settings.temperature)
        return divergence + self.settings.hidden_weight * torch.stack(errors).mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._filter.apply(self.parameters_)

    def configure_optimizers(self) -> dict[str, object]:
        by_step: dict[float, list[nn.Parameter]] = {}
        for trainable in self.trainables:
            for parameter in trainable.parameters():
                rms = float(parameter.detach().float().square().mean().sqrt())
                # A tensor of zeros has no scale of its own.
                step = self.settings.lr * trainable.relative_step * (rms if rms > 0.0 else 1.0)
                by_step.setdefault(step, []).append(parameter)
        optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": lr} for lr, parameters in by_step.items()], betas=(0.9, 0.99), eps=1e-12
        )
        warmup_steps = self.settings.warmup * self._steps

        def fraction(step: int) -> float:
            rise = min(1.0, (step + 1) / (warmup_steps + 1))
            return rise * 0.5 * (1.0 + math.cos(math.pi * step / self._steps))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _decoded(network: nn.Module, groups: Sequence[EncodedGroup]) -> dict[str, Tensor]:
    """Every tensor as its codec decodes it, in the shape and on the device of the parameter that it stands for.

    Strangers pass as they are: `check_replacements` names all of them at once.
    """
    places, weights = unique_parameters(network), {}
    for group in groups:
        for name, array in get_codec(group.codec).decode(group).items():
            tensor, place = torch.from_numpy(array), places.get(name)
            fits = place is not None and place[1].numel() == tensor.numel()
            weights[name] = in_place(place, tensor.to(place[1].device)) if fits else tensor
    return weights


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Operations whose threads race for a sum (a codebook's gradient) take their ordered form."""
    was, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
