"""A study in PostgreSQL, shared by two processes. The server is Debian's package (`apt-get install postgresql`), begun
here on a port of its own; nothing of the machine's own servers is touched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest

from phase8.errors import StudyError
from phase8.sweep.storage import open_storage
from phase8.sweep.study import counts

ROOT = Path(__file__).parent.parent
APP = ROOT / "tests" / "sweep_app" / "app.py"


def binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URL of a database; the server ends with the tests."""
    if find_spec("psycopg") is None or binary("initdb") is None:
        pytest.skip('needs PostgreSQL (apt-get install postgresql) and its driver (pip install -e ".[cluster]")')
    # Outside pytest's own directory, which belongs to whoever runs the tests: the server refuses to run as root.
    place = Path("/tmp") / f"phase8-postgres-{os.getpid()}"
    place.mkdir(mode=0o700)
    account = "postgres" if os.geteuid() == 0 else None
    if account is not None:
        shutil.chown(place, account)

    def call(*arguments: str) -> None:
        subprocess.run(
            arguments, user=account, cwd=place, check=True, timeout=120, capture_output=True, env={"LC_ALL": "C.UTF-8"}
        )

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = place / "data"
    try:
        call(binary("initdb"), "-D", str(data), "-U", "study", "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
        call(binary("pg_ctl"), "-D", str(data), "-o", options, "-l", str(place / "log"), "-w", "start")
        try:
            yield f"postgresql://study@127.0.0.1:{port}/postgres"
        finally:
            call(binary("pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
def test_two_processes_finish_one_study(server, tmp_path):
    command = [
        sys.executable, str(APP), "-m", "hydra/sweeper=study", "hydra.sweeper.study=shared", "hydra.sweeper.n_trials=8",
        "+hydra.sweeper.objectives={value: maximize}", "hydra.sweep.dir=study", "x=interval(-3,3)", "sleep_s=0.3",
        "hydra.sweeper.storage=${oc.env:STUDY_URL}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STUDY_URL": server}
    workers = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    shown = [worker.communicate(timeout=400)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], shown
    study = optuna.load_study(study_name="shared", storage=open_storage(server))
    trials = [trial for trial in study.trials if counts(trial)]
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8
    assert len({trial.user_attrs["driver"]["pid"] for trial in trials}) == 2
    assert len({trial.params["x"] for trial in trials}) == 8
    with pytest.raises(StudyError, match="cannot be reached"):
        open_storage(server.replace("/postgres", "/missing"))
