"""Continuing texts, in the cheapest way that writes what the model writes on its own.

    padded     many texts at a time, padded at the left, with a key-value cache
    alone      one text at a time through `model.generate`, with whatever cache the architecture has
    uncached   one text at a time, the whole text read anew for every token: what is true by definition

State-space models keep no key-value cache, a recurrent layer may read the padding, a ring buffer may be too short for
the text. So a batch is written the cheap way, and then a few of its texts (the longest prompt, the shortest, two
between) are read once more, whole, alone, without a cache: every token must have the log-probability with which it was
chosen. Where one has not, the batch is written again the next way, and so are all after it.

A model whose generation settings change the distribution itself (a repetition penalty, forbidden words) is asked
through `model.generate`, which knows them: lm-eval's own models are asked so. Their texts are checked by choosing the
same tokens once more without a cache.

Greedy, or sampled where a task asks for it. A sampled answer depends on its prompt and on how often the prompt was
asked before, not on what else is in the batch.

Shapes: B rows, L tokens of a row, S sampled rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from phase8.benchmarks.scoring import WRONG_WAY, alike, forget_lengths
from phase8.model.forward import accepts, logits_of

HARMLESS = {
    "eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "do_sample", "temperature", "top_p",
    "top_k", "min_p", "typical_p", "max_length", "max_new_tokens", "use_cache", "cache_implementation", "cache_config",
    "transformers_version", "_from_model_config", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict_in_generate", "num_beams", "early_stopping", "length_penalty",
    "max_time", "stop_strings", "num_assistant_tokens", "prompt_lookup_num_tokens", "compile_config", "disable_compile",
}  # fmt: skip
"""Generation settings that leave the distribution of the next token alone, or that a task sets itself."""


@dataclass(slots=True)
class Job:
    """One text to continue."""

    number: int
    prompt: list[int]
    new_tokens: int
    until: list[str]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: list[int] | None = None
    """Of a sampled answer; None for a greedy one."""
    random: np.random.Generator | None = None
    watched: bool = False
    """Whether its log-probabilities are kept, to be compared with those of the text read alone."""
    chosen: list[int] = field(default_factory=list)
    """Every token so far, an end token at the end included."""
    produced: list[int] = field(default_factory=list)
    """The same without an end token."""
    logp: list[float] = field(default_factory=list)

    def restart(self) -> None:
        self.chosen, self.produced, self.logp = [], [], []
        self.random = None if self.seed is None else np.random.default_rng(self.seed)


class Generator:
    """Continues texts with one model.

    Args:
        model: a causal LM in evaluation mode.
        pad: a token to pad with.
        ends: tokens that end a text.
        stopped: whether the newest token of a job completes one of its stop sequences.
    """

    def __init__(self, model: Any, *, pad: int, ends: set[int], stopped: Callable[[Job, int], bool]) -> None:
        self.model, self.pad, self.ends, self.stopped = model, pad, ends, stopped
        self._on_done: Callable[[], None] = lambda: None
        if changes_distribution(model.generation_config):
            self.ways = {"alone": self._alone, "uncached": self._uncached_by_settings}
        else:
            self.ways = {"padded": self._padded, "alone": self._alone, "uncached": self._uncached}

    @property
    def way(self) -> str:
        """How texts are written at present."""
        return next(iter(self.ways))

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], on_done: Callable[[int], None]) -> None:
        """Writes every job's text; `on_done` gets how many are written."""
        for place, job in enumerate(sorted(jobs, key=lambda job: -len(job.prompt))):
            job.watched = place in (0, len(jobs) // 3, 2 * len(jobs) // 3, len(jobs) - 1)
        most = written = 0

        def tell() -> None:
            nonlocal most, written
            written += 1
            if written > most:  # a batch that is written again does not go back to the start
                most = written
                on_done(most)

        while True:
            written, self._on_done = 0, tell
            for job in jobs:
                job.restart()
            last = len(self.ways) == 1
            try:
                self.ways[self.way](jobs)
                if last or all(self._agrees(job) for job in jobs if job.watched):
                    return
            except WRONG_WAY:
                if last:
                    raise
            del self.ways[self.way]

    def _agrees(self, job: Job) -> bool:
        if changes_distribution(self.model.generation_config):
            again = Job(job.number, job.prompt, len(job.chosen), [], watched=True)
            self._on_done = lambda: None
            self._steer(again, use_cache=False, forced=job.chosen)
            found = again.logp
        else:
            forget_lengths(self.model)
            text_1L = torch.tensor([job.prompt + job.chosen[:-1]], device=self.model.device)
            logits_NV = logits_of(self.model, text_1L)[0, len(job.prompt) - 1 :]
            chosen_N1 = torch.tensor(job.chosen, device=self.model.device)[:, None]
            found = torch.log_softmax(logits_NV.float(), dim=-1).gather(1, chosen_N1)[:, 0].tolist()
        return all(alike(one, other, self.model.dtype) for one, other in zip(job.logp, found, strict=True))

    def _take(self, job: Job, token: int) -> bool:
        """Adds a token to a job; returns whether the job is done."""
        job.chosen.append(token)
        done = token in self.ends
        if not done:
            job.produced.append(token)
            done = len(job.produced) >= job.new_tokens or self.stopped(job, token)
        if done:
            self._on_done()
        return done

    # The ways ----------------------------------------------------------------------------------------------------

    def _padded(self, jobs: Sequence[Job]) -> None:
        """Rows leave once a quarter of the batch is idle."""
        device = self.model.device
        length = max(len(job.prompt) for job in jobs)
        tokens_BL = torch.full((len(jobs), length), self.pad)
        seen_BL = torch.zeros(len(jobs), length, dtype=torch.long)
        for row, job in enumerate(jobs):
            tokens_BL[row, length - len(job.prompt) :] = torch.tensor(job.prompt)
            seen_BL[row, length - len(job.prompt) :] = 1
        seen_BL, fed_BL = seen_BL.to(device), tokens_BL.to(device)
        positions_BL = (seen_BL.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        last_only = {"logits_to_keep": 1} if accepts(self.model, "logits_to_keep") else {}
        live: list[Job | None] = list(jobs)
        while True:
            placed = {"position_ids": positions_BL} if accepts(self.model, "position_ids") else {}
            logits_BV = self.model(
                input_ids=fed_BL,
                attention_mask=seen_BL,
                past_key_values=cache,
                use_cache=True,
                **placed,
                **last_only,
            ).logits[:, -1]
            chosen_B = choose(logits_BV, live)
            note_logp(logits_BV, chosen_B, live)
            for row, token in enumerate(chosen_B.tolist()):
                job = live[row]
                if job is not None and self._take(job, token):
                    live[row] = None
            keep = [row for row, job in enumerate(live) if job is not None]
            if not keep:
                return
            fed_BL = chosen_B[:, None]
            positions_BL = positions_BL[:, -1:] + 1
            seen_BL = torch.cat([seen_BL, seen_BL.new_ones(len(live), 1)], dim=1)
            if len(keep) <= 3 * len(live) // 4:
                rows = torch.tensor(keep, device=device)
                cache.batch_select_indices(rows)
                fed_BL, positions_BL, seen_BL = fed_BL[rows], positions_BL[rows], seen_BL[rows]
                live = [live[row] for row in keep]

    def _alone(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._steer(job, use_cache=True)

    def _uncached_by_settings(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._steer(job, use_cache=False)

    def _uncached(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            done = False
            while not done:
                text_1L = torch.tensor([job.prompt + job.chosen], device=self.model.device)
                logits_1V = logits_of(self.model, text_1L)[:, -1]
                done = self._take(job, int(choose(logits_1V, [job])))

    def _steer(self, job: Job, *, use_cache: bool, forced: Sequence[int] = ()) -> None:
        """One text through `model.generate`; which token comes next is decided here."""
        done = False

        def pick(input_ids: torch.Tensor, scores_1V: torch.Tensor) -> torch.Tensor:
            nonlocal done
            step = len(job.chosen)
            token = forced[step] if forced else int(choose(scores_1V, [job]))
            note_logp(scores_1V, torch.tensor([token]), [job])
            done = self._take(job, token) or bool(forced and step + 1 == len(forced))
            only_1V = torch.full_like(scores_1V, float("-inf"))
            only_1V[:, token] = 0.0
            return only_1V

        class Pick(LogitsProcessor):
            __call__ = staticmethod(pick)

        class Done(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                return torch.full((len(input_ids),), done, device=input_ids.device)

        forget_lengths(self.model)
        prompt_1L = torch.tensor([job.prompt], device=self.model.device)
        with greedy_settings(self.model, job.new_tokens, self.pad):
            self.model.generate(
                prompt_1L,
                attention_mask=torch.ones_like(prompt_1L),
                use_cache=use_cache,
                logits_processor=LogitsProcessorList([Pick()]),
                stopping_criteria=StoppingCriteriaList([Done()]),
            )


@contextmanager
def greedy_settings(model: Any, new_tokens: int, pad: int) -> Iterator[None]:
    """While open, `model.generate` is greedy and ends by itself after so many tokens only; what else the model's own
    settings say holds."""
    own = model.generation_config
    settings = GenerationConfig(**{k: v for k, v in own.to_dict().items() if k not in HARMLESS})
    settings.update(max_new_tokens=new_tokens, max_length=None, do_sample=False, pad_token_id=pad, eos_token_id=None)
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def changes_distribution(settings: GenerationConfig | None) -> bool:
    """Whether generation settings change the distribution of the next token, beyond sampling from it."""
    if settings is None:
        return False
    ordinary = GenerationConfig().to_dict()
    neutral = (None, False, 0, 1.0, [], {})
    return any(
        value != ordinary.get(name) and value not in neutral
        for name, value in settings.to_dict().items()
        if name not in HARMLESS
    )


def note_logp(logits_BV: torch.Tensor, chosen_B: torch.Tensor, jobs: Sequence[Job | None]) -> None:
    """Keeps the log-probability of the chosen token, of the watched jobs."""
    for row, job in enumerate(jobs):
        if job is not None and job.watched:
            logits_V = logits_BV[row].float()
            job.logp.append(float(torch.log_softmax(logits_V, dim=-1)[int(chosen_B[row])]))


def choose(logits_BV: torch.Tensor, jobs: Sequence[Job | None]) -> torch.Tensor:
    """The next token (B) of each row: the likeliest, or one drawn from the `top_p` likeliest at the job's temperature.

    As in nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): the smallest set of tokens with at least `top_p` of
    the probability.
    """
    chosen_B = logits_BV.argmax(dim=-1)
    rows = [row for row, job in enumerate(jobs) if job is not None and job.random is not None]
    if not rows:
        return chosen_B
    drawn = [jobs[row] for row in rows]
    temperature_S1, top_p_S1, uniform_S1 = (
        torch.tensor(values, dtype=torch.float64, device=logits_BV.device)[:, None]
        for values in ([j.temperature for j in drawn], [j.top_p for j in drawn], [j.random.random() for j in drawn])
    )
    scaled_SV = logits_BV[rows].double() / temperature_S1
    probability_SV, order_SV = torch.softmax(scaled_SV, dim=-1).sort(dim=-1, descending=True)
    before_SV = probability_SV.cumsum(dim=-1) - probability_SV
    kept_SV = probability_SV.masked_fill(before_SV >= top_p_S1, 0.0)
    sums_SV = kept_SV.cumsum(dim=-1)
    place_S1 = torch.searchsorted(sums_SV, uniform_S1 * sums_SV[:, -1:], right=True)
    last_S1 = (kept_SV > 0.0).sum(dim=-1, keepdim=True) - 1
    chosen_B[rows] = order_SV.gather(1, torch.minimum(place_S1, last_S1)).squeeze(1)
    return chosen_B
