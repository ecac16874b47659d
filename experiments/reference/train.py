"""Trains the embedded reference model (or a narrower control) on the invented world's text.

    python -m experiments.reference.train --steps 6000 --out outputs/reference/main
    python -m experiments.reference.train --steps 6000 --hidden 128 --out outputs/reference/half

The text comes from `phase8.world.corpus.documents(seed=1)`, is tokenised once into `tokens.bin` and read front to
back, each token once. Matrices are trained with Muon, embeddings and norms with AdamW, on FP32 master weights; the
forward and backward passes run in bfloat16. The learning rate warms up, stays, and falls to zero over the last
quarter. A checkpoint is written every few minutes; started again with the same `--out`, training resumes from it.
At the end (and at each checkpoint) `--out`/model holds a Hugging Face directory.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from phase8.world.corpus import TRAINING_SEED, documents

VOCABULARY = 2048
CONTEXT = 256
BOS = "<|endoftext|>"


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the first 12,000 documents, with GPT-2's split.

    While merges are learned every digit stands alone, so that no token holds two digits. Text is then cut as GPT-2
    cuts it, a rule that other runtimes (llama.cpp) know by name; without merges between them, digits stay apart.
    """
    tokenizer = Tokenizer(models.BPE())
    by_digit = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(by_digit, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(TRAINING_SEED), 12_000), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token="<|pad|>", model_max_length=512
    )


def write_tokens(tokenizer: PreTrainedTokenizerFast, path: Path, count: int) -> None:
    """Writes `count` token ids (uint16) of the training stream to `path`, whole or not at all."""
    stream: Iterator[str] = documents(TRAINING_SEED)
    partial = path.with_suffix(".part")
    written = 0
    with partial.open("wb") as file:
        while written < count:
            encoded = tokenizer.backend_tokenizer.encode_batch_fast(list(islice(stream, 20_000)))
            ids = np.concatenate([np.asarray(one.ids, dtype=np.uint16) for one in encoded])[: count - written]
            ids.tofile(file)
            written += len(ids)
    os.replace(partial, path)


def build_model(hidden: int, layers: int, bos_id: int, pad_id: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings; the feed-forward width is 2.75 times `hidden`, heads have 64 dimensions."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, head_dim=64,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=bos_id, eos_token_id=bos_id,
        pad_token_id=pad_id, initializer_range=hidden**-0.5 / 2, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def schedule(step: int, steps: int) -> float:
    """Learning-rate factor: 100 steps up, flat, then linearly to zero over the last 30 %."""
    decay_from = int(steps * 0.7)
    if step < decay_from:
        return min(1.0, (step + 1) / 100)
    return max(0.0, (steps - step) / (steps - decay_from))


class Trainer:
    """Model in bfloat16, FP32 master weights, two optimisers, and their checkpoint."""

    def __init__(self, model: LlamaForCausalLM, device: str, matrix_lr: float, vector_lr: float) -> None:
        self.master = {name: p.detach().clone().to(device) for name, p in model.named_parameters()}
        self.model = model.to(device=device, dtype=torch.bfloat16)
        self.live = dict(self.model.named_parameters())
        matrices = [p for n, p in self.master.items() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.master.items() if p.ndim != 2 or "embed" in n]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=vector_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.base_lrs = [matrix_lr, vector_lr]

    def update(self, factor: float) -> float:
        """One optimiser step from the live gradients; returns the gradient norm before clipping."""
        for name, parameter in self.live.items():
            self.master[name].grad = parameter.grad.float()  # type: ignore[union-attr]
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.master.values(), 1.0)
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
        with torch.no_grad():
            for name, parameter in self.live.items():
                parameter.copy_(self.master[name])
        return float(norm)

    def state(self) -> dict[str, object]:
        return {"master": self.master, "optimizers": [o.state_dict() for o in self.optimizers]}

    def load(self, state: dict) -> None:
        with torch.no_grad():
            for name, value in state["master"].items():
                self.master[name].copy_(value)
                self.live[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, out: Path, progress: dict[str, object]) -> None:
    partial = out / "checkpoint.part"
    torch.save({**trainer.state(), "progress": progress}, partial)
    os.replace(partial, out / "checkpoint.pt")
    trainer.model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    partial = out / "loss.part"
    partial.write_text(json.dumps(progress))
    os.replace(partial, out / "progress.json")


def train(args: argparse.Namespace) -> None:
    """Trains to `args.steps`, resuming from `args.out`/checkpoint.pt if there is one."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    shared = Path(args.tokens or out)
    shared.mkdir(parents=True, exist_ok=True)
    if (shared / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(shared)
    else:
        tokenizer = train_tokenizer()
        tokenizer.save_pretrained(shared)
    per_step = args.batch * CONTEXT
    needed = args.steps * per_step + 1
    token_file = shared / "tokens.bin"
    if not token_file.exists() or token_file.stat().st_size < 2 * needed:
        print(f"tokenising {needed:,} tokens", flush=True)
        write_tokens(tokenizer, token_file, needed)
    tokens = np.memmap(token_file, dtype=np.uint16, mode="r")

    model = build_model(args.hidden, args.layers, tokenizer.bos_token_id, tokenizer.pad_token_id)
    trainer = Trainer(model, device, args.matrix_lr, args.vector_lr)
    print(f"{sum(p.numel() for p in trainer.master.values()):,} parameters on {device}", flush=True)
    losses: list[tuple[int, float]] = []
    start, trained_s = 0, 0.0
    if (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", weights_only=True, map_location=device)
        trainer.load(state)
        progress = state["progress"]
        start, trained_s, losses = progress["step"], progress["trained_s"], progress["losses"]
        print(f"resuming at step {start}", flush=True)

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        logits = trainer.model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    step_loss = torch.compile(loss_of) if args.compile else loss_of
    trainer.model.train()
    began = saved = time.monotonic()
    recent: list[float] = []
    for step in range(start, args.steps):
        window = torch.from_numpy(tokens[step * per_step : (step + 1) * per_step + 1].astype(np.int64)).to(device)
        loss = step_loss(window[:-1].view(args.batch, CONTEXT), window[1:].view(args.batch, CONTEXT))
        loss.backward()
        norm = trainer.update(schedule(step, args.steps))
        recent.append(loss.item())
        now = time.monotonic()
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            mean = sum(recent) / len(recent)
            recent.clear()
            losses.append((step + 1, mean))
            rate = (step + 1 - start) * per_step / (now - began)
            left = (args.steps - step - 1) * per_step / rate
            pace = f"{rate:.0f} tok/s {left / 60:.1f} min left"
            print(f"step {step + 1} loss {mean:.4f} norm {norm:.2f} {pace}", flush=True)
        if now - saved > args.save_every_s or step + 1 == args.steps:
            saved = now
            progress = {
                "step": step + 1, "steps": args.steps, "tokens": (step + 1) * per_step,
                "trained_s": trained_s + now - began, "losses": losses, "arguments": vars(args),
                "parameters": sum(p.numel() for p in trainer.master.values()),
            }  # fmt: skip
            _save(trainer, tokenizer, out, progress)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", required=True, help="directory of checkpoints and the exported model")
    parser.add_argument("--tokens", help="directory of tokenizer and token file, shared between runs")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--matrix-lr", type=float, default=4e-3)
    parser.add_argument("--vector-lr", type=float, default=4e-3)
    parser.add_argument("--save-every-s", type=float, default=240.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    train(arguments)
