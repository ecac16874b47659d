"""Writing is all or nothing; reading is bounded."""

from __future__ import annotations

import pytest

from phase8.errors import ArtifactError, OutputError
from phase8.files import (
    CACHE,
    OUT,
    TEMPORARY,
    directory_swap,
    make_directory,
    read_bounded,
    write_atomic,
    writing,
)


def test_write_replaces_whole(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "first")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_disk_full_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "file", "good")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phase8.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_atomic(path, "half")
    assert "free some disk space" in caught.value.fix
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]


def test_directory_swap_keeps_the_old_on_failure(tmp_path):
    target = tmp_path / "dir"
    with directory_swap(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), directory_swap(target) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with directory_swap(target) as fresh:
        (fresh / "b").write_text("3")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["dir"]


def test_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        make_directory(tmp_path / "file" / "below")


def test_read_only_disk(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("phase8.files.Path.mkdir", read_only)
    with pytest.raises(OutputError, match="Read-only") as caught:
        make_directory(tmp_path / "run")
    assert "writable disk" in caught.value.fix


@pytest.mark.parametrize(
    ("error", "says"),
    [(OSError(28, "No space left on device"), "free some disk space"), (Exception("I/O error (os error 28)"), "free"),
     (RuntimeError("cannot write (os error 30)"), "writable disk")],
)  # fmt: skip
@pytest.mark.parametrize("place", [CACHE, TEMPORARY, OUT])
def test_whoever_meets_a_full_disk_the_error_names_the_right_place(error, says, place):
    """transformers' and safetensors' Rust parts raise plain exceptions with the number in the text."""
    with pytest.raises(OutputError) as caught, writing("somewhere", place):
        raise error
    assert says in caught.value.fix and place in caught.value.fix and "output_dir" not in caught.value.fix
    with pytest.raises(ValueError), writing("somewhere", place):
        raise ValueError("something else")


def test_reading_is_bounded(tmp_path):
    path = write_atomic(tmp_path / "file", b"12345")
    assert read_bounded(path, 5, error=ArtifactError) == b"12345"
    with pytest.raises(ArtifactError, match="larger"):
        read_bounded(path, 4, error=ArtifactError)
    with pytest.raises(ArtifactError, match="cannot read"):
        read_bounded(tmp_path / "none", 4, error=ArtifactError)
