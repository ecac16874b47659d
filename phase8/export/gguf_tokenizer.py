"""A tokenizer in llama.cpp's terms, from what `tokenizer.json` says.

llama.cpp has two kinds of byte-pair encoding, and an artifact's tokenizer becomes one of them:

- **Byte-level** (`gpt2`): the tokens (bytes spelt as GPT-2 does) and the merges. How text is cut before merging is
  stored as a name only, one of those that llama.cpp has compiled in. If the tokenizer's cut has no name there, the
  nearest is written, and the export says how often it differed on sample lines.
- **SentencePiece-style** (`llama`): spaces become `\u2581`, characters that are no token become bytes (`<0x41>`), and
  there is no list of merges. Instead, of all neighbours whose text together is a token, those with the highest score
  are joined first. A token's score is here minus the rank of the merge that makes it, so both orders are the same
  wherever every way to make a token ranks alike; whether they are is tried on sample lines.

      merges  h e (0), \u2581 t (1), \u2581t he (2)      scores  he 0, \u2581t -1, \u2581the -2

Any other tokenizer is left out: Unigram, WordPiece, BPE that normalises text (llama.cpp does not) or that has no token
for every byte. The file opens and takes token numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

SPACE = "\u2581"


class Kind(IntEnum):
    """GGUF's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_LLAMA3 = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "llama-bpe": [_LLAMA3, _BYTES],
}
"""llama.cpp's name of a cut -> the steps of a `tokenizers` pre-tokenizer that cuts alike."""

SAMPLES = (
    "Once upon a time there was a miller, who kept seven grey geese.",
    "In 1984, 12345 of them (about 7.5 %) didn't fly.",
    "def add(a, b):\n    if a > 10:\n        return a + b\n\n\treturn None",
    "Question: what is 12 + 30?\nAnswer: 42\n\n\nQuestion:   next",
    "Ça va? Größe, naïve café; 東京は大きい… \U0001f600!",
    "A line that ends in blanks   \nand   another  one ",
    'https://example.org/a_b?c=d&e=f "quoted" <tag/> #1 $x = {y: [z]};',
    "ALL CAPS CamelCase snake_case kebab-case I'LL THEY'RE rock'n'roll",
)


class Described(NamedTuple):
    """What GGUF stores of a tokenizer."""

    model: str
    """`gpt2` or `llama`."""
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    """Of `gpt2`."""
    scores: list[float] | None
    """Of `llama`, one a token."""
    space_first: bool
    """Whether a text gets a space in front."""
    starts: bool
    ends: bool
    """Whether a text gets the token that begins, or ends, a text."""
    notes: tuple[str, ...] = ()


def describe(raw: str, content: Mapping[str, Any], vocab_size: int) -> Described | None:
    """A tokenizer in llama.cpp's terms; None where it has none for it.

    Args:
        raw: `tokenizer.json`; `content` the same, parsed.
        vocab_size: of the model; tokens beyond the tokenizer's are filled up.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is no `tokenizer.json`.
    """
    model = content["model"]
    if model.get("type") != "BPE":
        return None
    return _byte_level(raw, content, vocab_size) or _sentence_piece(raw, content, vocab_size)


def _byte_level(raw: str, content: Mapping[str, Any], vocab_size: int) -> Described | None:
    model, before = content["model"], content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    byte_level = any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps)
    if not byte_level or content.get("normalizer") or model.get("byte_fallback"):
        return None
    tokens, types = _tokens(content, vocab_size)
    pre, notes = _name_of_cut(raw, steps, whole_words=bool(model.get("ignore_merges")))
    starts, ends = _around(content)
    merges = [" ".join(pair) for pair in _merges(model)]
    return Described("gpt2", pre, tokens, types, merges, None, False, starts, ends, tuple(notes))


def _sentence_piece(raw: str, content: Mapping[str, Any], vocab_size: int) -> Described | None:
    model = content["model"]
    steps = _steps(content.get("normalizer"), "normalizers") + _steps(content.get("pre_tokenizer"), "pretokenizers")
    marks = any(step.get("content") == SPACE or step.get("replacement") == SPACE for step in steps)
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    if not marks or not byte_tokens <= model["vocab"].keys():
        return None
    tokens, types = _tokens(content, vocab_size)
    for number, token in enumerate(tokens):
        if token in byte_tokens:
            types[number] = Kind.BYTE
        elif token == model.get("unk_token"):
            types[number] = Kind.UNKNOWN
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(_merges(model)):
        ranks.setdefault(first + second, rank)
    # What no merge makes, and is more than a character, is joined last if at all.
    last = len(ranks)
    scores = [float(-ranks.get(token, 0 if len(token) < 2 else last)) for token in tokens]
    space_first = any(
        step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps
    )
    alike = _alike(raw, tokens, types, scores, space_first)
    notes = ()
    if alike < len(SAMPLES):
        notes = (
            f"llama.cpp joins by scores, this tokenizer by a list of merges; they gave the same tokens on {alike} of "
            f"{len(SAMPLES)} sample lines. Where it matters, give llama.cpp token numbers.",
        )
    starts, ends = _around(content)
    return Described("llama", "default", tokens, types, [], scores, space_first, starts, ends, notes)


def _tokens(content: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every token."""
    special = {token["id"]: token for token in content.get("added_tokens", [])}
    by_number = {number: text for text, number in content["model"]["vocab"].items()}
    by_number |= {number: token["content"] for number, token in special.items()}
    tokens, types = [], []
    for number in range(vocab_size):
        tokens.append(by_number.get(number, f"[PAD{number}]"))
        if number in special:
            kind = Kind.CONTROL if special[number]["special"] else Kind.USER_DEFINED
        else:
            kind = Kind.NORMAL if number in by_number else Kind.UNUSED
        types.append(int(kind))
    return tokens, types


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Older files write a merge as one text, newer ones as two."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(str(first), str(second)) for first, second in pairs]


def _steps(part: Mapping[str, Any] | None, several: str) -> list[Mapping[str, Any]]:
    return [] if part is None else list(part.get(several, [part]))


def _around(content: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a text gets a special token in front, and behind."""
    after = content.get("post_processor") or {}
    template: list[Any] = next((step["single"] for step in after.get("processors", [after]) if "single" in step), [])
    around = ["SpecialToken" in piece for piece in template] or [False]
    return around[0], around[-1]


def _alike(raw: str, tokens: list[str], types: list[int], scores: list[float], space_first: bool) -> int:
    """On how many sample lines joining by scores gives the tokenizer's own tokens."""
    from tokenizers import Tokenizer

    mine = Tokenizer.from_str(raw)
    texts = {token: n for n, token in enumerate(tokens) if types[n] in (Kind.NORMAL, Kind.USER_DEFINED)}
    numbers = {token: n for n, token in enumerate(tokens)}

    def theirs(line: str) -> list[int]:
        joined = join_by_scores((" " if space_first else "") + line, texts, scores)
        found: list[int] = []
        for piece in joined:
            found += [texts[piece]] if piece in texts else [numbers[f"<0x{byte:02X}>"] for byte in piece.encode()]
        return found

    return sum(mine.encode(line, add_special_tokens=False).ids == theirs(line) for line in SAMPLES)


def join_by_scores(text: str, tokens: Mapping[str, int], scores: Sequence[float]) -> list[str]:
    """llama.cpp's way: of all neighbours whose text together is a token, those of the highest score are joined first,
    the leftmost of equal ones."""
    pieces = list(text.replace(" ", SPACE))
    while True:
        best, place = float("-inf"), -1
        for at in range(len(pieces) - 1):
            number = tokens.get(pieces[at] + pieces[at + 1])
            if number is not None and scores[number] > best:
                best, place = scores[number], at
        if place < 0:
            return pieces
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


def _name_of_cut(raw: str, steps: list[dict[str, Any]], *, whole_words: bool) -> tuple[str, list[str]]:
    """The name of llama.cpp's cut that is the tokenizer's, or of the nearest, with a note.

    Args:
        whole_words: a word that is a token is not merged (`ignore_merges`); llama.cpp does so for `llama-bpe` only.
    """

    def essence(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in listed]

    for name, cut in CUTS.items():
        if essence(steps) == essence(cut) and whole_words == (name == "llama-bpe"):
            return name, []
    from tokenizers import Tokenizer

    mine = Tokenizer.from_str(raw)
    alike = {}
    for name, cut in CUTS.items():
        listed = [{"trim_offsets": True, **step} if step["type"] == "ByteLevel" else step for step in cut]
        other = Tokenizer.from_str(
            json.dumps({**json.loads(raw), "pre_tokenizer": {"type": "Sequence", "pretokenizers": listed}})
        )
        alike[name] = sum(mine.encode(line).ids == other.encode(line).ids for line in SAMPLES)
    name = max(alike, key=lambda key: alike[key])
    return name, [
        f"llama.cpp has no name for this tokenizer's way of cutting text; the nearest, {name!r}, gave the same tokens "
        f"on {alike[name]} of {len(SAMPLES)} sample lines. Where it matters, give llama.cpp token numbers."
    ]
