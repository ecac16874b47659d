"""Each tensor's settings from a byte budget for the whole model; see `docs/design.md`, Byte budgets."""
