"""`python -m phase8.runtime ARTIFACT --prompt TEXT`: let a compressed model continue a text, with numpy alone."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from phase8.errors import Phase8Error
from phase8.output import run_program
from phase8.printable import printable
from phase8.runtime.generate import generate, load_tokenizer
from phase8.runtime.llama import load_model


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except Phase8Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m phase8.runtime", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="such as outputs/DATE/TIME/artifacts/vptq")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="what to continue (needs the tokenizers library)")
    prompt.add_argument("--ids", metavar="N,N,...", help="the same as token numbers; the answer comes as numbers too")
    parser.add_argument("--tokens", type=int, default=60, help="most tokens to write (default 60)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--seed", type=int, default=0, help="for a temperature above 0")
    parser.add_argument("--verbose", action="store_true", help="say how long it took, on standard error")
    return parser


def _run(options: argparse.Namespace) -> int:
    begun = time.perf_counter()
    model = load_model(options.artifact)
    loaded = time.perf_counter()
    if options.ids is not None:
        try:
            ids = [int(part) for part in options.ids.split(",")]
        except ValueError as error:
            raise Phase8Error("--ids takes whole numbers", where="--ids", fix="for example --ids 1,17,4") from error
        tokenizer = None
    else:
        tokenizer = load_tokenizer(options.artifact)
        ids = tokenizer.encode(options.prompt).ids
    started = time.perf_counter()
    count, shown = 0, ""
    settings = {"tokens": options.tokens, "temperature": options.temperature, "seed": options.seed}
    for token in generate(model, list(ids), **settings):
        count += 1
        ids.append(token)
        if tokenizer is None:
            print(token, end=" ", flush=True)
            continue
        text = tokenizer.decode(ids)
        if text.endswith("\ufffd"):  # half of a character: the other half is in the next token
            continue
        print(printable(text[len(shown) :]), end="", flush=True)
        shown = text
    if tokenizer is not None:
        print(printable(tokenizer.decode(ids)[len(shown) :]), end="")
    print()
    if options.verbose:
        each = 1000 * (time.perf_counter() - started) / max(count, 1)
        print(f"loaded in {loaded - begun:.2f} s; {count} tokens, {each:.1f} ms each", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_program(main)
