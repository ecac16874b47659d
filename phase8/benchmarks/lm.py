"""A language model behind lm-eval's interface, at the cost of its forward passes.

Scores are those of lm-eval's own `HFLM`, item for item; three things make them cheaper:

* All choices of one question share one row: the context once, then each choice, which sees the context and itself but
  not its neighbours (a 4-D attention mask, and position ids that start anew after the context).

      tokens     The sky is | blue deep | green        scored: `blue` from the output at `is`, `deep` from the
      positions   0   1   2    3    4     3                     output at `blue`, `green` from the output at `is`

* The output head runs only where a token is scored, not on every position.
* Encoding and batching are planned once per set of requests and kept (`PlanCache`): every stage asks the same.

Whether an architecture takes such masks, and whether its logits are its output head on its last hidden state, is found
out by scoring the first batch both ways; where the two differ, every later batch runs the ordinary way.

Generation is greedy, or sampled where a task asks for it, in batches of similar length with left padding; a row leaves
the batch when it is done. A sampled answer depends on its prompt and on how often the prompt was asked before, not on
what else is in the batch.

Shapes: B rows, L tokens of a row, C scored tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from phase8.errors import BenchmarkError

Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all)."""

ROWS_PER_GENERATION = 256
SELF_CHECK_ROWS = 4
SELF_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_PRECISION_TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are run together, and which of their outputs score what.

    `tokens_BL`, `positions_BL`; `segments_BL`: 0 context, 1, 2, ... the choices, -1 padding. For each scored token:
    `outputs_C` (flat index of the output that predicts it), `targets_C` (its id), `requests_C` (which request).
    """

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor
    segments_BL: torch.Tensor
    outputs_C: torch.Tensor
    targets_C: torch.Tensor
    requests_C: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything about a set of requests that does not depend on the weights."""

    encoded: list[tuple[list[int], list[int]]]
    batches: list[_Batch]
    canonical: np.ndarray
    """For each request, the number of the first equal one: equal requests are scored once."""
    prompts: int
    cut: int
    """How many different contexts there are, and how many of them did not fit."""


@dataclass(slots=True)
class PlanCache:
    """Encoded and batched requests by their content, kept by a `Suite` from one evaluation to the next."""

    plans: dict[Any, _Plan] = field(default_factory=dict)
    prompts: dict[Any, list[int]] = field(default_factory=dict)


class Phase8LM(TemplateLM):
    """A causal language model in memory, for lm-eval.

    Args:
        model: in evaluation mode afterwards; its dtype and device are used as they are.
        tokenizer: its tokenizer; special tokens are added as its post-processor says.
        cache: shared between models with the same tokenizer, so that requests are encoded once.
        max_length: tokens of the longest window; the model's own by default.
        batch_tokens: tokens per forward pass, padding included.
        fit_answers: where a task asks for answers that fill the window, give them half of it instead of refusing.
        on_progress: called after every batch.

    Raises:
        BenchmarkError: the tokenizer has no end-of-text token, or its ids exceed the model's vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        cache: PlanCache | None = None,
        max_length: int | None = None,
        batch_tokens: int = 8192,
        fit_answers: bool = False,
        on_progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.cache = cache if cache is not None else PlanCache()
        self.batch_tokens = batch_tokens
        self.fit_answers = fit_answers
        self.on_progress = on_progress
        self.prompts = self.cut_prompts = 0
        """Prompts so far, and those of them whose left end did not fit into the window."""
        self.shortened: tuple[int, int] | None = None
        """Tokens of an answer that a task asked for, and that it got, where it asked for more than there can be."""
        self.packed: bool | None = None
        """Whether packed rows give this model's ordinary scores; None until the first batch has told."""
        self._device = model.device
        self._max_length = max_length or resolve_max_length(model.config, tokenizer, default=2048)
        if tokenizer.eos_token_id is None:
            raise BenchmarkError(
                "the tokenizer has no end-of-text token", where="tokenizer.eos_token", fix="set eos_token in its config"
            )
        head = model.get_output_embeddings()
        if head is not None and len(tokenizer) > head.weight.shape[0]:
            raise BenchmarkError(
                f"the tokenizer has {len(tokenizer)} entries, the model only {head.weight.shape[0]}",
                where="tokenizer",
                fix="give the tokenizer that the model was trained with",
            )
        self._fingerprint = _fingerprint(tokenizer, self._max_length)
        self._token_text: dict[int, str] = {}

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        return 256

    @property
    def tokenizer_name(self) -> str:
        return self._fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, with the tokenizer's special tokens unless the text already starts with the prefix."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False, **kwargs)

    # -- scoring ------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability in nats, and whether it is greedy."""
        pairs = [request.args for request in requests]
        key = (self._fingerprint, self.batch_tokens, tuple(pairs))
        if key not in self.cache.plans:
            self.cache.plans[key] = self._plan(self._encode_pairs(pairs))
        plan = self.cache.plans[key]
        self.prompts, self.cut_prompts = self.prompts + plan.prompts, self.cut_prompts + plan.cut
        return self._score(plan)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._score(self._plan([(context, continuation) for _, context, continuation in requests]))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """For each text: its log-probability in nats, in windows of `max_length` that do not overlap."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(
                token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                windows.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._score(self._plan(windows)), strict=True):
            totals[owner] += score
        return totals

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """lm-eval's convention: spaces at the end of a context belong to the continuation; an empty context is BOS."""
        moved = []
        for context, continuation in pairs:
            stripped = context.rstrip()
            moved.append((stripped, context[len(stripped) :] + continuation) if context else (context, continuation))
        texts = {context for context, _ in moved if context} | {a + b for a, b in moved if a}
        ids = self._encode_all(sorted(texts))
        encoded = []
        for context, continuation in moved:
            if context:
                context_ids = ids[context]
                encoded.append((context_ids, ids[context + continuation][len(context_ids) :]))
                continue
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            if tokens and tokens[0] == self.prefix_token_id:
                encoded.append((tokens[:1], tokens[1:]))
            else:
                encoded.append(([self.prefix_token_id], tokens))
        return encoded

    def _encode_all(self, texts: list[str]) -> dict[str, list[int]]:
        """Token ids by text; one call to the tokenizer for all that need nothing special."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        ordinary = [text for text in texts if not has_bos_prefix(text, prefix)]
        ids = dict(zip(ordinary, self.tokenizer(ordinary, verbose=False)["input_ids"], strict=True)) if ordinary else {}
        return ids | {text: self.tok_encode(text) for text in texts if text not in ids}

    def _plan(self, encoded: list[tuple[list[int], list[int]]]) -> _Plan:
        """Groups requests by context into rows, rows by length into batches.

        Raises:
            BenchmarkError: a continuation is empty, or longer than the model's window.
        """
        rows: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
        canonical = np.zeros(len(encoded), np.int64)
        cut: set[tuple[int, ...]] = set()
        for number, (context, continuation) in enumerate(encoded):
            if not context or not continuation or len(continuation) > self.max_length:
                raise BenchmarkError(
                    f"request {number} has {len(context)} context and {len(continuation)} continuation tokens",
                    where="benchmark item",
                    fix=f"both need at least one token, the continuation at most {self.max_length}",
                )
            # As in HFLM: what does not fit is cut off at the left, the last token is predicted but not fed.
            room = self.max_length + 1 - len(continuation)
            if len(context) > room:
                cut.add(tuple(context))
            row = rows.setdefault(tuple(context[-room:]), {})
            canonical[number] = row.setdefault(tuple(continuation), number)
        ordered = sorted(rows.items(), key=lambda row: -_row_length(row))
        batches = [_collate(batch, self._device) for batch in _split(ordered, self.batch_tokens)]
        return _Plan(encoded, batches, canonical, len({tuple(context) for context, _ in encoded}), len(cut))

    @torch.inference_mode()
    def _score(self, plan: _Plan) -> list[tuple[float, bool]]:
        if plan.batches and self.packed is None:
            self.packed = self._packing_agrees(plan)
        if self.packed is False:
            return self._score_plainly(plan)
        sums = torch.zeros(len(plan.encoded), dtype=torch.float32, device=self._device)
        wrong = torch.zeros(len(plan.encoded), dtype=torch.float32, device=self._device)
        done, total = 0, len(plan.encoded)
        for batch in plan.batches:
            logp_C, greedy_C = self._run_packed(batch)
            sums.index_add_(0, batch.requests_C, logp_C.float())
            wrong.index_add_(0, batch.requests_C, (~greedy_C).float())
            done += int(batch.requests_C.unique().numel())
            self._report(done, total)
        self._report(total, total)
        scores, exact = sums.tolist(), (wrong == 0).tolist()
        return [(scores[number], exact[number]) for number in plan.canonical.tolist()]

    def _run_packed(self, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability (C) of each scored token, and whether it was the likeliest (C)."""
        hidden_BLD = self.model.base_model(
            input_ids=batch.tokens_BL,
            position_ids=batch.positions_BL,
            attention_mask=_mask(batch.segments_BL, self.model.dtype),
            use_cache=False,
        )[0]
        # Choices of one context share the output that predicts their first token: the head runs on it once.
        outputs, inverse_C = batch.outputs_C.unique(return_inverse=True)
        logits = self.model.get_output_embeddings()(hidden_BLD.flatten(0, 1)[outputs])
        logp_C = torch.log_softmax(logits, dim=-1)[inverse_C, batch.targets_C]
        return logp_C, logits.argmax(dim=-1)[inverse_C] == batch.targets_C

    def _score_plainly(self, plan: _Plan) -> list[tuple[float, bool]]:
        """One row per request, no mask (padding at the right cannot be seen), logits from the model itself."""
        numbers = sorted(set(plan.canonical.tolist()), key=lambda n: -sum(map(len, plan.encoded[n])))
        results: dict[int, tuple[float, bool]] = {}
        width = max(1, self.batch_tokens // max((sum(map(len, plan.encoded[n])) for n in numbers), default=1))
        for start in range(0, len(numbers), width):
            chunk = numbers[start : start + width]
            for number, scores in zip(chunk, self._run_plain([plan.encoded[n] for n in chunk]), strict=True):
                results[number] = scores
            self._report(len(results), len(plan.encoded))
        self._report(len(plan.encoded), len(plan.encoded))
        return [results[number] for number in plan.canonical.tolist()]

    def _run_plain(self, encoded: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        inputs = [(context + continuation)[-(self.max_length + 1) :][:-1] for context, continuation in encoded]
        tokens_BL = torch.zeros(len(inputs), max(map(len, inputs)), dtype=torch.long, device=self._device)
        for row, tokens in zip(tokens_BL, inputs, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, device=self._device)
        logits_BLV = self.model(input_ids=tokens_BL, use_cache=False).logits
        results = []
        for logits_LV, tokens, (_, continuation) in zip(logits_BLV, inputs, encoded, strict=True):
            logp = torch.log_softmax(logits_LV[len(tokens) - len(continuation) : len(tokens)], dim=-1)
            targets = torch.tensor(continuation, device=self._device)
            value = float(logp.gather(1, targets[:, None]).sum())
            results.append((value, bool((logp.argmax(dim=-1) == targets).all())))
        return results

    def _packing_agrees(self, plan: _Plan) -> bool:
        """Scores a few rows both ways. A model that cannot run packed rows at all may raise what it likes."""
        base = self.model.base_model
        if base is self.model or not isinstance(self.model.get_output_embeddings(), nn.Module):
            return False
        if "position_ids" not in inspect.signature(base.forward).parameters:
            return False
        by_context: dict[tuple[int, ...], list[int]] = {}
        for number, (context, _) in enumerate(plan.encoded):
            by_context.setdefault(tuple(context), []).append(number)
        widest = sorted(by_context.values(), key=len, reverse=True)[:SELF_CHECK_ROWS]
        encoded = [plan.encoded[number] for numbers in widest for number in numbers]
        plain = torch.tensor([score for score, _ in self._run_plain(encoded)])
        sample = self._plan(encoded)
        packed = torch.zeros(len(encoded))
        try:
            for batch in sample.batches:
                logp_C, _ = self._run_packed(batch)
                packed.index_add_(0, batch.requests_C.cpu(), logp_C.float().cpu())
        except (TypeError, ValueError, RuntimeError):
            return False
        packed = packed[torch.from_numpy(sample.canonical)]
        tolerance = SELF_CHECK_TOLERANCE.get(self.model.dtype, HALF_PRECISION_TOLERANCE)
        return bool(torch.allclose(packed, plain, rtol=tolerance / 10, atol=tolerance))

    # -- generation ---------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, cut before the first stop sequence; sampled with `do_sample`, `temperature` and `top_p`.

        Raises:
            BenchmarkError: a task asks for beams or another way of sampling, or leaves no room for its context.
        """
        eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        jobs: list[_Job] = []
        asked: dict[str, int] = {}
        for number, request in enumerate(requests):
            context, arguments = request.args
            settings = normalize_gen_kwargs(arguments, self.max_gen_toks)
            unknown = set(settings) - {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}
            if unknown - {"num_beams"} or settings.get("num_beams", 1) != 1:
                raise BenchmarkError(
                    f"{', '.join(sorted(unknown))} cannot be set: generation is greedy, or sampled by temperature and "
                    "top_p",
                    where=str(arguments),
                    fix="remove it",
                )
            new_tokens = settings["max_gen_toks"]
            if new_tokens >= self.max_length and self.fit_answers:
                self.shortened = (new_tokens, self.max_length // 2)
                new_tokens = self.max_length // 2
            if new_tokens >= self.max_length:
                raise BenchmarkError(
                    f"max_gen_toks is {new_tokens}, the model's whole window {self.max_length}",
                    where=str(arguments),
                    fix="lower max_gen_toks",
                )
            key = (self._fingerprint, context)
            if key not in self.cache.prompts:
                self.cache.prompts[key] = self.tok_encode(context)
            prompt = self.cache.prompts[key][-(self.max_length - new_tokens) :]
            self.prompts += 1
            self.cut_prompts += len(prompt) < len(self.cache.prompts[key])
            job = _Job(number, prompt, new_tokens, handle_stop_sequences(settings["until"], eos))
            if settings["do_sample"] and settings["temperature"] > 0.0:
                repeat = asked[context] = asked.get(context, -1) + 1
                job.temperature, job.top_p = settings["temperature"], settings.get("top_p", 1.0)
                job.random = np.random.default_rng([repeat, *hashlib.sha256(context.encode()).digest()])
            jobs.append(job)
        order = sorted(jobs, key=lambda job: -len(job.prompt))
        texts = [""] * len(jobs)
        done = 0
        for start in range(0, len(order), ROWS_PER_GENERATION):
            for job in self._generate(order[start : start + ROWS_PER_GENERATION]):
                text = self.tokenizer.decode(job.produced, skip_special_tokens=True)
                texts[job.number] = postprocess_generated_text(text, stop=job.until, think_end_token=None)
                done += 1
                self._report(done, len(jobs))
        return texts

    @torch.inference_mode()
    def _generate(self, jobs: list[_Job]) -> Iterator[_Job]:
        """Yields each job when it is done. Left padding; rows leave once a quarter of the batch is idle."""
        ends = self.model.generation_config.eos_token_id
        ends = {self.eot_token_id} | set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        length = max(len(job.prompt) for job in jobs)
        tokens_BL = torch.full((len(jobs), length), self.eot_token_id)
        seen_BL = torch.zeros(len(jobs), length, dtype=torch.long)
        for row, job in enumerate(jobs):
            tokens_BL[row, length - len(job.prompt) :] = torch.tensor(job.prompt)
            seen_BL[row, length - len(job.prompt) :] = 1
        seen_BL = seen_BL.to(self._device)
        fed_BL = tokens_BL.to(self._device)
        positions_BL = (seen_BL.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        accepted = inspect.signature(self.model.forward).parameters
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        live: list[_Job | None] = list(jobs)
        while True:
            logits_BV = self.model(
                input_ids=fed_BL,
                attention_mask=seen_BL,
                position_ids=positions_BL,
                past_key_values=cache,
                use_cache=True,
                **last_only,
            ).logits[:, -1]
            chosen_B = _choose(logits_BV, live)
            for row, token in enumerate(chosen_B.tolist()):
                job = live[row]
                if job is None:
                    continue
                if token not in ends:
                    job.produced.append(token)
                if token in ends or len(job.produced) >= job.new_tokens or self._stopped(job, token):
                    live[row] = None
                    yield job
            keep = [row for row, job in enumerate(live) if job is not None]
            if not keep:
                return
            fed_BL = chosen_B[:, None]
            positions_BL = positions_BL[:, -1:] + 1
            seen_BL = torch.cat([seen_BL, seen_BL.new_ones(len(live), 1)], dim=1)
            if len(keep) <= 3 * len(live) // 4:
                rows = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(rows)
                fed_BL, positions_BL, seen_BL = fed_BL[rows], positions_BL[rows], seen_BL[rows]
                live = [live[row] for row in keep]

    def _stopped(self, job: _Job, token: int) -> bool:
        """Whether the newest token completes a stop sequence. Most hold no last character of any."""
        text = self._token_text.get(token)
        if text is None:
            text = self._token_text[token] = self.tokenizer.decode([token])
        if "\ufffd" not in text and not any(stop[-1:] in text for stop in job.until if stop):
            return False
        # A stop sequence has at most one token per byte.
        window = max(len(stop.encode()) for stop in job.until) + 2
        tail = self.tokenizer.decode(job.produced[-window:])
        return any(stop in tail for stop in job.until if stop)

    def _report(self, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total)


@dataclass(slots=True)
class _Job:
    """One text to continue."""

    number: int
    prompt: list[int]
    new_tokens: int
    until: list[str]
    produced: list[int] = field(default_factory=list)
    temperature: float = 0.0
    top_p: float = 1.0
    random: np.random.Generator | None = None
    """Of a sampled answer; None for a greedy one."""


def _choose(logits_BV: torch.Tensor, jobs: Sequence[_Job | None]) -> torch.Tensor:
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


_Row = tuple[tuple[int, ...], dict[tuple[int, ...], int]]
"""A context, and its continuations with the number of the request that each answers."""


def _row_length(row: _Row) -> int:
    """Tokens that the model is fed: the context, and every continuation without its last token."""
    context, continuations = row
    return len(context) + sum(len(continuation) - 1 for continuation in continuations)


def _split(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows, longest first, in batches of about `batch_tokens` tokens, padding included."""
    start = 0
    while start < len(rows):
        width = max(1, batch_tokens // _row_length(rows[start]))
        yield rows[start : start + width]
        start += width


def _collate(rows: list[_Row], device: torch.device) -> _Batch:
    length = max(map(_row_length, rows))
    tokens = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    segments = np.full((len(rows), length), -1, np.int32)
    outputs: list[int] = []
    targets: list[int] = []
    requests: list[int] = []
    for row, (context, continuations) in enumerate(rows):
        size = len(context)
        tokens[row, :size] = context
        positions[row, :size] = np.arange(size)
        segments[row, :size] = 0
        end = size
        for segment, (continuation, number) in enumerate(continuations.items(), start=1):
            fed = len(continuation) - 1
            tokens[row, end : end + fed] = continuation[:-1]
            positions[row, end : end + fed] = np.arange(size, size + fed)
            segments[row, end : end + fed] = segment
            first = row * length
            outputs += [first + size - 1, *range(first + end, first + end + fed)]
            targets += continuation
            requests += [number] * len(continuation)
            end += fed
    arrays = (tokens, positions, segments, np.array(outputs), np.array(targets), np.array(requests))
    return _Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def _mask(segments_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask (B, 1, L, L): tokens see the context and their own segment so far.

    Added, not Boolean: every attention implementation takes that form. Padding sees itself, so that no row is empty.
    """
    length = segments_BL.shape[1]
    key_B1L, query_BL1 = segments_BL[:, None, :], segments_BL[:, :, None]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    allowed_BLL = earlier_LL & ((key_B1L == 0) | (key_B1L == query_BL1))
    mask_BLL = torch.zeros(allowed_BLL.shape, dtype=dtype, device=segments_BL.device)
    return mask_BLL.masked_fill_(~allowed_BLL, torch.finfo(dtype).min)[:, None]


def _fingerprint(tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Equal for tokenizers that encode alike: a stage's model brings its own copy of the same one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} {max_length}"
    return hashlib.sha256(f"{content}\n{special}".encode()).hexdigest()
