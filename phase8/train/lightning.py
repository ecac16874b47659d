"""Lightning, kept quiet and answerable to Ctrl-C: the only importer of it beside the modules that it trains."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

from phase8.train.parallel import Share


def run_trainer(
    module: lightning.LightningModule,
    batches: DataLoader,
    steps: int,
    device: torch.device,
    share: Share | None = None,
) -> None:
    """Trains for `steps` steps on one device, or as one of the processes that each have one.

    Raises:
        KeyboardInterrupt: the user or the system asked to stop.
    """
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        **(_alone(device) if share is None or share.count == 1 else _together(device, share)),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, batches)
    except SystemExit as stop:
        # Lightning answers Ctrl-C by ignoring all further ones and leaving the process, and SIGTERM likewise; here both
        # are the user's wish to stop, which the run answers in order.
        signal.signal(signal.SIGINT, interrupt)
        raise KeyboardInterrupt from stop


def _alone(device: torch.device) -> dict[str, Any]:
    return {
        "devices": 1 if device.type == "cpu" else [device.index or 0],
        "plugins": [LightningEnvironment()],
    }


def _together(device: torch.device, share: Share) -> dict[str, Any]:
    first = (device.index or 0) - share.number
    strategy = _OurProcesses(
        cluster_environment=_Known(share),
        process_group_backend="gloo",
        broadcast_buffers=False,
        # Buckets of gradients keep their order with this, so that a resumed training adds in the order of one that
        # was not stopped; and a codec may have a parameter that a step does not need.
        find_unused_parameters=True,
    )
    return {
        "devices": share.count if device.type == "cpu" else list(range(first, first + share.count)),
        "strategy": strategy,
        "use_distributed_sampler": False,  # the loader gives the numbers of steps, and every process takes every step
        "callbacks": [_SigtermAsBefore(share)],
    }


class _OurProcesses(DDPStrategy):
    """DDP whose processes run already; Lightning starts none, and leaves the number of threads as it is."""

    def _configure_launcher(self) -> None:
        self._launcher = None


class _Known(ClusterEnvironment):
    """Tells Lightning which process this is. The processes are connected before (`phase8.train.parallel`), so nobody
    asks for the address."""

    creates_processes_externally = True
    main_address, main_port = "localhost", 0

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._share.count

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._share.number

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._share.number

    def node_rank(self) -> int:
        return 0


class _SigtermAsBefore(lightning.Callback):
    """Takes SIGTERM back from Lightning, whose handler broadcasts wherever the process happens to be: another process
    would take that for its part of a sum. The first process answers as it did before, or as to Ctrl-C; others end."""

    def __init__(self, share: Share) -> None:
        before = signal.getsignal(signal.SIGTERM)
        self._before = signal.default_int_handler if share.first and before == signal.SIG_DFL else before

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread() and self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice (more workers, a logger, a progress bar) is not for our readers."""
    names = (
        "pytorch_lightning",
        "lightning.pytorch",
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
