"""A disk that is full, or may not be written to, at every place where something is written: an error that says where
and what to change, nothing half-written, and what was there before untouched."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phase8.artifact.rehearse import check_reopens
from phase8.artifact.write import write_artifact
from phase8.benchmarks.cache import BaselineCache
from phase8.benchmarks.sandbox import Sandbox
from phase8.cache import ContentCache
from phase8.codecs import get_codec
from phase8.codecs.base import Importance
from phase8.errors import OutputError, Phase8Error
from phase8.events import EventLog, Log
from phase8.export import export
from phase8.files import directory_swap, system_error, temporary_directory, write_atomic, writing
from phase8.model.source import SourceModel, load_source, saved_tokenizer
from phase8.run.control import write_control
from phase8.run.journal import write_groups
from phase8.run.shared import _read_importance, _write_importance
from phase8.watch.report import write_report
from tests.test_evaluate import integration


@contextmanager
def full_after(limit_bytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: the kernel's own refusal, whoever writes, libraries in Rust among them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def source(tiny_model_dir) -> SourceModel:
    return load_source(str(tiny_model_dir))


def groups_of(source: SourceModel):
    matrices = {name: matrix.detach() for name, matrix in source.matrices().items()}
    yield get_codec("plain").encode({**matrices, **source.vectors()}, None, importance={}, seed=0)


def artifact(source: SourceModel, at: Path) -> None:
    write_artifact(at / "artifact", groups_of(source), source, stage="seedlm")


def encoded(source: SourceModel, at: Path) -> None:
    write_groups(at / "encoded.p8", list(groups_of(source)), "seedlm", source.parameter_count)


def result(source: SourceModel, at: Path) -> None:
    write_atomic(at / "result.json", "x" * 10_000)


def scores(source: SourceModel, at: Path) -> None:
    BaselineCache(at).put("model", "suite", integration((1.0,) * 3000, "edge of chaos"))


def hessians(source: SourceModel, at: Path) -> None:
    found = {"w": Importance(hessian_II=torch.eye(64), row_O=None)}
    ContentCache(at).get_or_make(
        "hessians", {"a": 1}, read=_read_importance, make=lambda: found, write=_write_importance
    )


def exported(source: SourceModel, at: Path) -> None:
    write_artifact(at.parent / "made", groups_of(source), source, stage="seedlm")
    with full_after(2000):
        export(at.parent / "made", at / "plain", "safetensors")


WRITERS: list[tuple[Callable[[SourceModel, Path], None], str]] = [
    (artifact, "paths.output_dir"),
    (encoded, "paths.output_dir"),
    (result, "paths.output_dir"),
    (scores, "paths.cache_dir"),
    (hessians, "paths.cache_dir"),
    (exported, "OUT"),
]


@pytest.mark.parametrize(("write", "place"), WRITERS, ids=[write.__name__ for write, _ in WRITERS])
def test_nothing_is_half_written(write, place, source, tmp_path) -> None:
    directory = tmp_path / "place"
    directory.mkdir()
    (directory / "result.json").write_text("the result before")
    (directory / "artifact").mkdir()
    (directory / "artifact" / "model.safetensors").write_text("the artifact before")
    assert source.tokenizer_files  # kept in memory by then
    before = everything(directory)
    limit = full_after(2000) if write is not exported else writing(directory)
    with pytest.raises(OutputError, match="cannot write: File too large") as caught, limit:
        write(source, directory)
    assert f"set {place} to" in caught.value.fix and str(directory) in caught.value.where
    assert {name: data for name, data in everything(directory).items() if "/locks/" not in name} == before


def test_the_log_ends_in_a_whole_line(tmp_path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        with full_after(1500), pytest.raises(OutputError, match="cannot write the event log"):
            for _ in range(100):
                log.emit(Log(level="info", text="a line of the log"))
    assert (tmp_path / "events.jsonl").read_bytes().endswith(b"}\n")


def test_a_report_and_a_wish_that_cannot_be_written(tmp_path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        log.emit(Log(level="info", text="hello"))
    (tmp_path / "report.html").write_text("the report before")
    before = everything(tmp_path)
    with full_after(1000), pytest.raises(OutputError, match="report.html"):
        write_report(tmp_path)
    with full_after(5), pytest.raises(OutputError, match="control.json"):
        write_control(tmp_path, "abort", "enough")
    assert everything(tmp_path) == before


# -- the directory of temporary files: not the run's, and not mended by moving the run -------------------------------


@pytest.mark.parametrize("use", [lambda source: saved_tokenizer(source.tokenizer), check_reopens])
def test_a_tokenizer_that_cannot_be_saved(use, source) -> None:
    """The tokenizer's own library says it in an exception without a kind."""
    with full_after(100), pytest.raises(OutputError, match="File too large") as caught:
        use(source)
    assert "set TMPDIR to" in caught.value.fix


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real disk of 64 kB; where nobody may mount one, the test is left out."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_real_disk_that_is_full(source, small_disk, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    filler = small_disk / "filler"
    with suppress_full(), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    os.truncate(filler, filler.stat().st_size - 8192)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        saved_tokenizer(source.tokenizer)
    assert "set TMPDIR to a disk that has room" in caught.value.fix
    assert list(small_disk.iterdir()) == [filler]
    with pytest.raises(OutputError, match="No space left on device") as caught:
        artifact(source, small_disk)
    assert "paths.output_dir" in caught.value.fix
    assert list(small_disk.iterdir()) == [filler]


@contextmanager
def suppress_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        assert error.errno == errno.ENOSPC


def test_no_place_for_temporary_files(monkeypatch) -> None:
    def none(*args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    for use in (temporary_directory().__enter__, Sandbox):
        with pytest.raises(OutputError, match="No usable temporary directory") as caught:
            use()
        assert "TMPDIR" in caught.value.fix


# -- what is the disk's fault and what is not ------------------------------------------------------------------------


def test_errors_that_are_not_the_disks_pass(tmp_path) -> None:
    for error in (ValueError("os error 28"), OSError("We couldn't connect"), Phase8Error("(os error 28)")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error
        with pytest.raises(type(error)), directory_swap(tmp_path / "d"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_what_libraries_in_rust_say_is_understood(tmp_path) -> None:
    found = system_error(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert found is not None and (found.errno, found.strerror) == (errno.ENOSPC, "No space left on device")
    with full_after(500), pytest.raises(OutputError, match="File too large"), writing(tmp_path / "w"):
        save_file({"w": torch.zeros(1000)}, tmp_path / "w")


def test_a_read_only_cache_names_the_cache(tmp_path, monkeypatch) -> None:
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("phase8.files.Path.mkdir", read_only)
    for use in (
        lambda: BaselineCache(tmp_path / "cache").put("m", "s", integration((1.0,), "edge of chaos")),
        lambda: ContentCache(tmp_path / "cache").lock("k").__enter__(),
    ):
        with pytest.raises(OutputError, match="Read-only file system") as caught:
            use()
        assert caught.value.fix == "set paths.cache_dir to a directory on a writable disk"
