"""Where the bytes of an artifact are. Numpy alone, like the reader."""

from __future__ import annotations

from phase8.artifact.read import WEIGHTS_FILE, Artifact
from phase8.codecs.pools import kind_of


def account(artifact: Artifact) -> list[tuple[str, str, int]]:
    """Every byte of the artifact as rows (section, what, bytes); the rows add up to `size_bytes`.

    A pool's bytes are shared out among the kinds of tensors in it by their packed bits (largest remainder), since the
    entropy coder codes them together.
    """
    rows: list[tuple[str, str, int]] = []
    for pool in artifact.pools:
        group = artifact.groups[pool.group]
        section = f"{group.codec}: {pool.role} ({pool.coding})"
        if pool.shared:
            owners = {kind_of(name) for name in group.tensors}
            rows.append((section, owners.pop() if len(owners) == 1 else "shared", pool.size_bytes))
            continue
        counts: dict[str, int] = {}
        for name, tensor in group.tensors.items():
            stream = tensor.streams.get(pool.role)
            if stream is not None and stream.bits == pool.bits:
                counts[kind_of(name)] = counts.get(kind_of(name), 0) + stream.values.size
        total = max(sum(counts.values()), 1)
        exact = {kind: pool.size_bytes * count / total for kind, count in counts.items()}
        share = {kind: int(value) for kind, value in exact.items()}
        for kind in sorted(exact, key=lambda k: share[k] - exact[k])[: pool.size_bytes - sum(share.values())]:
            share[kind] += 1
        rows.extend((section, kind, size) for kind, size in share.items())
    rows.append((WEIGHTS_FILE, "header and manifest", artifact.overhead_bytes))
    rows.extend((name, "whole file", size) for name, size in artifact.sizes.items() if name != WEIGHTS_FILE)
    return rows


def bytes_by_kind(artifact: Artifact) -> dict[str, int]:
    """Bytes per kind of tensor; `shared`, `header and manifest` and `whole file` (config) are kinds of their own."""
    kinds: dict[str, int] = {}
    for _, what, size in account(artifact):
        kinds[what] = kinds.get(what, 0) + size
    return kinds
