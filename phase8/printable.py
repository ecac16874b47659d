"""Text that may come from anywhere, made fit to be shown: names in files, paths, what a model writes.

A terminal obeys control characters, bidirectional marks turn a line's order round, tags and word joiners are not seen,
and half a surrogate pair cannot be written at all. They are shown as Python would write them. Example: a name with the
escape character that clears the screen is shown as `a\\x1b[2Jb`.
"""

from __future__ import annotations

import re

HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Every character that a terminal obeys or that nobody sees; not the tab and the line break."""
_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})


def printable(text: object) -> str:
    """A text of any number of lines, without characters that a terminal would obey."""
    return HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def line(text: object) -> str:
    """As `printable`, on one line: for names and paths."""
    return printable(text).translate(_BREAKS)
