"""Lightning, kept quiet and answerable to Ctrl-C: the only importer of it beside the modules that it trains."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader


def run_trainer(module: lightning.LightningModule, batches: DataLoader, steps: int, device: torch.device) -> None:
    """Trains for `steps` steps on one device.

    Raises:
        KeyboardInterrupt: the user or the system asked to stop.
    """
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index or 0],
        plugins=[LightningEnvironment()],
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
