"""Training that goes on from an artifact: what it begins with, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import kills
from phase8 import api
from phase8.artifact.read import read_artifact
from phase8.artifact.write import contents
from phase8.codecs import get_codec
from phase8.codecs.decoders import decode
from phase8.config import Precision
from phase8.errors import ArtifactError, ConfigError
from phase8.train.shape import Shape
from phase8.train.whole import TrainedStage
from phase8.train.within_budget import Plan
from tests.quick_scores import quick_scores

PLAN = Plan(steps=24, batch_sequences=4, lr=0.02, ramp=0.3, precision=Precision.float32, warmup_steps=2)


@pytest.fixture(scope="module")
def source():
    return kills.tiny_source()


@pytest.fixture
def tokens():
    return torch.randint(2, 258, (24, 12), generator=torch.Generator().manual_seed(5))


def stage(source, tokens, before=(), **shape) -> TrainedStage:
    def size(groups):
        return sum(map(len, contents(groups, source, stage="hyper").values()))

    shape = Shape(**(shape or {"width": 0.5, "units": 0.5}))
    return TrainedStage(source, tokens, shape=shape, start_step=0.5, size=size, trained_before=before)


def weights(groups) -> dict[str, np.ndarray]:
    return dict(pair for group in groups for pair in decode(group))


@pytest.fixture(scope="module")
def ended(source, tmp_path_factory):
    """A run of the trained stage alone that came to its end: its directory, and its settings."""
    directory = tmp_path_factory.mktemp("ended")
    config = kills.settings("trained", directory / "run", directory / "cache")
    config = replace(config, max_retries=0, gates=replace(config.gates, rule=replace(config.gates.rule, hyper=0.0)))
    with pytest.MonkeyPatch.context() as patch:
        quick_scores(source, patch)
        patch.setattr("phase8.watch.report.write_report", lambda run_dir: None)
        api.run_configured(config, source, console=False)
    return directory / "run" / "artifacts" / "hyper", config


def going_on(config, artifact, run_dir, **training):
    config = replace(config, paths=replace(config.paths, output_dir=str(run_dir)))
    return replace(config, training=replace(config.training, from_artifact=str(artifact), **training))


def test_a_retry_trains_on_from_the_file_that_failed(source, tokens):
    budget = stage(source, tokens).smallest_bytes() + 1800
    result = stage(source, tokens).run(budget, PLAN)
    again = stage(source, tokens, result.groups)
    unchanged = again.run(budget + 200, replace(PLAN, steps=1, lr=1e-7))  # room, so that nothing is trimmed
    old, new = weights(result.groups), weights(unchanged.groups)
    assert all(np.allclose(old[name], new[name], atol=1e-3) for name in old)
    longer = again.run(budget, PLAN)
    assert again.size(longer.groups) <= budget
    assert np.mean(longer.outcome.losses) < np.mean(result.outcome.losses)


def test_a_smaller_budget_is_reached_step_by_step(source, tokens):
    smallest = stage(source, tokens).smallest_bytes()
    result = stage(source, tokens).run(smallest + 1800, PLAN)
    told = []
    plan = replace(PLAN, steps=160, lr=0.04)
    smaller = stage(source, tokens, result.groups).run(smallest + 900, plan, on_step=told.append)
    assert stage(source, tokens).size(smaller.groups) <= smallest + 900
    assert told[0].estimated_bytes > 1.3 * told[0].budget_bytes
    assert told[-1].estimated_bytes < 1.1 * told[-1].budget_bytes


def test_a_run_trains_on_from_an_artifact(source, ended, tmp_path, monkeypatch):
    quick_scores(source, monkeypatch)
    artifact, config = ended
    told = []
    config = going_on(config, artifact, tmp_path / "run", steps=1, lr=1e-7)
    config = replace(config, hyper=replace(config.hyper, budget_bytes=config.hyper.budget_bytes + 200))
    api.run_configured(config, source, console=False, listeners=[told.append])
    old = weights(read_artifact(artifact).groups)
    new = weights(read_artifact(tmp_path / "run" / "artifacts" / "hyper").groups)
    assert all(np.allclose(old[name], new[name], atol=1e-3) for name in old)
    assert any(event.kind == "log" and f"trains on from {artifact}" in event.data.text for event in told)


def test_what_a_run_cannot_train_on_from_is_refused_before_any_work(source, ended, tmp_path):
    artifact, config = ended

    def refused(error, words, source=source, artifact=artifact, config=config, name="run"):
        told = []
        with pytest.raises(error, match=words):
            run = going_on(config, artifact, tmp_path / name)
            api.run_configured(run, source, console=False, listeners=[told.append])
        assert not any(event.kind == "stage_complete" for event in told)

    refused(ArtifactError, "nothing", artifact=tmp_path / "nothing", name="a")
    other = kills.tiny_source()
    with torch.no_grad():
        other.network.model.norm.weight.mul_(1.5)
    refused(ConfigError, "another model", source=other, name="b")
    fixed = replace(config.hyper, trajectory_type=type(config.hyper.trajectory_type).ergodic, budget_bytes=None)
    vptq = replace(config.vptq, enabled=True, train_codes=True, budget_bytes=9000)
    refused(ConfigError, "of the stage hyper", config=replace(config, hyper=fixed, vptq=vptq), name="c")


def test_another_shape_or_codec_is_refused(source, tokens):
    smallest = stage(source, tokens).smallest_bytes()
    groups = stage(source, tokens).run(smallest + 1800, replace(PLAN, steps=1)).groups
    with pytest.raises(ConfigError, match=r"keeps another shape: of model\.embed_tokens\.weight \(258, 8\)"):
        stage(source, tokens, groups, width=0.75, units=0.5).run(smallest + 9000, PLAN)
    matrices = {name: tensor.float() for name, tensor in source.matrices().items()}
    plain = get_codec("plain").encode(matrices, None, importance={}, seed=0)
    with pytest.raises(ConfigError, match="no codes of lattice, but of plain"):
        stage(source, tokens, [plain]).run(smallest + 1800, PLAN)
