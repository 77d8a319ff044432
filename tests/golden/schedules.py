#!/usr/bin/env python3
"""Writes the rates and momenta of DeepSpeed's schedulers, for the tests to compare with.

    pip install torch deepspeed
    python3 tests/golden/schedules.py

README.md beside this file says what the file holds.
"""

import json
import pathlib

import deepspeed
import torch
from deepspeed.runtime import lr_schedules

STEPS = 48
LR = 0.0123  # the optimizer's own
CYCLE = {"cycle_min_lr": 1e-4, "cycle_max_lr": 3e-3}
SETTINGS = [
    ("WarmupLR", {"warmup_num_steps": 10}),
    ("WarmupLR", {"warmup_num_steps": 1, "warmup_max_lr": 0.5}),
    ("WarmupLR", {"warmup_min_lr": 1e-4, "warmup_max_lr": 1e-3, "warmup_num_steps": 30,
                  "warmup_type": "linear"}),
    ("WarmupLR", {"warmup_min_lr": 1e-2, "warmup_max_lr": 1e-3, "warmup_num_steps": 17}),  # falls
    ("WarmupDecayLR", {"total_num_steps": 40, "warmup_num_steps": 10}),
    ("WarmupDecayLR", {"total_num_steps": 25, "warmup_min_lr": 1e-5, "warmup_max_lr": 3e-3,
                       "warmup_num_steps": 6, "warmup_type": "linear"}),
    ("WarmupDecayLR", {"total_num_steps": 8, "warmup_num_steps": 12}),  # ends within its warm-up
    ("WarmupDecayLR", {"total_num_steps": 12, "warmup_num_steps": 12}),
    ("WarmupCosineLR", {"total_num_steps": 40, "warmup_num_steps": 10}),
    ("WarmupCosineLR", {"total_num_steps": 35, "warmup_num_steps": 7, "warmup_type": "linear",
                        "warmup_min_ratio": 0.1, "cos_min_ratio": 0.05}),
    ("WarmupCosineLR", {"total_num_steps": 30, "warmup_num_steps": 1, "cos_min_ratio": 0.0}),
    ("WarmupCosineLR", {"total_num_steps": 8, "warmup_num_steps": 12}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 10}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 7, "cycle_second_step_size": 13,
                  "decay_step_size": 5, "decay_lr_rate": 0.3, "decay_mom_rate": 0.01}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 9, "cycle_second_step_size": 0,
                  "cycle_momentum": False, "decay_step_size": 1, "decay_lr_rate": 2.0}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 12, "cycle_first_stair_count": 3,
                  "cycle_min_mom": 0.5, "cycle_max_mom": 0.99}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 14, "cycle_second_step_size": 22,
                  "cycle_second_stair_count": 4, "decay_lr_rate": 0.5}),  # no unit of decay
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 5, "cycle_second_step_size": 9,
                  "cycle_first_stair_count": 2, "cycle_second_stair_count": 0,
                  "decay_step_size": 4, "decay_mom_rate": 0.005}),
    ("OneCycle", {"cycle_min_lr": 3e-3, "cycle_max_lr": 0.0, "cycle_first_step_size": 2000,
                  "cycle_second_step_size": 1}),
]


def run(name, params):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = getattr(lr_schedules, name)(optimizer, **params)
    group = optimizer.param_groups[0]
    result = {"type": name, "params": params, "lr": [], "beta1": [], "beta2": []}
    for _ in range(STEPS):
        result["lr"].append(group["lr"])
        result["beta1"].append(group["betas"][0])
        result["beta2"].append(group["betas"][1])
        optimizer.step()
        scheduler.step()
    return result


def main():
    runs = [run(name, params) for name, params in SETTINGS]
    lines = ",\n  ".join(json.dumps(one) for one in runs)
    text = f'{{"deepspeed": "{deepspeed.__version__}", "lr": {LR},\n "runs": [\n  {lines}]}}\n'
    pathlib.Path(__file__).with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
