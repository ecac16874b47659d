"""The sandbox's walls: what each kind must keep in, and what is said where a system has none."""

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from phase8.benchmarks import sandbox as sandbox_module
from phase8.benchmarks import suite as suite_module
from phase8.benchmarks.sandbox import KINDS, Sandbox
from phase8.errors import BenchmarkError

PLENTY_S = 60.0
ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")


@pytest.fixture(params=KINDS, scope="module")
def sandbox(request):
    try:
        sandbox = Sandbox(kinds=[request.param])
    except BenchmarkError as error:
        pytest.skip(error.what)
    yield sandbox
    sandbox.close()


@pytest.fixture
def public():
    """A directory that everybody may use; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="phase8-public-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


# Makes the C library's calls; `system` by number, so that no wrapper stands between.
CALLS = "import ctypes, os\nC = ctypes.CDLL(None, use_errno=True)\nC.shmat.restype = ctypes.c_void_p\n"
LIFTED = (
    "import builtins, sys\n"
    "main = sys.modules['__main__']\n"
    "for name in list(vars(main)):\n"
    "    value = getattr(main, name)\n"
    "    if isinstance(value, tuple): setattr(main, name, ())\n"
    "    if isinstance(value, dict) and name != '__builtins__': value.clear()\n"
    "main.FORBIDDEN = ()\nsys.addaudithook = lambda hook: None\n"
)


def test_rules_do_not_live_in_the_interpreter(sandbox, public):
    precious = public / "precious"
    precious.write_text("here")
    precious.chmod(0o666)
    act = f"import os\nopen({str(precious)!r}, 'w').write('gone')"
    raw = f"fd = C.open({str(precious).encode()!r}, os.O_WRONLY | os.O_TRUNC)\nC.write(fd, b'gone', 4)\nassert fd >= 0"
    for program in (LIFTED + act, LIFTED + CALLS + raw, CALLS + f"assert C.unlink({str(precious).encode()!r}) == 0"):
        assert not sandbox.run(program, PLENTY_S)
        assert precious.read_text() == "here"


def test_no_file_of_the_machine_is_read(sandbox, public):
    secret = public / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    for path in (str(secret), "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline", __file__):
        assert not sandbox.run(f"open({path!r}, 'rb').read()", PLENTY_S), path
    assert not sandbox.run("import os\nassert os.listdir('/proc')", PLENTY_S)


FORGE = (
    "import os\n"
    "for process in {os.getppid(), 1, *range(max(1, os.getppid() - 3), os.getppid() + 3)}:\n"
    "    for number in range(16):\n"
    "        try:\n"
    "            with open(f'/proc/{process}/fd/{number}', 'wb', buffering=0) as file: file.write(b'1' * 64)\n"
    "        except OSError: pass\n"
    "for number in range(64):\n"
    "    try: os.write(number, b'1' * 64)\n"
    "    except OSError: pass\n"
)


def test_the_next_verdicts_cannot_be_forged(sandbox):
    sandbox.run(FORGE, PLENTY_S)
    assert [sandbox.run("assert False", PLENTY_S) for _ in range(8)] == [False] * 8
    assert sandbox.run("assert True", PLENTY_S)


def test_an_answer_without_the_key_ends_the_server(sandbox, monkeypatch):
    """What a program would achieve that reached the server's output in spite of everything."""
    assert sandbox.run("pass", PLENTY_S)
    read = sandbox._read
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_read", lambda size, wait_s: b"1" * size)
        assert not sandbox.run("pass", PLENTY_S)
        assert sandbox._server is None
    assert sandbox._read == read and sandbox.run("pass", PLENTY_S)


def test_no_program_has_seen_the_key_of_its_answer(sandbox, monkeypatch):
    """The key of this program is a text that it looks for in all of its memory that Python can reach."""
    key = b"phase8-key-of-16"
    monkeypatch.setattr(sandbox_module.os, "urandom", lambda size: key[:size])
    half = key[:8]
    look = (
        f"import gc, sys\nhalf = {half!r}\nfound = [o for o in gc.get_objects() if isinstance(o, bytes | bytearray)]\n"
        "frame = sys._getframe()\n"
        "while frame:\n    found += [v for v in frame.f_locals.values() if isinstance(v, bytes)]\n"
        "    frame = frame.f_back\n"
        "assert not any(half in one for one in found if one is not half)\n"
    )
    assert sandbox.run(look, PLENTY_S)


def test_unix_sockets_are_out_of_reach(sandbox, public):
    path = public / "socket"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(path))
        path.chmod(0o777)
        abstract.bind(f"\0phase8-test-{os.getpid()}")
        for server, address in ((named, str(path)), (abstract, f"\0phase8-test-{os.getpid()}")):
            server.listen()
            server.setblocking(False)
            program = f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})"
            with subprocess.Popen([sys.executable, "-c", program.replace("\0", "\\0")]) as plain:
                plain.wait()
            server.accept()[0].close()  # outside, it does connect
            assert not sandbox.run(program.replace("\0", "\\0"), PLENTY_S)
            with pytest.raises(BlockingIOError):
                server.accept()
    datagram = "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '/run/x')"
    assert not sandbox.run(datagram, PLENTY_S)


def _shared_memory() -> list[str]:
    return Path("/proc/sysvipc/shm").read_text().splitlines()[1:]


def test_shared_memory_neither_escapes_the_limit_nor_outlives_the_program(sandbox):
    before = _shared_memory()
    key = 0x50384653
    take = (
        f"held = [C.shmget({key} + n, 1 << 26, 0o1666) for n in range(16)]\n"
        "assert all(one >= 0 for one in held)\n"
        "assert all(C.shmat(one, None, 0) not in (None, 2**64 - 1) for one in held)"
    )
    assert not sandbox.run(CALLS + take, PLENTY_S)
    assert _shared_memory() == before
    assert not sandbox.run(CALLS + f"assert C.shmget({key}, 1 << 26, 0o666) >= 0", PLENTY_S)
    for name, numbers in (("semget", "5, 1, 0o1666"), ("msgget", "5, 0o1666"), ("memfd_create", "b'x', 0")):
        assert not sandbox.run(CALLS + f"assert C.{name}({numbers}) >= 0", PLENTY_S), name
    assert not sandbox.run(CALLS + "assert C.shm_open(b'/x', os.O_CREAT | os.O_RDWR, 0o600) >= 0", PLENTY_S)


FORBIDDEN = {
    "a process": "assert C.fork() >= 0",
    "a process, by number": "assert C.syscall(435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88) >= 0",
    "another program": "C.execv(b'/bin/true', (ctypes.c_char_p * 2)(b'true', None))\nassert 0",
    "a signal to the server": "assert C.kill(os.getppid(), 0) == 0",
    "a signal to all": "assert C.kill(-1, 0) == 0",
    "a signal by a file": "r, w = os.pipe()\nassert C.fcntl(r, 8, os.getppid()) == 0",
    "the server's limits": "assert C.prlimit(os.getppid(), 7, None, (ctypes.c_uint64 * 2)()) == 0",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "the server's memory": "assert C.ptrace(16, os.getppid(), None, None) == 0",
    "an own namespace": "assert C.unshare(0x10000000) == 0",
    "a mount": "assert C.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "another user": "assert C.setuid(0) == 0 and os.getuid() == 0",
    "a socket": "assert C.socket(2, 1, 0) >= 0",
    "a queue of requests": "assert C.syscall(425, 4, (ctypes.c_uint64 * 15)()) >= 0",
    "watching memory faults": "assert C.syscall(323, 1) >= 0",
    "a key of the kernel's": "assert C.syscall(248, b'user', b'x', b'y', 1, -3) >= 0",
    "an end without its parent": "assert C.prctl(1, 0) == 0",
    "a terminal": "assert C.ioctl(0, 0x5412, b'x') == 0",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_no_program_may_do(sandbox, name):
    assert not sandbox.run(CALLS + FORBIDDEN[name], PLENTY_S)


def test_what_every_program_may_do(sandbox):
    for program in (
        "import os, signal\nseen = []\nsignal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\nassert seen == [1]",
        "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'",
        "import time, threading, random, os\ntime.sleep(0.01)\nassert len(os.urandom(4)) == 4 and os.getpid() > 0",
        "import hashlib, decimal, zlib, sqlite3\nassert hashlib.sha256(b'').hexdigest()[:4] == 'e3b0'\n"
        "assert sqlite3.connect(':memory:').execute('select 6 * 7').fetchone() == (42,)",
        "import sys\nprint('x', file=sys.stderr)\nassert not sys.stdin.isatty() and sys.stdin.read() == ''",
    ):
        assert sandbox.run(program, PLENTY_S), program


def test_a_program_has_files_of_its_own_where_it_has_any(sandbox):
    """With namespaces /tmp is there to write to, is empty each time, is small, and holds few files."""
    write = "import os, tempfile\nassert os.listdir() == []\nopen('x', 'w').write('1')\ntempfile.mkdtemp()"
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"
    many = "for number in range(10_000): open(str(number), 'w').close()"
    big = "for number in range(20): open(str(number), 'wb').write(bytes(1 << 20))"
    expected = sandbox.kind == "namespaces"
    assert [sandbox.run(program, PLENTY_S) for program in (write, deep, write)] == [expected] * 3
    assert [sandbox.run(program, PLENTY_S) for program in (many, big)] == [False, False]


def test_the_empty_file_system_has_pythons_library_and_nothing_else():
    try:
        sandbox = Sandbox(kinds=["namespaces"])
    except BenchmarkError as error:
        pytest.skip(error.what)
    library = os.path.dirname(os.__file__)
    top = sorted({"dev", "tmp", library.split("/")[1], *(["usr"] if os.path.isdir("/usr/share/zoneinfo") else [])})
    assert sandbox.run(f"import os\nassert sorted(os.listdir('/')) == {top!r}, os.listdir('/')", PLENTY_S)
    devices = "['null', 'random', 'urandom', 'zero']"
    assert sandbox.run(f"import os\nassert sorted(os.listdir('/dev')) == {devices}", PLENTY_S)
    assert not sandbox.run(f"open({library + '/os.py'!r}, 'a')", PLENTY_S)
    assert not sandbox.run(f"import os\nassert os.listdir({library + '/site-packages'!r})", PLENTY_S)
    assert not sandbox.run("open('/dev/x', 'w')", PLENTY_S)
    sandbox.close()


# -- systems that allow less ---------------------------------------------------------------------------------------

UNSHARE, MOUNT, LANDLOCK, PRCTL = 272, 165, 444, 157


def _refusing(*numbers: int) -> bytes:
    """A filter, as a container's, that refuses some system calls of x86-64; PRCTL stands for setting a filter."""
    code = [(0x20, 0, 0, 0)]
    for number in numbers:
        if number == PRCTL:  # prctl(PR_SET_SECCOMP, ...)
            code += [(0x15, 0, 4, number), (0x20, 0, 0, 16), (0x15, 0, 1, 22), (0x06, 0, 0, 0x50001)]
            code.append((0x06, 0, 0, 0x7FFF0000))
        else:
            code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50001)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def _in_a_container(*numbers: int, user: int | None = None) -> dict:
    """What a process that may not make these calls finds: the kind of its sandbox, or why it has none."""
    program = (
        "import json, sys\nsys.path[:0] = [sys.argv[1]]\n"
        "from phase8.benchmarks.sandbox import Sandbox\nfrom phase8.errors import BenchmarkError\n"
        "try:\n    sandbox = Sandbox()\n"
        "except BenchmarkError as error:\n    print(json.dumps({'refused': str(error)}))\n"
        "else:\n    verdicts = [sandbox.run(one, 60.0) for one in ('assert 1', 'assert 0', "
        "'import os\\nos.fork()', 'open(\"/etc/passwd\")')]\n"
        "    print(json.dumps({'kind': sandbox.kind, 'verdicts': verdicts, 'words': sandbox.isolation}))\n"
    )
    content = _refusing(*numbers)

    def shut() -> None:
        libc = ctypes.CDLL(None)
        held = ctypes.create_string_buffer(content, len(content))
        header = struct.pack("=H6xQ", len(content) // 8, ctypes.addressof(held))
        zero = ctypes.c_ulong(0)
        libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero)
        assert libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(header), zero, zero) == 0

    who = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    interpreter = sys.executable if user is None else "/usr/bin/python3"
    # phase8/__init__ needs nothing; as another user, only what everybody may read.
    run = subprocess.run(
        [interpreter, "-c", program, str(ROOT)], preexec_fn=shut if numbers else None, capture_output=True, text=True,
        timeout=300, cwd="/", env={}, **who,
    )  # fmt: skip
    if user is not None and ("Permission denied" in run.stderr or "No module named" in run.stderr):
        pytest.skip("this checkout cannot be read by other users")
    return json.loads(run.stdout or json.dumps({"error": run.stderr}))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the containers' filters are written for x86-64")
@pytest.mark.parametrize("user", [None, 65534], ids=["as this user", "as nobody"])
@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        ((), "namespaces"),
        ((UNSHARE,), "landlock"),
        ((MOUNT,), "landlock"),
        ((UNSHARE, LANDLOCK), "seccomp"),
        ((UNSHARE, LANDLOCK, PRCTL), None),
        ((PRCTL,), None),
    ],
    ids=["a whole machine", "no namespaces", "no mounts", "filters only", "nothing", "no filters"],
)
def test_a_system_gets_the_best_walls_that_it_has_or_none_are_faked(refused, kind, user):
    if user is not None and (os.getuid() != 0 or not os.path.exists("/usr/bin/python3")):
        pytest.skip("needs root to become somebody else")
    if kind is not None:
        try:
            Sandbox(kinds=[kind]).close()
        except BenchmarkError as error:
            pytest.skip(error.what)
    found = _in_a_container(*refused, user=user)
    if kind is None:
        assert "cannot be run safely" in found.get("refused", ""), found
        assert "seccomp" in found["refused"] and "leave the code benchmarks out" in found["refused"]
    else:
        assert (found.get("kind"), found.get("verdicts")) == (kind, [True, False, False, False]), found


def test_without_walls_nothing_is_run(monkeypatch):
    with pytest.raises(BenchmarkError, match="cannot be run safely on this system, so it is not run"):
        Sandbox(kinds=["no such wall"])
    monkeypatch.setattr(sandbox_module.sys, "platform", "darwin")
    with pytest.raises(BenchmarkError, match="darwin"):
        Sandbox()


def test_without_walls_the_embedded_suite_leaves_its_programs_out_and_says_so(monkeypatch):
    def refuse():
        raise BenchmarkError("generated code cannot be run safely on this system")

    monkeypatch.setattr(suite_module, "shared_sandbox", refuse)
    suite = suite_module.load_suite(["code"])
    assert not {"mini_humaneval", "mini_mbpp"} & {task.name for task in suite.tasks}
    why = "(generated code cannot be run safely on this system)"
    assert {f"core: HumanEval {why}", f"code: MBPP {why}"} <= set(suite.missing)
    assert suite.notes == (), "one absence is told once"
