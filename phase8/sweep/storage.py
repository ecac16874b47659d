"""Where a study lives, by URL.

    sqlite:///DIR/study.db               one machine, any number of processes
    journal:DIR/study.log                a plain file, also on a network disk (NFS) that SQLite's locks do not survive
    postgresql://USER@HOST/NAME          several machines; the password in ~/.pgpass or ${oc.env:NAME}, not in a file

`open_storage` writes to it before it returns: a database that cannot be reached, is locked or may not be written to is
an error before the first trial, not after an hour.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase8.errors import ConfigError, StudyError
from phase8.files import make_directory

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

CONNECT_S = 10
"""How long a database may take to answer at first."""
BUSY_S = 60
"""How long a trial waits for another process to let go of SQLite's lock."""
RACES = 10
"""How often the tables are tried again when other workers make them too."""
INSTALL = 'pip install -e ".[cluster]"'


def shown(url: str) -> str:
    """The URL without its password, for people and files."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def absolute(url: str) -> str:
    """A file's URL with its whole path, so that workers in other directories open the same file; others as they are."""
    for prefix in ("sqlite:///", "journal:"):
        if url.startswith(prefix):
            return prefix + str(Path(url.removeprefix(prefix)).expanduser().absolute())
    return url


def open_storage(url: str, *, wait_s: float = BUSY_S) -> BaseStorage:
    """Opens a study's storage and makes what is missing.

    Args:
        url: see the module's head.
        wait_s: how long SQLite may be locked by another process.

    Raises:
        ConfigError: no such kind of storage, or its driver is not installed.
        StudyError: it cannot be reached, is locked, or may not be written to.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = absolute(url)
    if url.startswith("journal:"):
        return _journal(Path(url.removeprefix("journal:")))
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        make_directory(path.parent)
        return _database(url, {"creator": lambda: _connect(path, wait_s)})
    if url.startswith(("postgresql://", "postgresql+psycopg://", "postgresql+psycopg2://")):
        return _database(_with_driver(url), {"connect_args": {"connect_timeout": CONNECT_S}, "pool_pre_ping": True})
    raise ConfigError(
        f"there is no storage of the kind {shown(url).split(':')[0]!r}",
        where=f"hydra.sweeper.storage={shown(url)}",
        fix="sqlite:///FILE, journal:FILE or postgresql://USER@HOST/DATABASE",
    )


def _connect(path: Path, wait_s: float) -> sqlite3.Connection:
    """A connection whose commits outlive a killed process without waiting for the disk each time.

    With a write-ahead log and `synchronous=NORMAL` only a power cut can undo the last commits, never break the file; a
    trial takes some forty commits, and each would wait for a busy disk for a tenth of a second.
    """
    connection = sqlite3.connect(path, timeout=wait_s, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _with_driver(url: str) -> str:
    if not url.startswith("postgresql://"):
        return url
    for module in ("psycopg", "psycopg2"):
        if find_spec(module) is not None:
            return url.replace("postgresql://", f"postgresql+{module}://", 1)
    raise ConfigError("PostgreSQL needs a driver that is not installed", where=f"storage {shown(url)}", fix=INSTALL)


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    make_directory(path.parent)
    try:
        with path.open("ab"):
            pass
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot use the journal: {error}", where=str(path), fix=_WRITABLE) from error


_WRITABLE = "name a file that you may write to: hydra.sweeper.storage=sqlite:///DIR/study.db"


def _database(url: str, engine: dict[str, Any]) -> BaseStorage:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    def attempt() -> BaseStorage:
        storage = RDBStorage(url, engine_kwargs=engine)
        _write(storage)
        return storage

    def patiently() -> BaseStorage:
        """Workers that begin together make the tables at the same moment; those that come second try again."""
        for number in itertools.count(1):
            try:
                return attempt()
            except SQLAlchemyError as error:
                raced = re.search("already exists|duplicate key|UNIQUE constraint|deadlock", str(error))
                if raced is None or number == RACES:
                    raise
                time.sleep(0.2 * number)
        raise AssertionError("unreachable")

    try:
        return patiently()
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        raise _unusable(error, url) from error


def _write(storage: Any) -> None:
    """Takes the database's write lock once."""
    from sqlalchemy import text

    with storage.engine.begin() as connection:
        connection.execute(text("UPDATE version_info SET schema_version = schema_version"))


def _unusable(error: BaseException, url: str) -> StudyError:
    cause = getattr(error, "orig", None) or error
    reason = " ".join(str(cause).split())[:300]
    low = reason.lower()
    what, fix = f"the study's database cannot be used: {reason}", _WRITABLE
    if "locked" in low:
        what = "the study's database is locked by another process"
        fix = "wait for that process or end it; for many workers take PostgreSQL (docs/cluster.md)"
    elif "readonly" in low or "permission" in low or "unable to open" in low:
        what = f"the study's database may not be written to ({reason})"
    elif "password" in low or "authentication" in low or "role" in low:
        what, fix = f"the database refuses the user: {reason}", "put the password into ~/.pgpass (docs/cluster.md)"
    elif not url.startswith("sqlite"):
        what = f"the study's database cannot be reached: {reason}"
        fix = "is the server running, and the host, port and name right? `psql URL` tries it (docs/cluster.md)"
    elif "not a database" in low or "malformed" in low:
        what, fix = f"the file is no SQLite database: {reason}", "name another file"
    return StudyError(what, where=shown(url), fix=fix)
