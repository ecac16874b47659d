"""The file on disk: `read` needs numpy alone, `write` torch too. docs/format.md is the whole of it."""
