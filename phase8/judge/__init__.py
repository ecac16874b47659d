"""Scores -> verdict, pure: resampling, retention, policy, gates."""
