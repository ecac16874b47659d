"""Forged files: the forgeries that were found by hand, with the cost that refuses them, and a short campaign."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from experiments import forge, fuzz_mutations
from phase8.artifact.read import parse, read_manifest
from phase8.codecs.streams import Layout
from phase8.errors import ArtifactError
from phase8.limits import TRUSTED, Budget, Limits, Rate

SERIES = {"trajectory": "polynomial", "degree": 5, "block_size": 0, "coefficient_bits": 8, "exponent": 0}
REGISTER = {"block_size": 4, "latent_dim": 2, "bits": 4, "seed_bits": 20, "exponent_bits": 4}


def refused(raw: bytes, match: str, most_bytes: int = 1 << 21) -> None:
    """A file is refused for this reason, in next to no memory, before a stream is decoded."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=match):
            parse(raw)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def test_one_polynomial_over_a_claimed_matrix() -> None:
    raw = forge.put_together([forge.Group("hyper", SERIES, {"a": (65536, 4096)})], forge._valid)
    assert len(raw) < 800
    refused(raw, "268,435,456 weights, more than the [34],")


def test_a_register_of_20_bits_for_every_few_weights() -> None:
    groups: list[forge.Group] = [forge.Group("seedlm", REGISTER, {f"a{n}": (2, 2)}) for n in range(57)]
    raw = forge.put_together(groups, forge._valid)
    refused(raw, "operations, more than")
    one = forge.put_together(groups[:1], forge._valid)  # as many as the file's length is good for may be built
    assert len(dict(parse(one).artifact().tensors())) == 1


@pytest.mark.parametrize("note", [[[]] * 3_000_000, [0] * 6_000_000, [{"": 0}] * 1_000_000, "x" * 30_000_000])
def test_a_manifest_of_millions_of_parts(note: Any) -> None:
    """Whatever config.json claims: it is not even asked."""
    raw = forge.put_together([], forge._valid, note)
    refused(raw, "(parts|text), more than", most_bytes=24 * len(raw) + (1 << 21))


def test_a_pool_is_measured_before_it_is_read(tmp_path) -> None:
    """Its length is that of the packed form at most; a file of holes costs its maker nothing."""
    header, manifest, _ = fuzz_mutations.take_apart(
        forge.put_together([forge.Group("plain", {"dtype": "float32"}, {"a": (8,)})], forge._valid)
    )
    hole = 3 << 30
    manifest["pools"][0][6] = hole
    header["payload"] = {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]}
    front = fuzz_mutations.put_together(header, json.dumps(manifest).encode(), b"", checksum=False)
    (size,) = struct.unpack_from("<Q", front)
    text = json.loads(front[8 : 8 + size])
    text["__metadata__"]["manifest_crc32"] = str(zlib.crc32(json.dumps(manifest).encode()))
    front = json.dumps(text).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(front)) + front)
        file.truncate(8 + len(front) + hole)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="3221225472 bytes, packed it would have 32"):
        read_manifest(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 21
    tracemalloc.stop()


def test_streams_of_one_symbol_take_no_more_than_the_budget() -> None:
    """The entropy coder writes a million of them in a dozen bytes."""
    raw = forge.put_together([forge.Group("plain", {"dtype": "float16"}, {"a": (1 << 22,)})], forge._valid)
    assert len(raw) < 1000
    refused(raw, "(values|weights), more than")


@pytest.mark.parametrize("family", [*forge.FAMILIES, "manifest of brackets"])
def test_every_family_is_refused_at_a_large_size_and_read_at_a_small_one(family, monkeypatch) -> None:
    """So the budgets lie within what the forger draws, and a forgery is right but for its cost."""
    outcomes = set()
    for factor in (1 / 512, 512):
        monkeypatch.setattr(forge, "_around", lambda draw, middle, most, f=factor: int(min(max(middle * f, 1), most)))
        monkeypatch.setattr(forge, "MOST_VALUES", 1 << 16)
        for number in range(40):
            draw = np.random.default_rng([7, number])
            monkeypatch.setattr(forge, "FAMILIES", {k: v for k, v in forge.FAMILIES.items() if k == family})
            made = forge.forge(draw)
            if made is not None and made.family == family:
                seen = forge.measure(made)
                assert seen.peak_bytes < forge.PEAK_LIMIT
                outcomes.add(seen.outcome.split(":")[0])
                if ("refused" if factor > 1 else "decoded") in outcomes:
                    break
    assert outcomes == {"refused"} if family in forge.NEVER_READ else outcomes >= {"refused", "decoded"}, outcomes


@pytest.mark.parametrize("kind", [*forge.WRONG_OWNERS, forge.OTHER_SHAPE])
@pytest.mark.parametrize("count", [4, 300])
def test_integers_of_no_matrix_are_refused_before_anything_is_decoded(kind, count) -> None:
    """Circles and chains are not followed: an owner has integers of its own."""
    raw = forge.put_together([forge.wrong_owner(kind, count, (3, 5))], forge._valid)
    refused(raw, "shares the integers of matrix|is no part of a matrix|text, more than")


def test_an_honest_lattice_of_the_same_making_is_read() -> None:
    """What the forgeries above differ in is their claim alone."""
    group = forge.wrong_owner("itself", 4, (3, 5))._replace(written=None)
    weights = dict(parse(forge.put_together([group], forge._valid)).artifact().tensors())
    assert len(weights) == 4 and all((one == 1.0).all() for one in weights.values())


def test_sharing_multiplies_no_cost_beyond_the_budgets() -> None:
    """One matrix of 2^18 zeros under 300 names stands for 79 million weights; 150 that wait for a second use would be
    held at once."""
    many = {"extents": [[512, 512]] + [0] * 299, "coded_bytes": 1}
    shapes: dict[str, tuple[int, ...]] = {str(n): (512, 512) for n in range(300)}
    raw = forge.put_together([forge.Group("lattice", many, shapes, {"codes": np.array([9])})], forge._valid)
    refused(raw, "weights, more than")
    waiting = {"extents": [[256, 115]] * 150 + list(range(150)), "coded_bytes": 150}
    shapes = {str(n): (256, 115) for n in range(300)}
    raw = forge.put_together([forge.Group("lattice", waiting, shapes, {"codes": np.arange(150) + 1})], forge._valid)
    refused(raw, "(table|steps), more than")


@pytest.mark.parametrize("count", [12, pytest.param(40, marks=pytest.mark.slow)])
def test_a_short_campaign_costs_little(count) -> None:
    found = forge.campaign(count, seed=3)
    assert len(found) == count and len({one.outcome.split(":")[0] for one in found}) == 2
    assert max(one.peak_bytes for one in found) < forge.PEAK_LIMIT, max(found, key=lambda one: one.peak_bytes)
    assert "refused" in forge.as_markdown(found, 3)


# -- the budget ----------------------------------------------------------------------------------------------------


def test_a_budget_is_what_the_table_says_and_the_opener_may_change_it() -> None:
    budget = Budget(Limits(), 705, "here")
    assert budget.most("weights") == 2**20 + 4096 * 705
    assert Budget(Limits(), 10**8).most("weights") == 2**26 + 128 * 10**8
    assert budget.most("operations", weights=10) == 2**26 + 4096 * 705 + 640
    budget.spend("table", 2**22)
    with pytest.raises(ArtifactError, match=r"(?s)4,194,305 .*table.*705 bytes.*where: here.*`table` in phase8.limits"):
        Budget(Limits(table=Rate(2**22, 0)), 705, "here").spend("table", 2**22 + 1)
    with pytest.raises(ArtifactError, match="more than the"):
        budget.spend("table", 64 * 705 + 1)
    assert Budget(Limits(max_weights=5), 10**6).most("weights") == 5
    assert Budget(TRUSTED, 1).most("parts") > 2**60


def test_what_a_decoder_says_of_its_steps_is_held_against_the_budget(monkeypatch) -> None:
    """A decoder that takes symbols one by one, in Python, needs no more than to say how many."""
    from phase8.codecs.plain import decode as plain

    raw = forge.put_together([forge.Group("plain", {"dtype": "float16"}, {"a": (8,)})], forge._valid)
    layout = plain.layout

    def slow(settings, shapes) -> Layout:
        found = layout(settings, shapes)
        return Layout(tensors=found.tensors, shared=found.shared, operations=found.operations, steps=1 << 22)

    monkeypatch.setattr(plain, "layout", slow)
    with pytest.raises(ArtifactError, match="4,194,304 steps, more than"):
        parse(raw)
