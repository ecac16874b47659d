"""A language model behind lm-eval's interface, at the cost of its forward passes.

Scores are those of lm-eval's own `HFLM`, item for item. What makes them cheaper: all choices of one question share one
row (`packing.py`), the output head runs only where a token is scored, and encoding and batching are planned once per
set of requests and kept (`PlanCache`), since every stage asks the same. How much of this an architecture bears with
these texts is checked and never assumed: `scoring.py` for log-likelihoods, `generation.py` for texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from phase8.benchmarks.generation import Generator, Job
from phase8.benchmarks.packing import Encoded, Plan, make_plan
from phase8.benchmarks.scoring import Scorer
from phase8.errors import BenchmarkError
from phase8.model.generation import end_tokens
from phase8.model.window import window as context_window

Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all)."""

ROWS_PER_GENERATION = 256


@dataclass(slots=True)
class PlanCache:
    """Encoded and batched requests by their content, kept by a `Suite` from one evaluation to the next."""

    plans: dict[Any, Plan] = field(default_factory=dict)
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
        self._device = model.device
        resolved = resolve_max_length(model.config, tokenizer, default=2048)
        resolved = resolved if resolved > 0 else 2048  # XLNet's -1 stands for no limit
        self._max_length = max_length or min(resolved, context_window(model) or resolved)
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
        self.scorer = Scorer(model, batch_tokens)
        ends = {self.eot_token_id, *end_tokens(model.generation_config)}
        self.generator = Generator(model, pad=self.eot_token_id, ends=ends, stopped=self._stopped)

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
        windows: list[Encoded] = []
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

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
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

    def _plan(self, encoded: list[Encoded]) -> Plan:
        return make_plan(encoded, self.max_length, self.batch_tokens, self._device)

    def _score(self, plan: Plan) -> list[tuple[float, bool]]:
        return self.scorer.score(plan, self._report)

    # -- generation ---------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, cut before the first stop sequence; sampled with `do_sample`, `temperature` and `top_p`.

        Raises:
            BenchmarkError: a task asks for beams or another way of sampling, or leaves no room for its context.
        """
        eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        jobs: list[Job] = []
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
            job = Job(number, prompt, new_tokens, handle_stop_sequences(settings["until"], eos))
            if settings["do_sample"] and settings["temperature"] > 0.0:
                repeat = asked[context] = asked.get(context, -1) + 1
                job.temperature, job.top_p = settings["temperature"], settings.get("top_p", 1.0)
                job.seed = [repeat, *hashlib.sha256(context.encode()).digest()]
            jobs.append(job)
        order = sorted(jobs, key=lambda job: -len(job.prompt))
        texts = [""] * len(jobs)
        for start in range(0, len(order), ROWS_PER_GENERATION):
            batch = order[start : start + ROWS_PER_GENERATION]
            self.generator.run(batch, lambda written, before=start: self._report(before + written, len(jobs)))
            for job in batch:
                text = self.tokenizer.decode(job.produced, skip_special_tokens=True)
                texts[job.number] = postprocess_generated_text(text, stop=job.until, think_end_token=None)
        return texts

    def _stopped(self, job: Job, token: int) -> bool:
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


def _fingerprint(tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Equal for tokenizers that encode alike: a stage's model brings its own copy of the same one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} {max_length}"
    return hashlib.sha256(f"{content}\n{special}".encode()).hexdigest()
