"""Integers on a learned lattice, most of them zero, coded with contexts: the codec that is trained as it is stored.

- `decode.py`: integers and steps -> weights, in numpy alone
- `encode.py`: the closed-form start, rounding to the nearest point
- `train.py`: weights and steps as parameters, straight-through rounding, and what the integers cost in bits
"""
