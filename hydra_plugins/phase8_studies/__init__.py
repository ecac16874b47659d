"""Hydra plug-ins of Phase 8: `hydra/sweeper=grid` (plain multirun) and `hydra/sweeper=study` (Optuna)."""
