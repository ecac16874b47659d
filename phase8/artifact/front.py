"""What stands in the file before the payload: a safetensors header, and in it the manifest, deflated JSON.

`docs/format.md`, sections 2 and 3, is the specification. Nothing is inflated or parsed beyond what the file's own
length allows (`phase8.limits`). Example: a file of 459,000 bytes whose manifest inflates to 14 million commas is
refused after 3.7 MB of text, or at 234,000 of them, before any becomes an object.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Any

from phase8.artifact.raw import COPY_ANEW, Raw, strict_json
from phase8.errors import ArtifactError
from phase8.limits import Budget

FORMAT = "phase8"
VERSION = 4
MAX_HEADER_BYTES = 1 << 23
_HEADER_PARTS = 256
"""Parts of the safetensors header: about thirty, if no other program that passed the file on has added some."""


def read_front(raw: Raw, where: str, budget: Budget) -> tuple[dict[str, Any], int]:
    """The manifest, unchecked but for its checksum, and how many bytes stand before the payload.

    Raises:
        ArtifactError: this is no such file, is one of another version, is damaged, or would take more than the budget.
    """
    if raw.size < 8:
        raise ArtifactError("the file is too short to be an artifact", where=where, fix=COPY_ANEW)
    (header_bytes,) = struct.unpack("<Q", raw.part(0, 8))
    if header_bytes > min(raw.size - 8, MAX_HEADER_BYTES):
        raise ArtifactError("the header is longer than the file, or than any header", where=where, fix=COPY_ANEW)
    budget.spend("text", header_bytes)
    payload_bytes = raw.size - 8 - header_bytes
    try:
        front = bytes(raw.part(8, header_bytes))
        if parts(front) > _HEADER_PARTS:
            raise ValueError("more parts than such a header has")
        header = strict_json(front)
        del front
        metadata, entry = header["__metadata__"], header["payload"]
        begin, end = entry["data_offsets"]
        kind, version, crc = metadata["format"], metadata["version"], metadata["manifest_crc32"]
        deflated = base64.b64decode(metadata["manifest"].encode("ascii"), validate=True)
        natural = all(type(n) is int and n >= 0 for n in (begin, end, *entry["shape"]))
        well_formed = natural and entry["dtype"] == "U8" and begin == 0 and entry["shape"] == [end]
        if kind != FORMAT or not well_formed or header.keys() != {"__metadata__", "payload"}:
            raise ValueError("format")
    except binascii.Error as error:
        raise ArtifactError("the manifest is damaged (base64)", where=where, fix=COPY_ANEW) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            "this is not a phase8 artifact", where=where, fix="name a directory that this tool wrote"
        ) from error
    if version != str(VERSION):
        older = "; versions 1 to 3 were never released" if version in ("1", "2", "3") else ""
        raise ArtifactError(
            f"the artifact has format version {str(version)[:20]}, this program reads {VERSION}{older}",
            where=where,
            fix="write the artifact anew from the model" if older else "update phase8, or write the artifact anew",
        )
    if payload_bytes != end:
        raise ArtifactError(f"the payload has {payload_bytes} of {end} bytes", where=where, fix=COPY_ANEW)
    return _manifest(deflated, crc, where, budget), 8 + header_bytes


def _manifest(deflated: bytes, crc: Any, where: str, budget: Budget) -> dict[str, Any]:
    try:
        inflater = zlib.decompressobj()
        most = budget.most("text")
        text = inflater.decompress(deflated, most + 1)
        budget.spend("text", len(text))
        if not inflater.eof or inflater.unused_data or str(zlib.crc32(text)) != crc:
            raise ValueError("checksum")
        budget.spend("parts", parts(text))
        manifest = strict_json(text)
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except (ValueError, zlib.error) as error:
        raise ArtifactError("the manifest is damaged (checksum)", where=where, fix=COPY_ANEW) from error
    return manifest


def parts(text: bytes) -> int:
    """Bounds the memory that a JSON text takes when it is parsed: some 64 bytes a part; a dictionary counts as four."""
    return text.count(b",") + text.count(b"[") + 4 * text.count(b"{")
