"""Which part of a network a trained stage keeps, and how large a part suits a budget.

The same bytes can be few bits for each of many weights, or many for each of few. After some thousand steps the best is
two to three bits, on two models and at 40x and 100x (experiments/LOG.md, 2026-11-28): the embedded model at 40x, in
equal time, ends at a divergence of 0.072 with 1.4 bits a weight, 0.061 with 1.9, 0.057 with 2.2 and 0.058 with 2.7;
with half of each head's channels at 0.053 with 2.3 and 2.8. So `suited` keeps as many channels and units as leave each
weight `bits`, and half of a head's channels where that is `LEAST_CHANNELS` or more: TinyStories' heads of 8 channels
did not bear it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from phase8.train.heads import channels_of
from phase8.train.slicing import why_not

LEAST_CHANNELS = 32
"""Of a head, that half of them have to be to suffice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Which part of the network is kept, as shares."""

    width: float = 1.0
    units: float = 1.0
    heads: float = 1.0
    head_size: float = 1.0
    """Of each kept head's channels."""
    shared: int = 1
    """This many layers in a row have the same integers."""

    @property
    def narrower(self) -> bool:
        """Whether anything is left out."""
        return min(self.width, self.units, self.heads, self.head_size) < 1.0

    def of(self, network: nn.Module) -> dict[str, int]:
        """Channels, feed-forward units (multiples of 8 where the original's are), key-value heads and their channels
        (an even number) to keep."""
        config = network.config
        return {
            "width": _share(config.hidden_size, self.width),
            "units": _share(config.intermediate_size, self.units),
            "heads": _share(config.num_key_value_heads, self.heads),
            "head_size": 2 * _share(channels_of(config) // 2, self.head_size),
        }

    def told(self, network: nn.Module) -> str:
        """For a person."""
        config, kept = network.config, self.of(network)
        return (
            f"{kept['width']} of {config.hidden_size} channels, {kept['units']} of {config.intermediate_size} "
            f"feed-forward units, {kept['heads']} of {config.num_key_value_heads} key-value heads"
            + (f" with {kept['head_size']} of {channels_of(config)} channels each" if self.head_size < 1.0 else "")
        )


def suited(
    network: nn.Module,
    budget_bytes: int,
    bits: float,
    *,
    width: float | None = None,
    units: float | None = None,
    heads: float = 1.0,
    head_size: float | None = 1.0,
    shared: int = 1,
) -> Shape:
    """The shape whose weights have `bits` each in the budget; a share that is given stays. Width and units otherwise
    are one share, and a head's channels as the module's text says.

    A network that cannot be narrowed, or whose weights all have their bits, keeps all.
    """
    config, reason = network.config, why_not(network)

    def fits(shape: Shape) -> bool:
        return 8 * budget_bytes >= bits * stored_weights(config, shape)

    def shape(share: float) -> Shape:
        return Shape(
            width=share if width is None else width,
            units=share if units is None else units,
            heads=heads,
            head_size=head_size,
            shared=shared,
        )

    if head_size is None:
        head_size = 1.0
        if reason is None and not fits(shape(1.0)) and channels_of(config) // 2 >= LEAST_CHANNELS:
            head_size = 0.5
    if (width is not None and units is not None) or reason is not None or fits(shape(1.0)):
        return shape(1.0)
    low, high = 0.01, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(shape(middle)) else (low, middle)
    return shape(low)


def stored_weights(config: Any, shape: Shape) -> float:
    """How many weights of Llama's layout have integers of their own, by shares that are not rounded yet."""
    width, units = shape.width * config.hidden_size, shape.units * config.intermediate_size
    size = shape.head_size * channels_of(config)
    of_heads = shape.heads * size * (config.num_attention_heads + config.num_key_value_heads)
    layers = -(-config.num_hidden_layers // shape.shared)
    embeddings = 1 if config.tie_word_embeddings else 2
    return width * (embeddings * config.vocab_size + layers * (2 * of_heads + 3 * units))


def _share(whole: int, share: float) -> int:
    unit = 8 if whole % 8 == 0 and whole >= 64 else 1
    return max(unit, min(whole, unit * round(whole * share / unit)))
