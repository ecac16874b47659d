"""docs/extend.md keeps its word: its codec, put where the page says, runs through the pipeline; its onlooker looks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phase8.events import CompressionProgress, EventLog, QualityGate, read_events

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(?:python|yaml)\n(.*?)```", (ROOT / "docs" / "extend.md").read_text("utf-8"), flags=re.S)


def block(start: str) -> str:
    """The block of code of the page that begins so."""
    (found,) = [text for text in BLOCKS if text.startswith(start)]
    return found


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the program with the page's codec in it."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "phase8", tree / "phase8", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", tree / "conf")
    shutil.copy(ROOT / "run.py", tree)
    for extra in ("hydra_plugins", "sweeps"):
        if (ROOT / extra).is_dir():
            shutil.copytree(ROOT / extra, tree / extra, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tree / "phase8" / "codecs" / "sign"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A sign for every weight."""\n')
    for name in ("settings", "decode", "encode"):
        (folder / f"{name}.py").write_text(block(f"# phase8/codecs/sign/{name}.py"))
    table = tree / "phase8" / "codecs" / "stages.py"
    before, after = table.read_text().split("\n)\n\nNAMES", 1)
    line = block("# into STAGES").split("\n", 1)[1].rstrip()
    imported = "from phase8.codecs.sign.settings import SignConfig\n@dataclass"
    table.write_text(f"{before.replace('@dataclass', imported, 1)}\n{line}\n)\n\nNAMES{after}")
    settings = tree / "conf" / "compressor" / "default.yaml"
    settings.write_text(settings.read_text() + block("# into conf/compressor/default.yaml"))
    return tree


def call(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_codec_of_the_page_runs_through_the_pipeline(extended, tiny_model_dir):
    run = extended / "outputs" / "run"
    call(
        extended, "run.py", "sign.enabled=true", "seedlm.enabled=false", "vptq.enabled=false", "hyper.enabled=false",
        "model=local", f"model.path={tiny_model_dir}", "benchmarks.edge_pool=shipped", "benchmark_samples=4",
        "skip_expert_benchmarks=true", "max_retries=0", "logger=none", "grokfast.iterations=2",
        "optimizer.precision=float32", "optimizer.calibration_sequences=4", "optimizer.batch_sequences=2",
        "optimizer.held_out_sequences=2", "optimizer.sequence_tokens=16", f"hydra.run.dir={run}",
        f"paths.cache_dir={extended / 'cache'}",
    )  # fmt: skip
    entry = json.loads((run / "result.json").read_text())["stages"]["sign"]
    assert 1.2 < entry["bits_per_weight"] < 4  # small matrices: the manifest weighs as much as the signs
    kinds = [(event.kind, event.stage) for event in read_events(run / "events.jsonl")]
    assert ("quality_gate", "sign") in kinds and ("training_complete", "sign") in kinds
    report = (run / "report.html").read_text()
    assert "--sign:#8d5fa8" in report and "Sign" in report
    # Another process reads the file with numpy alone, and budgets and grids work on the codec as on the others.
    assert "sign" in call(extended, "-m", "phase8", "inspect", str(run / "artifacts" / "sign"))
    script = (
        "import sys\n"
        "from phase8.artifact.read import read_manifest\n"
        "names = [name for name, _ in read_manifest(sys.argv[1]).tensors()]\n"
        "assert len(names) > 10 and 'torch' not in sys.modules\n"
        "from phase8.config import CompressionConfig\n"
        "config = CompressionConfig().changed({'sign.block_size': 32, 'gates.core.sign': 0.5})\n"
        "assert [c.block_size for c in config.sign.alternatives()] == [1024, 256, 64, 32, 16]\n"
        "print('fine')\n"
    )
    assert "fine" in call(extended, "-c", script, str(run / "artifacts" / "sign"))


def test_the_onlooker_of_the_page_looks(tmp_path):
    found: dict = {}
    exec(block("from phase8.events import Event"), found)
    onlooker = found["Smallest"]()
    sizes = {"seedlm": (900, True), "vptq": (500, True), "hyper": (100, False)}
    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(onlooker)
        for stage, (size, passed) in sizes.items():
            log.emit(progress(size), stage)
            log.emit(gate(passed), stage)
    assert onlooker.best == (500, "vptq")
    again = found["Smallest"]()
    for event in read_events(tmp_path / "events.jsonl"):
        again(event)
    assert again.best == onlooker.best


def progress(size: int) -> CompressionProgress:
    return CompressionProgress(
        attempt=1, compressed_bytes=size, original_bytes=1000, ratio=1000 / size, bits_per_weight=1.0, groups={}
    )


def gate(passed: bool) -> QualityGate:
    unknown = {"bits_per_byte": None, "baseline_bits_per_byte": None}
    return QualityGate(attempt=1, passed=passed, abort=None, wording="", checks=(), **unknown)
