"""Baselines measured before: the same model on the same suite need not be measured again.

A file is one JSON object, and its checksum on the last line (`phase8.files.write_sealed`). A gate's verdict hangs on
every value in it, so nothing is believed that does not sum up, or is not a score: such a file counts as none, and the
baseline is measured anew.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from phase8.benchmarks.evaluate import SuiteResult
from phase8.errors import BenchmarkError, Phase8Error
from phase8.files import CACHE, make_directory, read_sealed, write_sealed

MAX_BYTES = 64 << 20
HASH_DIGITS = 32
"""Of each hash in a file's name; the whole of both stands inside."""


class BaselineCache:
    """Results on disk, one JSON file per model and suite. Safe to delete."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def get(self, model_hash: str, suite_hash: str) -> SuiteResult | None:
        """The result kept for this pair, or None. A file that cannot be used is warned of, and counts as none."""
        path = self._path(model_hash, suite_hash)
        if not path.exists():
            return None
        try:
            content = json.loads(read_sealed(path, MAX_BYTES, error=BenchmarkError))
            if (content["model"], content["suite"]) != (model_hash, suite_hash):
                raise ValueError("it belongs to another model or suite")
            return SuiteResult.from_json(json.dumps(content["result"]))
        except Exception as error:  # whatever a broken file leads to, the answer is to measure anew
            reason = error.what if isinstance(error, Phase8Error) else f"{type(error).__name__}: {error}"
            warnings.warn(f"the cached baseline {path} is unusable and will be measured anew ({reason})", stacklevel=2)
            return None

    def put(self, model_hash: str, suite_hash: str, result: SuiteResult) -> None:
        """Keeps a result.

        Raises:
            OutputError: the directory cannot be written to; what was there before is untouched.
        """
        make_directory(self.directory, CACHE)
        content = {"model": model_hash, "suite": suite_hash, "result": json.loads(result.to_json())}
        write_sealed(self._path(model_hash, suite_hash), json.dumps(content), CACHE)

    def _path(self, model_hash: str, suite_hash: str) -> Path:
        parts = [re.sub(r"[^0-9A-Za-z]", "", part)[:HASH_DIGITS] for part in (model_hash, suite_hash)]
        return self.directory / f"baseline-{parts[0]}-{parts[1]}.json"
