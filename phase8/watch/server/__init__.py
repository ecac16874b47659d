"""The dashboard's server: shows runs from their event logs, starts runs, and steers them through their control files.

    tail.py        a growing log, line by line                     schema.py    what the REST calls return
    fold.py        events -> the summary of a run                  guard.py     who may ask: host, origin, token, sizes
    library.py     all runs below the watched directories          app.py       REST        sockets.py  events
    jobs.py        runs started from the page, kept in SQLite      replay.py    a finished run played again
    settings.py    what may be started                             compare.py   several runs side by side

It reads files only and imports nothing of the pipeline; what needs a model runs in a process of its own (`workers.py`).
"""
