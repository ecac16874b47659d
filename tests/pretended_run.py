"""Stands in for run.py where a test starts runs: writes an invented log and obeys its control file, in no time.

`seed` chooses what happens: 0 runs to the end once the file `go` is in its directory, 1 ends with an error before it
writes a line, 2 with an error that it tells in its log.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import invented_log

directory = Path(next(w.partition("=")[2].strip("'") for w in sys.argv if w.startswith("hydra.run.dir=")))
seed = next((int(word.partition("=")[2]) for word in sys.argv if word.startswith("seed=")), 0)
if seed == 1:
    sys.exit("error: nothing works today")
directory.mkdir(parents=True, exist_ok=True)
(directory / "config.yaml").write_text(f"seed: {seed}\n")
line = invented_log.Lines(time.time())


def wish() -> dict:
    try:
        return json.loads((directory / "control.json").read_text())
    except FileNotFoundError:
        return {"state": "run"}


with (directory / "events.jsonl").open("a") as log:
    fcntl.flock(log, fcntl.LOCK_EX)

    def tell(*texts: str) -> None:
        log.writelines(texts)
        log.flush()

    tell(*invented_log.head(line, directory))
    if seed == 2:
        tell(line("failed", None, error="ModelError", what="the model is gone", where="model", fix="bring it back"))
        sys.exit(2)
    tell(line("stage_start", "seedlm", attempt=1))
    held = False
    while not (directory / "go").exists() or held:
        wanted = wish()
        if wanted["state"] == "abort":
            tell(line("aborted", None, by="control", reason=wanted["reason"], step="encode"))
            tell(*invented_log.tail(line, 1.0, 1, interrupted=True, stopped=wanted["reason"]))
            sys.exit(130)
        if (wanted["state"] == "pause") != held:
            held = not held
            tell(
                line("paused", "seedlm", step="encode")
                if held
                else line("resumed", "seedlm", step="encode", paused_s=1)
            )
        time.sleep(0.02)
    tell(*list(invented_log.whole(directory))[8:])
