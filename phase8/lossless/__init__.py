"""Integers <-> bytes, numpy only."""
