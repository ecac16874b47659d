"""The file on disk: `read` and `account` need numpy alone, `write` torch too. docs/format.md is the whole of it."""
