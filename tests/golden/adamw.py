"""Records steps of torch.optim.AdamW for tests/kernels/ops/optimizer_pytorch_test.cc.

    python tests/golden/adamw.py > tests/golden/adamw.json

Values are fp32 bit patterns. "grad" is what the update is given; PyTorch's own gradient is
grad * grad_scale, exact because the scale is a power of two.
"""

import json

import torch

NUMEL = 24
STEPS = 6
RUNS = [
    dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, grad_scale=1.0),
    dict(lr=3e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=0.25),
    dict(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.0, grad_scale=1.0),
]


def bits(tensor):
    return [int(b) & 0xFFFFFFFF for b in tensor.detach().view(torch.int32)]


def state(optimizer, param):
    moments = optimizer.state.get(param) or {}
    zeros = torch.zeros_like(param)
    return {
        "master": bits(param),
        "exp_avg": bits(moments.get("exp_avg", zeros)),
        "exp_avg_sq": bits(moments.get("exp_avg_sq", zeros)),
    }


def record(run, generator):
    # Magnitudes from 2^-20 to 2^4, gradients' apart from parameters'.
    def scale():
        return torch.exp2(torch.randint(-20, 5, (NUMEL,), generator=generator).float())

    def normal():
        return torch.randn(NUMEL, generator=generator)

    param = torch.nn.Parameter(normal() * scale())
    grad_scale = scale()
    optimizer = torch.optim.AdamW(
        [param],
        lr=run["lr"],
        betas=(run["beta1"], run["beta2"]),
        eps=run["eps"],
        weight_decay=run["weight_decay"],
        foreach=False,
    )
    start = state(optimizer, param)
    steps = []
    for _ in range(STEPS):
        grad = normal() * grad_scale
        grad[0] = 0
        param.grad = grad * run["grad_scale"]
        optimizer.step()
        steps.append({"grad": bits(grad), **state(optimizer, param)})
    return {**run, "start": start, "steps": steps}


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20240229)
    runs = [record(run, generator) for run in RUNS]
    text = json.dumps({"torch": torch.__version__, "runs": runs})
    print(text.replace("}, {", "},\n{").replace('], "', '],\n "'))


if __name__ == "__main__":
    main()
