"""Each tensor's settings from a byte budget for the whole model; `docs/design.md`, Byte budgets, has the whole story."""
