"""Trains what is stored, within a byte budget, so that the network answers as the original does.

    loss = KL(original || network) per token + price * bits            price: `phase8.train.price`

Each step rebuilds the network's matrices from what is stored (`BudgetTrainable.weights`), asks it for its answers to a
batch of text, compares them with the original's (`phase8.train.answers`, computed once) and adds what the codes cost
(`BudgetTrainable.bits`). The size falls from that of the start to the budget over the first `ramp` of the steps, the
learning rate to zero over the last `fall` of them: most of the divergence goes while the rate falls. What the real
coder makes of the codes is measured a few times and corrects the estimate; whatever is over the budget at the end is
for `trim`, which takes cheaper codes, so that the file is never larger than was asked for.

A loss that is not finite, or one that has grown `BLOWN_UP`-fold since the size reached the budget, takes the training
back to its last good point with half the learning rate, twice; after that it stops there. The same seed on the same
machine gives the same bytes, also where the training was interrupted and goes on from a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from phase8.codecs.base import BudgetTrainable, root_mean_square
from phase8.errors import ArtifactError
from phase8.train.answers import TINY, Answers
from phase8.train.checkpoint import State, read_checkpoint, write_checkpoint
from phase8.train.grokfast import GrokfastFilter
from phase8.train.lightning import quiet, run_trainer
from phase8.train.parallel import Share, several
from phase8.train.precision import takes_bfloat16
from phase8.train.price import EVERY, Price
from phase8.train.settings import GrokfastConfig, Precision
from phase8.train.sliced import SlicedBatch
from phase8.train.threads import on_device, side_by_side

CODED_SHARE = 0.985
"""The real coder's bytes over the estimate's, before they are measured."""
MEASURED_AT = (0.0, 0.35, 0.6, 0.85, 0.97)
"""Shares of the steps at which they are."""
MARGIN = 0.9995
"""Of the budget is aimed at, so that little has to be trimmed."""
SNAPSHOT_EVERY = 50
"""Steps whose mean loss says whether the point behind them is one to go back to."""
BLOWN_UP = 3.0
"""Times the lowest mean loss, from which a training is taken not to recover: one at 280x went from 0.09 to 3.6 within
3,500 steps and was at 0.76 after 45,000 more."""
GOOD = 1.25
"""Times the lowest mean loss, up to which a point is one to go back to."""
LEAST_LOSS = 1e-3
"""Nats per token, below which a loss grows by noise alone; rounding can make it negative."""
SETBACKS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long and how fast."""

    steps: int
    batch_sequences: int = 16
    lr: float = 0.01
    """Adam's highest step, as a share of a parameter tensor's root mean square."""
    warmup_steps: int = 20
    fall: float = 0.75
    ramp: float = 0.35
    grokfast: GrokfastConfig = field(default_factory=lambda: GrokfastConfig(enabled=False))
    focus: float = 0.6
    """After every sequence was seen once, sequences are drawn in proportion to their last divergence to this power:
    what is known already is shown less. 0 draws all alike."""
    certainty: float = 0.0
    """A token counts exp(-certainty H), H the entropy of the original's answer: what it is sure of counts for more."""
    precision: Precision = Precision.auto
    seed: int = 0
    checkpoint_every: int = 200
    """Steps between two checkpoints, where a directory is given."""

    def rate(self, share: float, step: int) -> float:
        """Factor of the learning rate when this share of the steps is done."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1)) * min(1.0, (1.0 - share) / max(self.fall, 1e-9))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """What an onlooker hears after each step."""

    step: int
    steps: int
    loss: float
    """Mean KL of the batch, nats per token, weighted by certainty."""
    estimated_bytes: float
    budget_bytes: int
    seconds_left: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the training brought; the trainable and the vectors hold the result."""

    losses: list[float]
    estimated_bytes: float
    """Of the integers, by the estimate that steered."""
    setbacks: int
    diverged: bool
    seconds: float
    note: str = ""
    """Why a checkpoint that lay there was not gone on from."""


def train_within_budget(
    network: nn.Module,
    trainable: BudgetTrainable,
    vectors: Mapping[str, nn.Parameter],
    *,
    answers: Answers,
    tokens_NT: Tensor,
    budget_bytes: int,
    plan: Plan,
    device: str | torch.device = "cpu",
    devices: int = 1,
    on_step: Callable[[StepDone], None] | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    """Trains `trainable` and `vectors` in place.

    Args:
        network: the network whose parameters they stand for, by name; its other parameters stay.
        answers: the original's, to every sequence of `tokens_NT` (int64 [N, T]).
        budget_bytes: what the coded integers are to take, which `trim` sees to.
        devices: how many take part (no more than a batch has sequences), each with a process of its own; see
            `phase8.train.parallel`, also for what is raised.
        on_step: may raise to stop; what it raises passes through.
        checkpoint: a directory; a training that was stopped goes on from what lies there.
    """
    start = time.perf_counter()
    what = {
        "network": network,
        "trainable": trainable,
        "vectors": dict(vectors),
        "answers": answers,
        "tokens_NT": tokens_NT,
        "budget_bytes": budget_bytes,
        "plan": plan,
        "checkpoint": checkpoint,
    }
    devices = min(devices, plan.batch_sequences, len(tokens_NT))
    with several(_train, what, torch.device(device), devices) as share:
        module = _train(share, **what, on_step=on_step)
    estimate = module.bits * module.coded_share / 8
    return Outcome(
        losses=module.losses,
        estimated_bytes=estimate,
        setbacks=module.setbacks,
        diverged=module.setbacks > SETBACKS,
        seconds=time.perf_counter() - start,
        note=module.note,
    )


def _train(
    share: Share,
    *,
    network: nn.Module,
    trainable: BudgetTrainable,
    vectors: Mapping[str, nn.Parameter],
    answers: Answers,
    tokens_NT: Tensor,
    budget_bytes: int,
    plan: Plan,
    checkpoint: Path | None,
    on_step: Callable[[StepDone], None] | None = None,
) -> _Training:
    """One process's part of `train_within_budget`."""
    device = share.device
    bfloat16 = takes_bfloat16(plan.precision, device)
    with quiet(), side_by_side(device) as (slices, apply):
        network = on_device(network, device)
        batch = SlicedBatch(
            network,
            answers,
            device=device,
            bfloat16=bfloat16,
            slices=slices,
            apply=apply,
            certainty=plan.certainty,
        )
        module = _Training(share, batch, trainable, vectors, tokens_NT, budget_bytes, plan, on_step, checkpoint)
        done = module.resume()
        share.compare(lambda: module.state(moments=False).tensors | {"done": torch.tensor(done)})
        if done < plan.steps:
            steps = DataLoader(range(done, plan.steps), batch_size=None)
            run_trainer(module, steps, plan.steps - done, device, share)
    module.cpu()
    return module


def _but_for_steps(plan: Plan) -> str:
    """What a checkpoint's plan has to agree in."""
    return repr(replace(plan, steps=0))


class _Training(lightning.LightningModule):
    def __init__(
        self,
        share: Share,
        batch: SlicedBatch,
        trainable: BudgetTrainable,
        vectors: Mapping[str, nn.Parameter],
        tokens_NT: Tensor,
        budget_bytes: int,
        plan: Plan,
        on_step: Callable[[StepDone], None] | None,
        checkpoint: Path | None,
    ) -> None:
        super().__init__()
        self.trainable = trainable
        self.vectors = nn.ParameterList(list(vectors.values()))
        self._vector_names = list(vectors)
        self.plan, self._share, self._batch, self._tokens = plan, share, share.batch(batch), tokens_NT
        self._budget_bytes, self._on_step, self._directory = budget_bytes, on_step, checkpoint
        self._steps = self._highest()
        self.seen_N = torch.ones(len(tokens_NT))
        self._filter = GrokfastFilter.from_config(plan.grokfast)
        self.losses: list[float] = []
        self.setbacks, self.slower, self.done, self.note = 0, 1.0, 0, ""
        with torch.no_grad():
            self.bits = float(trainable.bits())
        self.coded_share = CODED_SHARE
        self.price = Price(start_bits=self.bits, budget_bits=self._wanted_bits(), ramp=plan.ramp)
        self._unmeasured = [share for share in MEASURED_AT if share < 1.0]
        self._snapshot: State | None = None
        self._lowest = math.inf
        self._lost = False
        # DDP looks for parameters that a step does not need, and warns where there is none.
        self.not_needed = nn.Parameter(torch.zeros(())) if share.count > 1 else None
        self._optimizer: torch.optim.Optimizer | None = None
        self._saved_optimizer: dict[str, Tensor] | None = None
        self._began = time.perf_counter()

    def _wanted_bits(self) -> float:
        return 8 * self._budget_bytes * MARGIN / self.coded_share

    def _draw(self) -> Tensor:
        """Numbers of the next batch's sequences, int64 [B]; they follow from the step and the divergences seen."""
        size, count = self.plan.batch_sequences, len(self._tokens)
        first = self.done * size
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.done)
        if first + size <= count or self.plan.focus == 0.0:
            epoch, place = divmod(first, max(size, count - count % size))
            shuffle = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + 7 * epoch + 1)
            order = torch.randperm(count, generator=shuffle)
            return order[torch.arange(place, place + size) % count]
        return torch.multinomial(self.seen_N.pow(self.plan.focus), min(size, count), generator=generator)

    def training_step(self, number: int, batch_idx: int) -> Tensor | None:
        rows = self._draw()
        share = self.done / self.plan.steps
        if self._unmeasured and share >= self._unmeasured[0]:
            self._measure()
        weights = self.trainable.weights() | dict(zip(self._vector_names, self.vectors, strict=True))
        divergence, of_each = self._batch.divergence(weights, self._tokens[rows], rows)
        value = float(of_each.mean())
        self._lost = not math.isfinite(value)
        if self._lost:
            self._step_back()
            return self._share.no_loss(self.parameters_())
        self.seen_N[rows] = of_each.cpu().clamp_min(TINY)
        bits = self.trainable.bits()
        if self.done % EVERY == 0:
            self.bits = float(bits.detach())
            self.price.look(self.bits, share)
        self.price.step()
        self.losses.append(value)
        return divergence + self.price.value * bits

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._lost:
            self.zero_grad()  # to None: neither filter nor optimiser counts this step
        self._filter.apply(self.parameters_())
        factor = self.slower * self.plan.rate(self.done / self.plan.steps, self.done)
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * factor

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1
        with torch.no_grad():
            self.trainable.choose_again(self.done, self.plan.steps, self.price.value)
        if self.done % SNAPSHOT_EVERY == 0:
            self._look_back()
        due = self.done % self.plan.checkpoint_every == 0 and self.done < self.plan.steps
        if self._directory is not None and self._share.first and due:
            self.save()
        if self._on_step is not None and self.losses:
            spent = time.perf_counter() - self._began
            here = max(1, self.done - self._first)
            self._on_step(
                StepDone(
                    step=self.done,
                    steps=self.plan.steps,
                    loss=self.losses[-1],
                    estimated_bytes=self.bits * self.coded_share / 8,
                    budget_bytes=self._budget_bytes,
                    seconds_left=spent / here * (self.plan.steps - self.done),
                )
            )
        self._share.of_first(lambda: None)  # the others wait here, not within a step, while the listener pauses

    def parameters_(self) -> list[nn.Parameter]:
        return [*self.trainable.parameters(), *self.vectors]

    def _highest(self) -> list[float]:
        """Adam's highest step of every parameter, from the values that training begins with."""
        of_vectors = [self.plan.lr * root_mean_square(vector) for vector in self.vectors]
        return [*self.trainable.highest_steps(self.plan.lr, self.plan.steps), *of_vectors]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        pairs = zip(self.parameters_(), self._steps, strict=True)
        groups = [{"params": [parameter], "highest": step} for parameter, step in pairs]
        fused = self.device.type in ("cpu", "cuda")
        self._optimizer = torch.optim.Adam(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-12, fused=fused)
        if self._saved_optimizer is not None:
            self._load_moments(self._saved_optimizer)
        return self._optimizer

    # The real coder -----------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Compares the estimate with what the coder really takes."""
        self._unmeasured.pop(0)
        with torch.no_grad():
            estimate = float(self.trainable.bits())
        self.coded_share = self._share.of_first(self.trainable.coded_bits) / max(estimate, 1.0)
        self.price.budget_bits = self._wanted_bits()

    # Going back and going on --------------------------------------------------------------------------------------

    def state(self, *, moments: bool = True) -> State:
        """What a training goes on from; Adam's moments, two thirds of it, are begun anew after a step back."""
        tensors = {f"value.{i}": p.detach().clone() for i, p in enumerate(self.parameters_())}
        if self._optimizer is not None and moments:
            for i, parameter in enumerate(self.parameters_()):
                for name, value in self._optimizer.state.get(parameter, {}).items():
                    tensors[f"{name}.{i}"] = value.detach().clone()
        tensors |= {f"codes.{name}": codes for name, codes in self.trainable.codes().items()}
        tensors["seen"] = self.seen_N.clone()
        for i, mean in self._filter.state().items():
            tensors[f"filter.{i}"] = mean.clone()
        values = {
            "done": self.done,
            "bits": self.bits,
            "coded_share": self.coded_share,
            "lowest": self._lowest,
            "unmeasured": list(self._unmeasured),
            "setbacks": self.setbacks,
            "slower": self.slower,
            "losses": list(self.losses),
            "price": dict(vars(self.price)),
            "plan": _but_for_steps(self.plan),
            "budget": self._budget_bytes,
        }
        return State(tensors, values)

    @torch.no_grad()
    def _load(self, state: State) -> None:
        values, tensors = state.values, state.tensors
        for i, parameter in enumerate(self.parameters_()):
            parameter.copy_(tensors[f"value.{i}"])
        self.trainable.load_codes({name[6:]: v for name, v in tensors.items() if name.startswith("codes.")})
        self.done, self.bits, self.coded_share = values["done"], values["bits"], values["coded_share"]
        self._unmeasured, self.losses = list(values["unmeasured"]), list(values["losses"])
        self._lowest = values.get("lowest", math.inf)
        self.price = Price(**values["price"])
        self.seen_N = tensors["seen"].clone()
        self._filter.load({int(k[7:]): v for k, v in tensors.items() if k.startswith("filter.")})
        if self._optimizer is None:
            self._saved_optimizer = tensors
        else:
            self._load_moments(tensors)

    def _load_moments(self, tensors: dict[str, Tensor]) -> None:
        assert self._optimizer is not None
        self._optimizer.state.clear()
        for i, parameter in enumerate(self.parameters_()):
            names = ("step", "exp_avg", "exp_avg_sq")
            if f"exp_avg.{i}" in tensors:
                self._optimizer.state[parameter] = {name: tensors[f"{name}.{i}"].clone() for name in names}

    def _look_back(self) -> None:
        """Remembers this point if it is a good one; goes back to the last good one if the loss has blown up."""
        here = self.state(moments=False)
        self._share.compare(lambda: here.tensors)
        mean = math.fsum(self.losses[-SNAPSHOT_EVERY:]) / max(1, len(self.losses[-SNAPSHOT_EVERY:]))
        first_reading = len(self._tokens) / self.plan.batch_sequences if self.plan.focus else 0.0
        if self.done <= max(self.plan.ramp * self.plan.steps, first_reading):
            self._lowest = mean  # a falling size may cost any divergence, and what is drawn after it is harder
        lowest = max(self._lowest, LEAST_LOSS)
        if mean > BLOWN_UP * lowest:
            self._step_back()
        elif mean <= GOOD * lowest:
            here.values["lowest"] = self._lowest = min(mean, self._lowest)
            self._snapshot = here

    def _step_back(self) -> None:
        self.setbacks += 1
        self.slower /= 2
        if self._snapshot is not None:
            done = self.done
            self._load(self._snapshot)
            self.done = done  # the schedules go on
        if self.setbacks > SETBACKS:
            self.trainer.should_stop = True

    def save(self) -> None:
        """Writes a checkpoint, whole or not at all."""
        assert self._directory is not None
        write_checkpoint(self._directory, self.state())

    def resume(self) -> int:
        """Takes up a checkpoint of the same plan and budget, if there is one; returns how many steps are done.

        The plan may have another number of steps by now: rate and size follow its schedules from there. With any other
        checkpoint, or one that is damaged, the training begins anew, and a note says so.
        """
        self._first = 0
        shapes = {f"value.{i}": tuple(p.shape) for i, p in enumerate(self.parameters_())}
        shapes["seen"] = tuple(self.seen_N.shape)
        try:
            found = None if self._directory is None else read_checkpoint(self._directory, shapes)
        except ArtifactError as error:
            self.note = f"training began anew, its checkpoint cannot be used: {error.what}"
            return 0
        if found is None:
            return 0
        mine = {"plan": _but_for_steps(self.plan), "budget": self._budget_bytes}
        others = [name for name, value in mine.items() if found.values.get(name) != value]
        if others:
            self.note = f"training began anew, its checkpoint is of another {' and another '.join(others)}"
            return 0
        self._load(found)
        self.setbacks, self.slower = found.values["setbacks"], found.values["slower"]
        self._first = self.done
        return self.done
