"""Training within a byte budget on several processes of the CPU: the same result, one end for all of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as distributed

from phase8.codecs.lattice.encode import LatticeConfig, first_step
from phase8.codecs.lattice.train import LatticeTrainable
from phase8.config import CompressionConfig, GrokfastConfig, Precision
from phase8.errors import ConfigError, DeviceError, ModelError
from phase8.run.machine import check_device
from phase8.train import parallel
from phase8.train.collect import collect_answers
from phase8.train.trim import trim
from phase8.train.within_budget import Plan, train_within_budget
from tests.ddp_cases import Astray, Failing, Sick

PLAN = Plan(
    steps=24, batch_sequences=5, lr=0.02, ramp=0.3, precision=Precision.float32, warmup_steps=2, checkpoint_every=8,
    grokfast=GrokfastConfig(enabled=True),
)  # fmt: skip
"""Of five sequences one process takes three, and the text is read once in four steps: then draws follow divergences."""
BUDGET = 3000


class Stop(BaseException):
    pass


@pytest.fixture
def network(tiny_network):
    """With weights so large that its answers differ from place to place."""
    with torch.no_grad():
        for parameter in tiny_network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12.0)
    return tiny_network


def start(network, kind=LatticeTrainable):
    weights = {name: p.detach() for name, p in network.named_parameters() if p.dim() == 2}
    steps = {name: first_step(weight, LatticeConfig(start_step=0.5)) for name, weight in weights.items()}
    return kind(weights, steps, {name: tuple(weight.shape) for name, weight in weights.items()})


def train(network, trainable, devices, plan=PLAN, **more):
    tokens = torch.randint(2, 258, (24, 12), generator=torch.Generator().manual_seed(5))
    vectors = {"model.norm.weight": torch.nn.Parameter(network.model.norm.weight.detach().clone())}
    answers = collect_answers(network, tokens, kept=48)
    outcome = train_within_budget(
        network, trainable, vectors, answers=answers, tokens_NT=tokens, budget_bytes=BUDGET, plan=plan,
        devices=devices, **more,
    )  # fmt: skip
    return outcome, vectors


EARLIER: set[int] = set()


@pytest.fixture(autouse=True)
def earlier():
    """What other tests left behind is not ours: a child that ended, and that nobody asked for its end."""
    EARLIER.clear()
    EARLIER.update(child.pid for child in psutil.Process().children(recursive=True))


def others():
    """The training's other processes; one that ended and was not waited for is among them."""

    def is_one(child: psutil.Process) -> bool:
        try:
            return "follow" in " ".join(child.cmdline())
        except psutil.ZombieProcess:
            return True

    return [one for one in psutil.Process().children(recursive=True) if one.pid not in EARLIER and is_one(one)]


def assert_alike(one: LatticeTrainable, two: LatticeTrainable):
    """The same but for the order of sums: a weight on the edge between two integers may fall to either side."""
    pairs = [(whole, two.integers()[name]) for name, whole in one.integers().items()]
    assert sum(int((a != b).sum()) for a, b in pairs) <= 5 < sum(a.size for a, _ in pairs) / 1000
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_does_and_end_as_the_listener_says(network):
    found = []
    for devices in (1, 2):
        trainable, steps = start(network), []

        def listen(done, steps=steps, devices=devices):
            steps.append(done)
            assert len(others()) == devices - 1
            if done.step == 23:
                raise Stop

        with pytest.raises(Stop):
            train(network, trainable, devices, on_step=listen)
        assert not others() and not distributed.is_initialized()
        found.append((trainable, steps))
    (one, told_one), (two, told_two) = found
    assert [done.loss for done in told_two] == pytest.approx([done.loss for done in told_one], rel=1e-4)
    assert [done.estimated_bytes for done in told_two] == pytest.approx([d.estimated_bytes for d in told_one], rel=1e-3)
    assert_alike(one, two)


def test_a_training_of_one_process_goes_on_with_two(network, tmp_path):
    whole = start(network)
    expected, vectors = train(network, whole, 1)

    def stop(done):
        if done.step == 17:
            raise Stop

    with pytest.raises(Stop):
        train(network, start(network), 1, on_step=stop, checkpoint=tmp_path)
    steps, again = [], start(network)
    outcome, found = train(network, again, 2, on_step=lambda done: steps.append(done.step), checkpoint=tmp_path)
    assert steps == list(range(17, 25))  # the last checkpoint was at 16
    assert outcome.losses[:16] == expected.losses[:16] and not outcome.note
    assert outcome.losses == pytest.approx(expected.losses, rel=1e-4)
    assert torch.allclose(found["model.norm.weight"], vectors["model.norm.weight"], rtol=1e-3)
    assert_alike(whole, again)
    assert trim(again, BUDGET)[0] <= BUDGET


def test_a_loss_that_is_no_number_in_one_process_sets_all_back(network):
    """At step 53: what was kept at step 50 comes back everywhere, and neither filter nor optimiser counts the step."""
    plan, found = dataclasses.replace(PLAN, steps=60), []
    for devices in (1, 2):
        trainable = start(network, Sick)
        outcome, _ = train(network, trainable, devices, plan)
        assert outcome.setbacks == 1 and not outcome.diverged and len(outcome.losses) == 57
        found.append((trainable, outcome.losses))
    (one, losses_one), (two, losses_two) = found
    assert losses_two == pytest.approx(losses_one, rel=1e-3)
    assert_alike(one, two)


def test_a_process_that_is_killed_ends_the_training_at_once(network):
    killed = []

    def kill(done):
        if done.step == 3:
            os.kill(others()[0].pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(DeviceError, match="process 2 of 2 of the training was killed by SIGKILL"):
        train(network, start(network), 2, on_step=kill)
    assert time.monotonic() - killed[0] < 60  # of its own it would wait ten minutes
    assert not others() and not distributed.is_initialized()


def test_what_cannot_be_sent_is_said_before_any_process_starts(network):
    trainable = start(network)
    trainable.local = lambda: None
    with pytest.raises(ModelError, match="cannot be sent to another process"):
        train(network, trainable, 2)


def test_more_devices_than_there_are_or_than_a_batch_has_sequences_are_refused():
    with pytest.raises(ConfigError, match="needs 1 to training.batch_sequences"):
        CompressionConfig.from_dict({"devices": 17})
    with pytest.raises(ConfigError, match="needs 1 to"):
        CompressionConfig.from_dict({"devices": 0})
    check_device("cpu", 8)
    with pytest.raises(ConfigError, match="devices is 3, and from meta on PyTorch sees 1"):
        check_device("meta", 3)


# More of the same, in minutes -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_processes_train_as_one_does_and_repeat_to_the_bit(network, tmp_path):
    def stop(done):
        if done.step == 20:
            raise Stop

    one = start(network)
    expected, _ = train(network, one, 1)
    found = []
    for checkpoint in (None, tmp_path):
        if checkpoint is not None:
            with pytest.raises(Stop):
                train(network, start(network), 3, on_step=stop, checkpoint=checkpoint)
        trainable = start(network)
        outcome, _ = train(network, trainable, 3, checkpoint=checkpoint)
        assert outcome.losses == pytest.approx(expected.losses, rel=1e-4)
        assert_alike(one, trainable)
        found.append(trainable)
    assert all(map(torch.equal, found[0].parameters(), found[1].parameters()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [(Astray, "process 2 of 2 of the training no longer holds the values"), (Failing, "MemoryError: no room here")],
)
def test_what_goes_wrong_in_another_process_is_said(network, kind, said):
    plan = dataclasses.replace(PLAN, steps=60)
    with pytest.raises(DeviceError, match=said):
        train(network, start(network, kind), 2, plan)
    assert not others()


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(network, monkeypatch):
    monkeypatch.setattr(parallel, "TIMEOUT_S", 20.0)

    def halt(done):
        if done.step == 3:
            os.kill(others()[0].pid, signal.SIGSTOP)

    with pytest.raises(DeviceError, match="has not answered for 20 s"):
        train(network, start(network), 2, on_step=halt)
    assert not others()


@pytest.mark.slow
def test_a_listener_may_pause_for_longer_than_a_step_may_take(network, monkeypatch):
    monkeypatch.setattr(parallel, "TIMEOUT_S", 20.0)
    outcome, _ = train(network, start(network), 2, on_step=lambda done: time.sleep(45 if done.step == 3 else 0))
    assert len(outcome.losses) == PLAN.steps


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_first(number):
    """Whose ends it may be: SIGTERM and Ctrl-C end a training in order, as on one device."""
    program = """
import sys
from tests.test_ddp import PLAN, others, start, train
from tests.tiny_model import smallest_model
def listen(done):
    if done.step == 3:
        print(others()[0].pid, flush=True)
network = smallest_model()
import dataclasses
try:
    train(network, start(network), 2, dataclasses.replace(PLAN, steps=100_000), on_step=listen)
except KeyboardInterrupt:
    sys.exit(130)
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, env=environment, text=True, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            other = psutil.Process(int(process.stdout.readline()))
            process.send_signal(number)
            assert process.wait(120) == (-signal.SIGKILL if number is signal.SIGKILL else 130)
        finally:
            process.kill()
    other.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vptq", "seedlm"])
def test_codes_that_are_chosen_again_are_chosen_alike(network, tiny_tokenizer, name):
    """Each process chooses for itself; were one code another, `compare` would end the training at step 50."""
    from phase8.artifact.write import contents
    from phase8.codecs import get_codec
    from phase8.model.source import ExpertFile, source_from_network
    from phase8.train.shape import Shape
    from phase8.train.whole import TrainedStage

    source = source_from_network(network, tiny_tokenizer, ExpertFile(), "tiny")
    settings = {"vptq": {"codebook_size": 64}}.get(name, {})
    config = CompressionConfig.from_dict({name: {"train_codes": True, "target_ratio": 1.5, **settings}})

    def size(groups):
        return sum(map(len, contents(groups, source, stage=name).values()))

    losses, weights = [], []
    for devices in (1, 2):
        tokens = torch.randint(2, 258, (24, 12), generator=torch.Generator().manual_seed(5))
        stage = TrainedStage(source, tokens, shape=Shape(), start_step=0.5, size=size, codes=(name, config.stage(name)))
        trained = stage.run(200_000, dataclasses.replace(PLAN, steps=60, lr=0.002), devices=devices)
        losses.append(trained.outcome.losses)
        decoded = [get_codec(group.codec).decode(group) for group in trained.groups]
        weights.append({name: weight for group in decoded for name, weight in group.items()})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    moved = sum(int((weight != weights[1][name]).sum()) for name, weight in weights[0].items())
    assert moved <= sum(weight.size for weight in weights[0].values()) / 100
