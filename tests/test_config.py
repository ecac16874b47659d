"""Settings: every file of conf/ composes, defaults agree, mistakes are named before any work."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from phase8.benchmarks.experts import EXPERT_BENCHMARKS, expert_map
from phase8.codecs.settings import StageSettings
from phase8.config import EXPERTS, STAGES, CompressionConfig
from phase8.errors import ConfigError

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
CHOICES = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra", "paths")
)


def composed(*overrides: str) -> dict:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=["paths.output_dir=outputs/run", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def test_composed_defaults_are_the_dataclass_defaults_but_for_what_the_default_variant_chooses():
    variant = {
        "max_retries": 3,
        "vptq.share": "model",
        "vptq.hessian_damping": 0.1,
        "hyper.trajectory_type": "lattice",
        "hyper.target_ratio": 40.2,
    }
    assert CompressionConfig.from_dict(composed()) == CompressionConfig().changed(variant)


def test_every_setting_stands_in_the_yaml():
    def names(settings, prefix=""):
        for key, value in settings.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{key}.")

    assert set(names(CompressionConfig().to_dict())) == set(names(composed()))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_validates(group, choice):
    overrides = [f"{group}={choice}"] if group != "experiment" else [f"+experiment={choice}"]
    if group == "experiment":
        overrides = [f"experiment={choice}"]
    if group == "model" and choice != "reference":
        overrides.append("model.path=somewhere/model")
    CompressionConfig.from_dict(composed(*overrides))


def test_an_experiment_has_the_last_word_but_for_the_command_line():
    config = CompressionConfig.from_dict(composed("experiment=quick"))
    assert (config.max_retries, config.benchmark_samples, config.grokfast.iterations) == (0, 40, 20)
    assert CompressionConfig.from_dict(composed("experiment=quick", "max_retries=2")).max_retries == 2


def test_benchmarks_of_an_expert():
    config = CompressionConfig.from_dict(
        composed("benchmarks=core", "benchmarks.experts.code=[MBPP,arc_easy]", "+benchmarks.experts.gardening=[piqa]")
    )
    assert config.benchmarks.experts["code"] == ("MBPP", "arc_easy")
    assert config.benchmarks.experts["gardening"] == ("piqa",) and config.benchmarks.experts["memory"] is None
    assert tuple(EXPERT_BENCHMARKS) == EXPERTS
    assert expert_map(config.benchmarks.experts)["memory"] == EXPERT_BENCHMARKS["memory"]


@pytest.mark.parametrize("setting", ["benchmarks.pass_at=10", "benchmarks.run_generated_code=true"])
def test_settings_of_the_published_benchmarks_do_not_fit_the_embedded_ones(setting):
    with pytest.raises(ConfigError, match="the embedded benchmarks do not use"):
        CompressionConfig.from_dict(composed(setting))
    CompressionConfig.from_dict(composed("benchmarks=core", setting))


def test_round_trip():
    config = CompressionConfig.from_dict(composed("compressor=as_printed"))
    assert CompressionConfig.from_dict(config.to_dict()) == config
    assert config.grokfast.variant.value == "as_printed"
    assert (config.seedlm.latent_dim, config.seedlm.block_size, config.seedlm.bits) == (16, 512, 2)
    vptq = config.vptq  # a vector is four parts of 16 weights, each with a codebook of 256 entries and an index
    assert (vptq.vector_dim // vptq.product, vptq.product, vptq.codebook_size, vptq.num_codebooks) == (16, 4, 256, 1)
    assert vptq.bits_per_weight() == 4 * 8 / 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vptq": {"codebok_size": 3}}, "did you mean vptq.codebook_size"),
        ({"hypr": {}}, "hypr: there is no such setting"),
        ({"seedlm": {"bits": "four"}}, "seedlm.bits: needs int"),
        ({"seedlm": {"bits": True}}, "seedlm.bits: needs int"),
        ({"seedlm": {"latent_dim": 9}}, "latent_dim is 9"),
        ({"seedlm": {"block_size": 0}}, "block_size"),
        ({"seedlm": {"seed_bits": 99}}, "seed_bits"),
        ({"vptq": {"vector_dim": 0}}, "vector_dim"),
        ({"vptq": {"codebook_size": 1}}, "codebook_size"),
        ({"hyper": {"degree": -1}}, "degree"),
        ({"hyper": {"trajectory_type": "spiral"}}, "polynomial"),
        ({"grokfast": {"alpha": 1.5}}, "alpha"),
        ({"grokfast": {"lambda": float("nan")}}, "finite"),
        ({"max_retries": 9}, "max_retries"),
        ({"max_accuracy_loss": 16}, "max_accuracy_loss"),
        ({"budget_bytes": 0}, "budget_bytes is 0"),
        ({"vptq": {"target_ratio": 1}}, "vptq.target_ratio is 1"),
        ({"seedlm": {"target_ratio": 9, "budget_bytes": 9}}, "seedlm.budget_bytes and seedlm.target_ratio"),
        ({"target_ratio": 9, "hyper": {"trajectory_type": "fourier"}}, "only the ergodic trajectory and the lattice"),
        ({"benchmark_samples": 0}, "benchmark_samples"),
        ({"protect": "all"}, "needs a list"),
        ({"seedlm": {"enabled": False}, "vptq": {"enabled": False}, "hyper": {"enabled": False}}, "switched off"),
        ({"logger": {"mode": "loud"}}, "offline"),
        ({"model": 3}, "model: needs settings"),
    ],
)
def test_mistakes_are_named_with_a_mend(change, says):
    with pytest.raises(ConfigError, match=says) as caught:
        CompressionConfig.from_dict(change)
    assert "mend" in str(caught.value)


def test_a_stages_own_limit_outranks_the_runs():
    config = CompressionConfig.from_dict({"target_ratio": 8, "vptq": {"budget_bytes": 400_000}})
    assert config.limit_of("vptq") == ("vptq.budget_bytes", 400_000) and config.budget_of("vptq", 10**6) == 400_000
    assert config.limit_of("seedlm") == ("target_ratio", 8.0) and config.budget_of("seedlm", 10**6) == 125_000
    assert CompressionConfig().limit_of("hyper") is None and CompressionConfig().budget_of("hyper", 10**6) is None


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        CompressionConfig.from_dict({"vptq": {"a": 1}, "seedlm": {"bits": "x"}, "sed": 3})
    assert all(name in str(caught.value) for name in ("vptq.a", "seedlm.bits", "sed"))


def test_dotted_names_change_settings_together():
    config = CompressionConfig()
    changed = config.changed({"vptq.vector_dim": 6, "vptq.product": 3, "grokfast.lambda": 3.0, "gates.core.vptq": 0.5})
    assert (changed.vptq.vector_dim, changed.vptq.product, changed.grokfast.lambda_) == (6, 3, 3.0)
    assert changed.gates.core == replace(config.gates.core, vptq=0.5) and changed.seedlm == config.seedlm
    assert changed.changed({"vptq.vector_dim": config.vptq.vector_dim, "vptq.product": 1}).vptq == config.vptq


@pytest.mark.parametrize("name", ["vptq.sizes", "nowhere.size", "seed.size"])
def test_a_dotted_name_of_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="no such setting|no setting called"):
        CompressionConfig().changed({name: 1})


def test_no_setting_of_a_stage_hides_what_its_settings_answer():
    answers = {name for name in vars(StageSettings) if callable(getattr(StageSettings, name))}
    for stage in STAGES:
        assert not answers & {field.name for field in fields(stage.settings)}, stage.name
        assert stage.settings() in stage.settings().alternatives(), stage.name
        assert all(changes for changes in stage.settings().richer(severe=True)), stage.name
