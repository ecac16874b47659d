"""A whole `run.py` process that is sent SIGTERM in the middle of a stage, as a batch system or a shutdown does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from phase8.events import read_events

ROOT = Path(__file__).parents[1]

HELD = """
import runpy, sys, time
from phase8.run.context import Context

progress = Context.progress

def held(self, step, stage, done, total, text):
    progress(self, step, stage, done, total, text)
    if (step, stage, done) == ("optimise", "vptq", 3):
        print("held", file=sys.stderr, flush=True)
        while True:
            time.sleep(60)  # until the signal

Context.progress = held
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""
"""`run.py`, that stops at the third step of VPTQ's training and says so: the moment of the signal hangs on no clock."""


def test_sigterm_in_the_middle_of_a_stage_ends_as_ctrl_c_does(tmp_path, tiny_model_dir):
    run_dir = tmp_path / "run"
    arguments = [
        "model=local", f"model.path={tiny_model_dir}", "benchmark_samples=4", "skip_expert_benchmarks=true",
        "seedlm.enabled=false", "hyper.enabled=false", "vptq.codebook_size=16", "max_retries=0", "logger=none",
        "grokfast.iterations=8", "optimizer.calibration_sequences=8", "optimizer.held_out_sequences=2",
        "optimizer.batch_sequences=2", "optimizer.sequence_tokens=32", "optimizer.precision=float32",
        "benchmarks.edge_pool=shipped",
        f"hydra.run.dir={run_dir}", f"paths.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", HELD, *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line == "held\n":
                process.send_signal(signal.SIGTERM)
        said = "".join(said)
    assert "held" in said, said
    assert process.returncode == 130 and "Traceback" not in said, said
    result = json.loads((run_dir / "result.json").read_text())
    assert result["interrupted"] is True and result["stopped"] == "SIGTERM" and result["success"] is False
    events = read_events(run_dir / "events.jsonl")
    assert [event.kind for event in events][-2:] == ["aborted", "phase_complete"]
    aborted = events[-2].data
    assert (aborted.by, aborted.reason, aborted.step) == ("signal", "SIGTERM", "optimise")
    assert (run_dir / "report.html").exists()

    again = subprocess.run(
        [sys.executable, "run.py", f"resume={run_dir}"], cwd=ROOT, env=environment, text=True,
        capture_output=True, timeout=900,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    result = json.loads((run_dir / "result.json").read_text())
    assert result["interrupted"] is False and result["stages"]["vptq"]["attempts"][0]["benchmarks"]
    events = read_events(run_dir / "events.jsonl")
    steps = Counter((e.stage, e.data.step) for e in events if e.kind == "step_complete")
    assert steps["vptq", "optimise"] == steps["vptq", "encode"] == steps["baseline", "evaluate"] == 1
