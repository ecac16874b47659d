"""The stages of a run, a line each, in the order of the descent.

A stage is a codec in a folder of its name, `phase8/codecs/NAME/`:

    settings.py   a subclass of `StageSettings`
    decode.py     layout(settings, shapes), decode(group): streams -> weights, numpy alone
    encode.py     CODEC: weights -> streams; trainable(group)

Everything that differs from stage to stage elsewhere (labels, colours, choices on the command line, thresholds, the
columns of a log) follows from this table. `docs/extend.md` shows how to add a codec.
"""

from __future__ import annotations

from dataclasses import dataclass

from phase8.codecs.hyper.settings import HyperConfig
from phase8.codecs.seedlm.settings import SeedLMConfig
from phase8.codecs.settings import StageSettings
from phase8.codecs.vptq.settings import VPTQConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage is, to everybody but its codec."""

    name: str
    """Of its folder, its settings and its artifacts."""
    title: str
    """For people."""
    short: str
    """The title, where there is little room."""
    level: str
    """What `result.json` calls an artifact of this stage."""
    colours: tuple[str, str]
    """In plots and reports: on light and on dark ground."""
    settings: type[StageSettings]
    core: float
    """Default threshold of its gate: mean retention of the core benchmarks."""
    expert: float
    """Mean retention of the experts."""
    rule: float
    """Score of each eudaimonia rule."""
    perplexity: float = 0.05
    """Largest rise in bits per byte over the baseline, where held-out text judges."""


STAGES = (
    Stage("seedlm", "SeedLM", "SeedLM", "seedlm", ("#0072b2", "#5db5ee"), SeedLMConfig, 0.98, 0.98, 0.65, 0.02),
    Stage("vptq", "VPTQ", "VPTQ", "vptq", ("#c97b00", "#eeb04a"), VPTQConfig, 0.95, 0.93, 0.65, 0.07),
    Stage(
        "hyper",
        "Hyper-Compression",
        "Hyper",
        "hypercompression",
        ("#00835f", "#3cc79c"),
        HyperConfig,
        0.90,
        0.88,
        0.60,
        0.16,
    ),
)

NAMES = tuple(stage.name for stage in STAGES)
BY_LEVEL = {stage.level: stage.name for stage in STAGES}
CODECS = ("plain", *NAMES, "lattice")
"""What a group in a file may be coded with."""
