#!/usr/bin/env python3
"""Writes steps of PyTorch's AdamW with parameter groups under DeepSpeed's OneCycle, for
tests/engine/parameter_groups_test.cc.

    pip install torch deepspeed
    python3 tests/golden/parameter_groups.py

README.md beside this file says what the file holds.
"""

import json
import pathlib

import deepspeed
import torch
from deepspeed.runtime import lr_schedules

NUMEL = 12
STEPS = 12
OPTIMIZER = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1}
CYCLE = {"cycle_min_lr": 5e-3, "cycle_max_lr": 4e-2, "cycle_first_step_size": 4,
         "decay_step_size": 2, "decay_lr_rate": 0.5, "decay_mom_rate": 0.01}
# As in a configuration. The first that matches counts: head.bias is in the first.
GROUPS = [
    {"match": ["*.bias"], "weight_decay": 0.0, "lr_scale": 0.5},
    {"match": ["head.*"], "weight_decay": 0.3, "lr_scale": 2.0},
]
# What each parameter then has: weight decay and factor. body.scale has no decay of its own.
SETTINGS = {
    "body.weight": (0.1, 1.0),
    "body.bias": (0.0, 0.5),
    "body.scale": (0.0, 1.0),
    "head.weight": (0.3, 2.0),
    "head.bias": (0.0, 0.5),
}


def bits(tensor):
    return [int(b) & 0xFFFFFFFF for b in tensor.detach().view(torch.int32)]


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20240301)

    def normal():
        return torch.randn(NUMEL, generator=generator)

    params = {name: torch.nn.Parameter(normal()) for name in SETTINGS}
    magnitudes = {name: torch.exp2(normal() * 4) for name in SETTINGS}
    groups = [{"params": [params[name]], "weight_decay": decay}
              for name, (decay, _) in SETTINGS.items()]
    optimizer = torch.optim.AdamW(groups, foreach=False, **OPTIMIZER)
    rates = {key: [CYCLE[key] * scale for _, scale in SETTINGS.values()]
             for key in ("cycle_min_lr", "cycle_max_lr")}
    scheduler = lr_schedules.OneCycle(optimizer, **{**CYCLE, **rates})

    start = {name: bits(param) for name, param in params.items()}
    steps = []
    for _ in range(STEPS):
        for name, param in params.items():
            param.grad = normal() * magnitudes[name]
        grads = {name: bits(param.grad) for name, param in params.items()}
        optimizer.step()
        scheduler.step()
        steps.append({"grad": grads, "master": {name: bits(p) for name, p in params.items()}})
    end = {name: {kind: bits(optimizer.state[param][kind]) for kind in ("exp_avg", "exp_avg_sq")}
           for name, param in params.items()}
    text = json.dumps({
        "torch": torch.__version__, "deepspeed": deepspeed.__version__, "optimizer": OPTIMIZER,
        "scheduler": CYCLE, "parameter_groups": GROUPS, "start": start, "steps": steps,
        "moments": end})
    text = text.replace("}, {", "},\n{").replace('], "', '],\n "')
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
