"""Records steps of PyTorch's optimizers for tests/kernels/ops/optimizer_pytorch_test.cc.

    python tests/golden/optimizers.py > tests/golden/optimizers.json

Lion, which PyTorch lacks, is written here from its paper (Chen et al. 2023, algorithm 2), in fp64
from the fp32 state of each step.

Values are fp32 bit patterns. "grad" is what the update is given; PyTorch's own gradient is
grad * grad_scale, exact because the scale is a power of two. A run's numbers are those that its
optimizer reads; moments that it lacks are not recorded.
"""

import json

import torch

NUMEL = 24
STEPS = 6
RUNS = [
    dict(kind="adamw", lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, grad_scale=1),
    dict(kind="adamw", lr=3e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=0.25),
    dict(kind="adamw", lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.0, grad_scale=1),
    dict(kind="adam", lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, grad_scale=1),
    dict(kind="adam", lr=3e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_scale=0.25),
    dict(kind="adagrad", lr=1e-2, eps=1e-10, weight_decay=0.01, grad_scale=1),
    dict(kind="adagrad", lr=0.5, eps=1e-3, weight_decay=0.0, grad_scale=0.5),
    dict(kind="lion", lr=1e-3, beta1=0.9, beta2=0.99, weight_decay=1.0, grad_scale=1),
    dict(kind="lion", lr=3e-3, beta1=0.95, beta2=0.98, weight_decay=0.0, grad_scale=0.25),
    dict(kind="sgd", lr=0.1, momentum=0.9, weight_decay=0.01, grad_scale=1),
    dict(kind="sgd", lr=0.01, momentum=0.5, weight_decay=0.0, grad_scale=0.25),
]
# Each kind's moments, by our name and PyTorch's.
MOMENTS = {
    "adam": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "adagrad": {"exp_avg_sq": "sum"},
    "lion": {"exp_avg": "exp_avg"},
    "sgd": {"exp_avg": "momentum_buffer"},
}


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                state = self.state[param]
                m = state.get("exp_avg", torch.zeros_like(param)).double()
                theta = param.double()
                g = param.grad.double()
                update = torch.sign(beta1 * m + (1 - beta1) * g)
                theta = theta - group["lr"] * (update + group["weight_decay"] * theta)
                state["exp_avg"] = (beta2 * m + (1 - beta2) * g).float()
                param.copy_(theta.float())


def make_optimizer(run, param):
    decay = dict(lr=run["lr"], weight_decay=run["weight_decay"])
    if run["kind"] == "sgd":
        return torch.optim.SGD([param], momentum=run["momentum"], foreach=False, **decay)
    if run["kind"] == "adagrad":
        return torch.optim.Adagrad([param], eps=run["eps"], foreach=False, **decay)
    betas = (run["beta1"], run["beta2"])
    if run["kind"] == "lion":
        return Lion([param], betas=betas, **decay)
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run["kind"]]
    return adam([param], betas=betas, eps=run["eps"], foreach=False, **decay)


def bits(tensor):
    return [int(b) & 0xFFFFFFFF for b in tensor.detach().view(torch.int32)]


def state(run, optimizer, param):
    moments = optimizer.state.get(param) or {}
    zeros = torch.zeros_like(param)
    named = {ours: moments.get(theirs, zeros) for ours, theirs in MOMENTS[run["kind"]].items()}
    return {"master": bits(param), **{name: bits(value) for name, value in named.items()}}


def record(run, generator):
    # Magnitudes from 2^-20 to 2^4, gradients' apart from parameters'.
    def scale():
        return torch.exp2(torch.randint(-20, 5, (NUMEL,), generator=generator).float())

    def normal():
        return torch.randn(NUMEL, generator=generator)

    param = torch.nn.Parameter(normal() * scale())
    grad_scale = scale()
    optimizer = make_optimizer(run, param)
    start = state(run, optimizer, param)
    steps = []
    for _ in range(STEPS):
        grad = normal() * grad_scale
        grad[0] = 0
        param.grad = grad * run["grad_scale"]
        optimizer.step()
        steps.append({"grad": bits(grad), **state(run, optimizer, param)})
    return {**run, "start": start, "steps": steps}


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20240229)
    runs = [record(run, generator) for run in RUNS]
    text = json.dumps({"torch": torch.__version__, "runs": runs})
    print(text.replace("}, {", "},\n{").replace('], "', '],\n "'))


if __name__ == "__main__":
    main()
