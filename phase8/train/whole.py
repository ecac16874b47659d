"""A stage that trains what it stores: narrow the network, round it, train it within the budget, make groups of it.

    source ── answers (computed once, cached) ──────────────────────────┐
    source ── narrow (train/slicing) ── lattice (codecs/lattice) ── train_within_budget ── groups
    or, for any other codec:
    source ── its encoder ── its codes with the weights under them (codecs/rechosen) ── train_within_budget ── groups

The groups have the names and shapes of the original's tensors, so everything behind (file, readers, benchmarks) is as
for any other stage. A network that cannot be narrowed keeps its width, and its vectors are stored as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from phase8.codecs import EncodedGroup, get_codec
from phase8.codecs.base import BudgetTrainable, Codec
from phase8.codecs.lattice.encode import LatticeCodec, LatticeConfig, first_step, pack
from phase8.codecs.lattice.train import LatticeTrainable
from phase8.codecs.pools import pools
from phase8.codecs.rechosen import Rechosen, relative_error
from phase8.codecs.settings import StageSettings
from phase8.errors import ConfigError, OutputError
from phase8.model.source import SourceModel
from phase8.train.answers import Answers, answers_key, load_answers, save_answers
from phase8.train.collect import collect_answers
from phase8.train.precision import takes_bfloat16
from phase8.train.settings import GrokfastConfig, Precision, TrainingConfig
from phase8.train.shape import Shape
from phase8.train.slicing import Narrow, narrow, why_not
from phase8.train.threads import on_device
from phase8.train.trim import trim
from phase8.train.within_budget import Outcome, Plan, StepDone, train_within_budget

AGAIN = 0.5
"""The learning rate of a training that goes on from an earlier one, as a share of the first's."""
FITS = 1.01
"""Times the budget, up to which a file that is trained on from need not become smaller step by step."""
FINER = 2.5
"""Power of the codes' factor (`BudgetTrainable.finer`) by which the learning rate is lowered where they are fine: 0.24
for a lattice at 6.6x. There, after 400 steps, power 1 ends at a divergence of 2.5e-3 (rounding alone: 2.0e-3 in a few
bytes more), 2.6 at 0.77e-3, and 3.5 falls too slowly (experiments/LOG.md, 2026-11-29)."""
NARROWING_SEQUENCES = 128
"""Sequences of text that choose the kept directions and units."""

Size = Callable[[Sequence[EncodedGroup]], int]
"""Bytes of the artifact that groups would make."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of it."""

    groups: list[EncodedGroup]
    outcome: Outcome
    coded_bytes: int
    """Of the integers as the real coder makes them, within the budget."""
    trimmed: int
    """Integers that were set to zero at the end to keep it."""
    notes: list[str]
    """What a reader of the log should know: why the network was not narrowed, that the answers could not be cached."""


class TrainedStage:
    """One attempt: created with everything that decides the result, run once.

    Args:
        source: the model; not changed.
        tokens_NT: training text, int64 [N, T].
        size: bytes of the whole artifact for a list of groups.
        protected: names of matrices that stay in 16 bits.
        cache_dir: where the original's answers are kept for other runs; None keeps them in memory alone.
        trained_before: the groups of an artifact of the same shape; training goes on from these.
        codes: a codec's name and settings, whose codes are trained in place of a lattice's; the shape then stays.
        seed: of the codec's encoder.
    """

    def __init__(
        self,
        source: SourceModel,
        tokens_NT: Tensor,
        *,
        shape: Shape,
        start_step: float,
        size: Size,
        protected: Sequence[str] = (),
        cache_dir: Path | None = None,
        kept_answers: int = 48,
        trained_before: Sequence[EncodedGroup] = (),
        codes: tuple[str, StageSettings] | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.tokens_NT, self.size = source, tokens_NT, size
        self.protected, self.cache_dir, self.kept_answers = set(protected), cache_dir, kept_answers
        self.shape, self.start_step, self.notes = shape, start_step, list[str]()
        self._before = list(trained_before)
        self._codes, self._seed = codes, seed
        self._in_hand: tuple[BudgetTrainable, dict[str, nn.Parameter], Narrow | None] | None = None
        self._shapes = {name: tuple(parameter.shape) for name, (_, parameter) in source.parameters.items()}

    @property
    def why_whole(self) -> str | None:
        """The reason why the network keeps its shape, whatever `shape` asks for; None where it does not."""
        if self._codes is not None:
            return "only a lattice codes a part of a matrix"
        return why_not(self.source.network) or ("tensors are protected" if self.protected else None)

    def smallest_bytes(self) -> int:
        """What the artifact takes with every integer zero: names, shapes, steps, vectors; of other codes vectors."""
        if self._codes is not None:
            return self.size(self._plain(self.source.vectors()))
        names, shared = self._coded_names(), self._shared_names()
        zeros = {name: torch.zeros(1, 1, dtype=torch.int64).numpy() for name in names if name not in shared}
        shapes = {name: self._matrix_shape(name) for name in names}
        group = pack(zeros, dict.fromkeys(names, 1.0), shapes, shared)
        ones = {name: torch.ones_like(vector) for name, vector in self.source.vectors().items()}
        return self.size([group, *self._plain(ones)]) + len(zeros) * 4

    def check(self, budget_bytes: int, setting: str) -> None:
        """Raises `ConfigError` where the budget is below what structure and side information take."""
        smallest = self.smallest_bytes()
        if budget_bytes < smallest:
            highest = self.source.original_bytes / smallest
            raise ConfigError(
                f"{setting} allows {budget_bytes:,} bytes, but names, shapes, steps and vectors alone take "
                f"{smallest:,} (1/{highest:.1f} of the model's FP32 bytes)",
                where=setting,
                fix=f"allow at least {smallest:,} bytes, a ratio of at most {math.floor(10 * highest) / 10:g}",
            )

    def run(
        self,
        budget_bytes: int,
        plan: Plan,
        *,
        device: str = "cpu",
        devices: int = 1,
        on_answers: Callable[[int, int], None] | None = None,
        on_step: Callable[[StepDone], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Trained:
        """Trains within the budget.

        Raises:
            ConfigError: what is trained on from has another shape, or codes that all cost the same do not fit.
            Phase8Error: see `train_within_budget`.
        """
        part = self._narrow()
        network = part.network if part is not None else self.source.network
        trainable, vectors = self._start(network, part)
        answers = self._answers(on_answers, device, plan.precision)
        if part is not None:  # its matrices are put in for every batch; its own are needed no more
            own = dict(network.named_parameters())
            for name in self._coded_names():
                own[name].data = torch.empty(0, 0)
        self._in_hand = trainable, vectors, part
        room = budget_bytes - self._side_bytes(trainable, vectors, part)
        fit = trainable.finer if self._before else trainable.refine
        plan = replace(plan, lr=plan.lr * fit(self.start_step, room) ** FINER)
        if self._before:
            shrinks = trainable.coded_bytes() > FITS * room
            plan = replace(plan, ramp=plan.ramp if shrinks else 0.0, lr=plan.lr * AGAIN)
        if not trainable.steerable and trainable.coded_bytes() > room:
            raise ConfigError(
                f"the codes of {self._codes[0] if self._codes else 'lattice'} take {trainable.coded_bytes():,} bytes, "
                f"whatever is trained, where the budget leaves {room:,}",
                where="target_ratio or budget_bytes",
                fix="choose settings with fewer bits a weight, or allow more bytes",
            )
        outcome = train_within_budget(
            network,
            trainable,
            vectors,
            answers=answers,
            tokens_NT=self.tokens_NT,
            budget_bytes=room,
            plan=plan,
            device=device,
            devices=devices,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        if outcome.note:
            self.notes.append(outcome.note)
        groups, coded, trimmed = self._fitted(budget_bytes, room)
        return Trained(groups=groups, outcome=outcome, coded_bytes=coded, trimmed=trimmed, notes=self.notes)

    def so_far(self, budget_bytes: int) -> list[EncodedGroup] | None:
        """The groups of a training that was stopped, cut to the budget; None where it had not begun."""
        if self._in_hand is None:
            return None
        self._in_hand[0].cpu()
        return self._fitted(budget_bytes, budget_bytes - self._side_bytes(*self._in_hand))[0]

    # ----------------------------------------------------------------------------------------------------------------

    def _fitted(self, budget_bytes: int, room: int) -> tuple[list[EncodedGroup], int, int]:
        """Groups whose artifact is within the budget, bytes of their integers, and how many were set to zero.

        Args:
            room: bytes for the integers, as far as is known before the header is written.
        """
        assert self._in_hand is not None
        coded, trimmed = trim(self._in_hand[0], room)
        groups = self._groups(*self._in_hand)
        while (over := self.size(groups) - budget_bytes) > 0:  # the header's numbers took more digits than before
            room -= over + 8
            coded, more = trim(self._in_hand[0], room)
            trimmed += more
            groups = self._groups(*self._in_hand)
        return groups, coded, trimmed

    def _coded_names(self) -> list[str]:
        return [name for name in self.source.matrices() if name not in self.protected]

    def _shared_names(self) -> dict[str, str]:
        """Matrices of layers that have another layer's integers: the first of every `shape.shared` layers in a row."""
        if self.shape.shared == 1 or self.why_whole is not None:
            return {}
        found = {}
        for name in self._coded_names():
            head, _, rest = name.partition(".layers.")
            layer, _, kind = rest.partition(".")
            if layer.isdigit() and int(layer) % self.shape.shared:
                found[name] = f"{head}.layers.{int(layer) - int(layer) % self.shape.shared}.{kind}"
        return found

    def _matrix_shape(self, name: str) -> tuple[int, int]:
        return tuple(self.source.matrices()[name].shape)  # type: ignore[return-value]

    def _answers(
        self,
        on_answers: Callable[[int, int], None] | None = None,
        device: str = "cpu",
        precision: Precision = Precision.auto,
    ) -> Answers:
        bfloat16 = takes_bfloat16(precision, torch.device(device))
        key = answers_key(self.source.content_hash, self.tokens_NT, self.kept_answers, bfloat16=bfloat16)
        if self.cache_dir is not None:
            shape = (self.tokens_NT.shape[0], self.tokens_NT.shape[1])
            found = load_answers(self.cache_dir, key, shape)
            if found is not None:
                return found
        network = on_device(self.source.network, torch.device(device))
        answers = collect_answers(
            network, self.tokens_NT, kept=self.kept_answers, bfloat16=bfloat16, on_progress=on_answers
        )
        if self.cache_dir is not None:
            try:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                save_answers(self.cache_dir, key, answers)
            except (OutputError, OSError) as error:
                self.notes.append(f"the original's answers were not cached ({error}); a later run asks it again")
        return answers

    def _narrow(self) -> Narrow | None:
        if self.why_whole is not None:
            if self.shape.narrower or self.shape.shared > 1:
                self.notes.append(f"the network keeps its shape: {self.why_whole}")
            return None
        batches = self.tokens_NT[:NARROWING_SEQUENCES].split(16)
        return narrow(self.source.network, batches, **self.shape.of(self.source.network))

    def _start(self, network: nn.Module, part: Narrow | None) -> tuple[BudgetTrainable, dict[str, nn.Parameter]]:
        """The codes under the weights as they are (not rounded), or as they were trained before, and the vectors that
        are trained."""
        if self._codes is not None:
            return self._rechosen(*self._codes), {}
        if part is None:
            weights = {name: self.source.matrices()[name].float() for name in self._coded_names()}
        else:
            own = dict(network.named_parameters())
            weights = {name: own[name].detach() for name in self._coded_names()}
        vectors = dict[str, nn.Parameter]()
        if part is not None and network.config.tie_word_embeddings:
            vectors["model.norm.weight"] = nn.Parameter(network.model.norm.weight.detach().clone())
        shared, config = self._shared_names(), LatticeConfig(start_step=self.start_step)
        own = {name: weight for name, weight in weights.items() if name not in shared}
        if self._before:
            return self._trained_before({name: tuple(weight.shape) for name, weight in own.items()}, vectors, part)
        steps = {name: first_step(weight, config) for name, weight in weights.items()}
        return LatticeTrainable(own, steps, {name: self._matrix_shape(name) for name in weights}, shared), vectors

    def _trained_before(
        self, extents: Mapping[str, tuple[int, ...]], vectors: dict[str, nn.Parameter], part: Narrow | None
    ) -> tuple[LatticeTrainable, dict[str, nn.Parameter]]:
        """What an earlier training stored.

        Args:
            extents: what is stored of every matrix with integers of its own, by this stage's shape.
        """
        trainable = LatticeCodec().trainable(self._of_codec("lattice")[0])
        others = [name for name in extents if trainable.extents.get(name) != extents[name]]
        if others or len(trainable.extents) > len(extents):
            name = next(iter(others), "")
            raise ConfigError(
                f"the artifact to train on from keeps another shape: of {name or 'other matrices'} "
                f"{trainable.extents.get(name, 'nothing')}, this stage {extents.get(name, 'nothing')}",
                where="training.from_artifact",
                fix="give the stage the settings that it was made with (kept_width, kept_units, shared_layers)",
            )
        stored = get_codec("plain").decode(self._of_codec("plain")[0]) if vectors else {}
        with torch.no_grad():
            for name, vector in vectors.items():
                assert part is not None
                vector.copy_(torch.from_numpy(stored[name][: vector.numel()]) * part.norm_scale)
        return trainable, vectors

    def _of_codec(self, name: str) -> list[EncodedGroup]:
        """Of what is trained on from, the groups of this codec."""
        groups = [group for group in self._before if group.codec == name]
        if not groups and self._before:
            found = ", ".join(sorted({group.codec for group in self._before}))
            raise ConfigError(
                f"the artifact to train on from has no codes of {name}, but of {found}",
                where="training.from_artifact",
                fix="name an artifact that was made with the same settings",
            )
        return groups

    def _rechosen(self, name: str, settings: StageSettings) -> Rechosen:
        """A codec's codes of all matrices that are coded, as it encodes them or as they were trained before."""
        codec, weights = get_codec(name), {name: self.source.matrices()[name].float() for name in self._coded_names()}
        encode = partial(_encode, codec, settings, self._seed)
        groups = [encode({name: weights[name] for name in names}) for names in pools(weights, settings)]
        error = relative_error(groups, weights)
        if before := self._of_codec(name):
            groups = before
            weights = {name: torch.from_numpy(w) for group in groups for name, w in codec.decode(group).items()}
        return Rechosen(codec, groups, weights, encode=encode, error=error)

    def _plain(self, vectors: dict[str, Tensor]) -> list[EncodedGroup]:
        plain = get_codec("plain")
        kept = {name: self.source.matrices()[name] for name in self.source.matrices() if name in self.protected}
        return [plain.encode(tensors, None, importance={}, seed=0) for tensors in (vectors, kept) if tensors]

    def _wide_vectors(self, vectors: dict[str, nn.Parameter], part: Narrow | None) -> dict[str, Tensor]:
        if part is None:
            return self.source.vectors()
        own = {name: p for name, p in part.network.named_parameters() if p.dim() == 1}
        return part.widened(own | vectors, self._shapes)

    def _groups(
        self, trainable: BudgetTrainable, vectors: dict[str, nn.Parameter], part: Narrow | None
    ) -> list[EncodedGroup]:
        return [*trainable.groups(), *self._plain(self._wide_vectors(vectors, part))]

    def _side_bytes(self, trainable: BudgetTrainable, vectors: dict[str, nn.Parameter], part: Narrow | None) -> int:
        """Bytes of the artifact beside the coded integers, with a little room for numbers that change."""
        return self.size(self._groups(trainable, vectors, part)) - trainable.coded_bytes() + 64


def _encode(codec: Codec, settings: StageSettings, seed: int, matrices: Mapping[str, Tensor]) -> EncodedGroup:
    return codec.encode(matrices, settings, importance={}, seed=seed)


def plan_of(settings: TrainingConfig, grokfast: GrokfastConfig, precision: Precision, seed: int) -> Plan:
    """The plan that a run's settings ask for."""
    return Plan(
        steps=settings.steps,
        batch_sequences=settings.batch_sequences,
        lr=settings.lr,
        ramp=settings.ramp,
        fall=settings.fall,
        focus=settings.focus,
        certainty=settings.certainty,
        grokfast=replace(grokfast, enabled=settings.grokfast),
        precision=precision,
        seed=seed,
        checkpoint_every=settings.checkpoint_every,
    )
