"""A training on several devices of one machine: a process for each, which holds everything and answers its part of
every batch.

    first process    the caller's own: draws, measures, writes checkpoints, is listened to ─┬─ pipe: "go on", figures
    the others       started here, hold the same values, hold nothing that is needed after ─┴─ gloo: gradients (DDP),
                                                                                               divergences
Every process draws the same batch and takes its part of the rows. Lightning's `DDPStrategy` averages the gradients, and
the divergences of all rows are gathered, so that each process knows all that the next draw, the price and a step back
hang on; all of them then do the same arithmetic on the same numbers. What comes out is what one device brings, up to
the order of sums.

Lightning's own ways of starting processes do not suit a call within a program. `ddp` runs `sys.argv` again, with all
that came before the training. `ddp_spawn` trains in children alone: a listener that pauses the run or ends it would
have to reach into them, and what they trained back out; and it runs the caller's main file again. `ddp_fork` copies a
process that has threads and perhaps a GPU, which neither survives. So the strategy is told that the processes exist
(`creates_processes_externally`), the caller's is the first of them, and the others are plain Python processes that read
what is to be trained from a file.

Between two steps the others wait for a word through their pipe, as long as it takes: a listener may pause for hours.
Within a step all are in it together: where one is gone, its connections close, and the rest fail at once; one that
hangs is given up after `TIMEOUT_S`. Whatever ends the first process, or its training, ends the others.

gloo carries all messages, on GPUs too: a process that dies is an error there, where NCCL would end the caller's.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from phase8.errors import ConfigError, DeviceError, ModelError
from phase8.files import TEMPORARY, temporary_directory, writing
from phase8.train.sliced import SlicedBatch

START_S = 600.0
"""How long the first process waits for the others to begin."""
TIMEOUT_S = 600.0
"""How long a process waits for the others within a step."""
LAST_WORDS_S = 3.0
"""How long the first process waits for what the others have to say about an error."""
INTERFACE = "GLOO_SOCKET_IFNAME"
FIX = "resume=RUN_DIR goes on from the last checkpoint; devices=1 needs no other process"
T = TypeVar("T")


class Share:
    """What one process does of a training. This one: all of it."""

    number, count = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the caller's process, which alone measures, writes and is listened to."""
        return self.number == 0

    def batch(self, batch: SlicedBatch) -> SlicedBatch | PartOfBatch:
        """What answers a batch, of which this process asks its part."""
        return batch

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others wait for it, however long that takes."""
        return make()

    def no_loss(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """What a step without a loss gives Lightning."""
        return None

    def compare(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Raises `DeviceError` where the processes do not hold the same values, to the bit."""


class _Together(Share):
    """One of several processes.

    Args:
        channels: to all others from the first; to the first from each other.
    """

    def __init__(self, device: torch.device, number: int, count: int, channels: Sequence[Connection]) -> None:
        super().__init__(device)
        self.number, self.count, self._channels = number, count, list(channels)

    def batch(self, batch: SlicedBatch) -> PartOfBatch:
        return PartOfBatch(batch, self.number, self.count)

    def of_first(self, make: Callable[[], T]) -> T:
        if not self.first:
            return self._channels[0].recv()
        made = make()
        for channel in self._channels:
            channel.send(made)
        return made

    def no_loss(self, parameters: Sequence[Tensor]) -> Tensor:
        """Zero: DDP needs a loss in every process. The gradients that it brings are not to be used."""
        return 0.0 * torch.stack([parameter.sum() for parameter in parameters]).sum()

    def compare(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        sums = [zlib.crc32(value.detach().cpu().contiguous().numpy()) for _, value in sorted(tensors().items())]
        own = torch.tensor([zlib.crc32(repr(sums).encode())])
        found = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(found, own)
        apart = [number for number, theirs in enumerate(found, 1) if theirs != found[0]]
        if apart:
            raise DeviceError(
                f"process {apart[0]} of {self.count} of the training no longer holds the values of the first",
                where="devices",
                fix="train on devices of one kind, or with devices=1",
            )


class PartOfBatch:
    """The divergence of a whole batch, of which each process asks its rows: as `SlicedBatch` to the caller."""

    def __init__(self, batch: SlicedBatch, number: int, count: int) -> None:
        self._batch, self._number, self._count = batch, number, count

    def divergence(self, weights: Mapping[str, Tensor], tokens_BT: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A loss whose gradient, averaged over the processes, is that of the batch's mean divergence (its value is this
        process's alone), and the divergence of every sequence, float32 [B], on the CPU."""
        parts = torch.arange(len(rows)).tensor_split(self._count)
        own = parts[self._number]
        mean, of_own = self._batch.divergence(weights, tokens_BT[own], rows[own])
        padded = torch.zeros(len(parts[0]))  # the first part is the longest
        padded[: len(own)] = of_own.cpu()
        found = [torch.empty_like(padded) for _ in parts]
        distributed.all_gather(found, padded)
        of_each = torch.cat([theirs[: len(part)] for theirs, part in zip(found, parts, strict=True)])
        return mean * (self._count * len(own) / len(rows)), of_each


@contextmanager
def several(
    train: Callable[..., Any], arguments: Mapping[str, Any], device: torch.device, count: int
) -> Iterator[Share]:
    """Starts processes that call `train(share, **arguments)` beside the block, which is to do the same with the share
    that it gets; they end with the block. With a count of 1 there is none.

    Args:
        train: a function of a module, not of the main file.
        device: the first process's; GPUs are numbered on from it.

    Raises:
        ConfigError: the caller is part of a distributed program already.
        ModelError: something in the arguments cannot be sent to another process.
        OutputError: there is no room for the file that they read.
        DeviceError: one of the processes failed, was killed, or does not answer.
    """
    if count == 1:
        yield Share(device)
        return
    if distributed.is_initialized():
        raise ConfigError(
            "this process belongs to a distributed program already", where="devices", fix="train with devices=1"
        )
    devices = [torch.device("cpu")] * count
    if device.type != "cpu":
        devices = [torch.device(device.type, (device.index or 0) + number) for number in range(count)]
    threads = torch.get_num_threads()
    others: list[_Other] = []
    try:
        with temporary_directory() as directory:
            _write(directory, train, arguments)
            torch.set_num_threads(max(1, threads // count))
            for number in range(1, count):
                others.append(_Other(directory, devices[number], number, count))
            for other in others:
                other.wait_until_ready()
            _connect(directory, 0, count)
            yield _Together(devices[0], 0, count, [other.channel for other in others])
    except (RuntimeError, OSError, EOFError) as error:
        if (cause := _cause(error, others)) is not None:
            raise cause from error
        raise
    finally:
        for other in others:
            other.end()
        torch.set_num_threads(threads)
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _write(directory: Path, train: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        with writing(directory, TEMPORARY):
            torch.save((train, dict(arguments)), directory / "training.pt")
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ModelError(
            f"the training cannot be sent to another process: {error}", where="devices", fix="train with devices=1"
        ) from error


def _connect(directory: Path, number: int, count: int) -> None:
    """Joins the processes; they meet in a file, and listen on this machine alone."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    ours = bool(names) and INTERFACE not in os.environ
    if ours:
        os.environ[INTERFACE] = names[0]
    try:
        store = distributed.FileStore(str(directory / "meeting"), count)
        limit = timedelta(seconds=TIMEOUT_S)
        distributed.init_process_group("gloo", store=store, rank=number, world_size=count, timeout=limit)
    finally:
        if ours:
            del os.environ[INTERFACE]


class _Other:
    """Another process of the training, as the first one sees it."""

    def __init__(self, directory: Path, device: torch.device, number: int, count: int) -> None:
        self.name = f"process {number + 1} of {count} of the training"
        self._log = directory / f"process_{number}.log"
        self.channel, theirs = Pipe()
        paths = [os.path.abspath(path) for path in sys.path]
        with theirs, writing(self._log, TEMPORARY), self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from phase8.train.parallel import follow; follow({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for the first process alone
            )
        self.channel.send((str(directory), str(device), number, count, torch.get_num_threads()))

    def wait_until_ready(self) -> None:
        """Waits until it has read what is to be trained."""
        if not self.channel.poll(START_S):
            raise DeviceError(f"{self.name} has not begun within {START_S:g} s", where="devices", fix="devices=1")
        if (words := self.channel.recv()) is not None:
            raise DeviceError(f"{self.name} could not begin: {words}", where="devices", fix="train with devices=1")

    def last_words(self) -> str | None:
        """How it ended, or None where it lives."""
        words = None
        with suppress(OSError, EOFError):  # it may have ended without any
            while self.channel.poll():
                words = self.channel.recv() or words
        code = self._process.poll()
        if words is not None:
            return f"{self.name} failed: {words}"
        if code is not None and code < 0:
            return f"{self.name} was killed by {signal.Signals(-code).name}"
        if code is not None:
            tail = self._log.read_text(errors="replace").strip().splitlines()[-1:] if self._log.exists() else []
            return f"{self.name} ended with code {code}: {' '.join(tail)}"
        return None

    def end(self) -> None:
        """Ends it, wherever it is: it holds nothing that anybody needs."""
        self._process.kill()
        self._process.wait()
        self.channel.close()


def _cause(error: Exception, others: Sequence[_Other]) -> DeviceError | None:
    """What another process did to make the first one stop with this error; None where they are all well."""
    until = time.monotonic() + LAST_WORDS_S
    while not (found := [words for other in others if (words := other.last_words())]) and time.monotonic() < until:
        time.sleep(0.05)
    if found:
        return DeviceError("; ".join(found), where="devices", fix=FIX)
    if any(word in str(error).lower() for word in ("timed out", "timeout")):  # gloo has no class for it
        return DeviceError(
            f"another process of the training has not answered for {TIMEOUT_S:g} s", where="devices", fix=FIX
        )
    return None


def follow(descriptor: int) -> None:
    """The whole program of another process than the first; it does not return.

    Args:
        descriptor: of its end of the pipe.
    """
    channel = Connection(descriptor)
    try:
        directory, device, number, count, threads = channel.recv()
        torch.set_num_threads(threads)
        # A pickle may run code: this one was written by the first process, moments ago, in a directory of its own that
        # other users cannot enter. Mapped: these processes share one copy of the answers, the largest part.
        file = Path(directory) / "training.pt"
        train, arguments = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        channel.send(None)
        _connect(Path(directory), number, count)
        train(_Together(torch.device(device), number, count, [channel]), **arguments)
        channel.recv()  # until the first process has ended this one
    except EOFError:
        pass  # the first process is gone
    except BaseException as error:
        traceback.print_exc()
        with suppress(OSError):
            channel.send("".join(traceback.format_exception_only(error)).strip())
    finally:
        os._exit(1)  # threads of the process group may wait for others that are gone
