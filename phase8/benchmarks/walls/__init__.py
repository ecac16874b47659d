"""The walls around generated code, each one enforced by the kernel; `sandbox_server.py` puts them up.

The server runs as `python -I -S` from its path alone, so these files import the standard library only, and each other
by their bare names.

| file | wall | what it keeps in |
| --- | --- | --- |
| `kernel` | | calls that Python has no function for |
| `namespaces` | Linux namespaces | own processes, no network, own IPC, no files but Python's library |
| `landlock` | Landlock | files: reads Python's library, writes nothing |
| `seccomp` | system call filter | no sockets, processes, signals to others, shared memory; nothing that is not listed |
"""
