#!/usr/bin/env python3
"""Writes what DeepSpeed's dynamic loss scale does, for the tests to compare with.

    pip install torch deepspeed
    python3 tests/golden/loss_scales.py

README.md beside this file says what the file holds.
"""

import json
import pathlib
import random

import deepspeed
from deepspeed.runtime.fp16 import loss_scaler

SEED = 22
STEPS = 60
# (initial power, window, hysteresis, consecutive, smallest scale, part of steps that overflow)
SETTINGS = [
    (16, 1000, 2, False, 1, 0.3),
    (16, 5, 2, False, 1, 0.2),
    (16, 5, 2, True, 1, 0.2),
    (8, 1, 1, False, 1, 0.4),
    (8, 2, 3, False, 1, 0.4),
    (8, 2, 3, True, 1, 0.4),
    (4, 3, 1, False, 4, 0.3),
    (4, 3, 1, False, 3, 0.3),  # not a power of two
    (4, 3, 2, True, 1, 0.6),
    (0, 3, 1, False, 4, 0.3),  # starts below the smallest
    (20, 7, 4, False, 1, 0.9),
    (3, 4, 1, False, 1, 0.0),
]


def run(settings, generator):
    power, window, hysteresis, consecutive, min_scale, part = settings
    scaler = loss_scaler.DynamicLossScaler(2.0**power, window, min_scale, hysteresis, consecutive)
    result = {
        "initial_scale_power": power,
        "loss_scale_window": window,
        "hysteresis": hysteresis,
        "consecutive_hysteresis": consecutive,
        "min_loss_scale": min_scale,
        "overflows": "",
        "scales": [scaler.loss_scale],
        "raises": False,
    }
    for _ in range(STEPS):
        overflow = generator.random() < part
        result["overflows"] += "1" if overflow else "0"
        try:
            scaler.update_scale(overflow)
        except Exception:  # DeepSpeed raises no class of its own
            result["raises"] = True
            break
        result["scales"].append(scaler.loss_scale)
    return result


def main():
    loss_scaler.dist.get_rank = lambda: 1  # no process group; and only rank 0 logs
    generator = random.Random(SEED)
    runs = [run(settings, generator) for settings in SETTINGS]
    lines = ",\n  ".join(json.dumps(one) for one in runs)
    text = f'{{"deepspeed": "{deepspeed.__version__}",\n "runs": [\n  {lines}]}}\n'
    pathlib.Path(__file__).with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
