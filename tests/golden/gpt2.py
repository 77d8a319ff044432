#!/usr/bin/env python3
"""Writes what a tiny GPT-2 computes in PyTorch, for the tests to compare with.

    pip install torch numpy safetensors
    python3 tests/golden/gpt2.py [--output DIR]

README.md beside this file says what the files hold and how the numbers are defined.
"""

import argparse
import json
import math
import pathlib

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

# No dimension is a multiple of a vector register, so that tails are exercised.
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 65,
    "n_positions": 16,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "layer_norm_epsilon": 1e-5,
}
BATCH = 2
STEPS = 20
RANKS_BATCH = 12  # divides among 1, 2, 3 and 4 ranks
RANKS_STEPS = 6
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
FP16_LOSS_SCALE = 1024  # every gradient here fits, and the smallest that matter are normal numbers
SEED = 20
RANKS_SEED = 21
DROPOUT = {"embd_pdrop": 0.1, "resid_pdrop": 0.2, "attn_pdrop": 0.15}
DROPOUT_STEPS = 8
DROPOUT_SEED = 22  # Strata's, that masks are drawn by


def make_weights(generator):
    """fp32 weights under Hugging Face's names, large enough that every op matters."""

    def normal(*shape, std, mean=0.0):
        return mean + std * torch.randn(*shape, generator=generator)

    c = CONFIG["n_embd"]
    weights = {
        "transformer.wte.weight": normal(CONFIG["vocab_size"], c, std=0.2),
        "transformer.wpe.weight": normal(CONFIG["n_positions"], c, std=0.2),
    }

    def layer_norm(name):
        weights[f"{name}.weight"] = normal(c, std=0.2, mean=1.0)
        weights[f"{name}.bias"] = normal(c, std=0.2)

    def linear(name, inputs, outputs):
        weights[f"{name}.weight"] = normal(inputs, outputs, std=0.8 / math.sqrt(inputs))
        weights[f"{name}.bias"] = normal(outputs, std=0.2)

    for i in range(CONFIG["n_layer"]):
        block = f"transformer.h.{i}"
        layer_norm(f"{block}.ln_1")
        linear(f"{block}.attn.c_attn", c, 3 * c)
        linear(f"{block}.attn.c_proj", c, c)
        layer_norm(f"{block}.ln_2")
        linear(f"{block}.mlp.c_fc", c, 4 * c)
        linear(f"{block}.mlp.c_proj", 4 * c, c)
    layer_norm("transformer.ln_f")
    return weights


def make_batches(generator, steps, rows):
    """(steps, rows, T) tokens and targets: a noisy walk round the vocabulary, so there is
    something to learn."""
    vocab, t = CONFIG["vocab_size"], CONFIG["n_positions"]
    start = torch.randint(vocab, (steps, rows, 1), generator=generator)
    strides = torch.randint(1, 4, (steps, rows, t), generator=generator)
    walk = torch.cat([start, start + strides.cumsum(-1)], dim=-1) % vocab
    return walk[..., :-1].contiguous(), walk[..., 1:].contiguous()


def philox(key, counter, stream):
    """Philox4x32-10 of 64-bit counters: (n, 4) words of 32 bits."""
    low, high, half = numpy.uint64(0xFFFFFFFF), numpy.uint64(32), 1 << 32
    x = [counter & low, counter >> high]
    x += [numpy.full_like(counter, stream % half), numpy.full_like(counter, stream // half)]
    k0, k1 = key % half, key // half
    for _ in range(10):
        a, b = numpy.uint64(0xD2511F53) * x[0], numpy.uint64(0xCD9E8D57) * x[2]
        x = [
            (b >> high) ^ x[1] ^ numpy.uint64(k0),
            b & low,
            (a >> high) ^ x[3] ^ numpy.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % half, (k1 + 0xBB67AE85) % half
    return numpy.stack(x, axis=-1)


class Dropout:
    """Strata's masks for one step's only micro-batch, from the definition in
    kernels/ops/dropout.h."""

    def __init__(self, step):
        self.step = step

    def _factors(self, probability, layer, site, calls, stream_offset=0):
        """(len(calls), 8): what a call's eight elements are multiplied by."""
        place = (layer << 8) + site
        words = [int(w) for w in philox(DROPOUT_SEED, self._array([self.step]), place)[0]]
        key, stream = words[0] + (words[1] << 32), words[2] + (words[3] << 32)
        drawn = philox(key, self._array(calls), (stream + stream_offset) % (1 << 64))
        pieces = numpy.stack([drawn & numpy.uint64(0xFFFF), drawn >> numpy.uint64(16)], axis=-1)
        threshold = round(DROPOUT[probability] * 65536)
        kept = pieces.reshape(len(calls), 8) >= numpy.uint64(threshold)
        return kept * (65536 / (65536 - threshold))

    @staticmethod
    def _array(numbers):
        return numpy.array(numbers, dtype=numpy.uint64)

    def activations(self, x, probability, layer, site):
        numel = x.numel()
        calls = range((numel + 127) // 128 * 16)
        factors = self._factors(probability, layer, site, calls).reshape(-1, 16, 8)
        line = torch.from_numpy(factors.transpose(0, 2, 1).reshape(-1)[:numel].copy())
        return x * line.view(x.shape).to(x.dtype)

    def probabilities(self, p, probability, layer, site):
        """p: (B, H, T, T)"""
        factors = torch.empty(p.shape, dtype=torch.float64)
        keys = p.shape[-1]
        for batch, head in numpy.ndindex(*p.shape[:2]):
            for query in range(p.shape[2]):
                calls = [((query // 8) << 32) + key for key in range(keys)]
                drawn = self._factors(probability, layer, site, calls, (batch << 32) + head)
                factors[batch, head, query] = torch.from_numpy(drawn[:, query % 8].copy())
        return p * factors.to(p.dtype)


def forward(params, tokens, dropout=None):
    """Logits (B, T, V) in the parameters' dtype."""
    b, t = tokens.shape
    c, heads = CONFIG["n_embd"], CONFIG["n_head"]

    def layer_norm(x, name):
        eps = CONFIG["layer_norm_epsilon"]
        return F.layer_norm(x, (c,), params[f"{name}.weight"], params[f"{name}.bias"], eps)

    def linear(x, name):  # weight (in, out), as in GPT-2's Conv1D
        return F.linear(x, params[f"{name}.weight"].t(), params[f"{name}.bias"])

    def drop(x, *site):
        return x if dropout is None else dropout.activations(x, *site)

    def mix(q, k, v, layer):
        if dropout is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-2, -1) / math.sqrt(c // heads)
        unseen = torch.ones(t, t, dtype=torch.bool).triu(1)
        p = F.softmax(scores.masked_fill(unseen, -math.inf), dim=-1)
        return dropout.probabilities(p, "attn_pdrop", layer, 0) @ v

    def attention(x, name, layer):
        qkv = linear(x, f"{name}.c_attn").split(c, dim=-1)
        q, k, v = (part.view(b, t, heads, c // heads).transpose(1, 2) for part in qkv)
        out = mix(q, k, v, layer)
        return linear(out.transpose(1, 2).reshape(b, t, c), f"{name}.c_proj")

    def mlp(x, name):
        return linear(F.gelu(linear(x, f"{name}.c_fc"), approximate="tanh"), f"{name}.c_proj")

    token_table = params["transformer.wte.weight"]
    x = F.embedding(tokens, token_table) + params["transformer.wpe.weight"][:t]
    x = drop(x, "embd_pdrop", 0, 0)
    for i in range(CONFIG["n_layer"]):
        block, layer = f"transformer.h.{i}", i + 1
        branch = attention(layer_norm(x, f"{block}.ln_1"), f"{block}.attn", layer)
        x = x + drop(branch, "resid_pdrop", layer, 1)
        x = x + drop(mlp(layer_norm(x, f"{block}.ln_2"), f"{block}.mlp"), "resid_pdrop", layer, 2)
    return F.linear(layer_norm(x, "transformer.ln_f"), token_table)


def loss_and_gradients(params, tokens, targets, loss_scale=1, dropout=None):
    """Gradients are those of the loss times the scale."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    logits = forward(leaves, tokens, dropout)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(wide.flatten(0, 1), targets.flatten())
    (loss * loss_scale).backward()
    return logits.detach(), loss.detach(), {name: p.grad for name, p in leaves.items()}


def round_to_bf16(x):
    """Half away from zero, as Strata rounds masters to 16-bit parameters."""
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x8000) & -0x10000).view(torch.float32).bfloat16()


def round_to_fp16(x):
    return x.float().half()


def no_dropout(step):
    return None


def train(weights, batches, master_dtype, parameters_of, loss_scale=1, dropout_of=no_dropout):
    """AdamW on masters; `parameters_of(master)` is what the model computes with. Returns the loss
    and the gradient norm before clipping of each step, counted from 1."""
    masters = {name: w.to(master_dtype, copy=True) for name, w in weights.items()}
    for p in masters.values():
        p.requires_grad_()
    groups = [
        {"params": [p for p in masters.values() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in masters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    losses, norms = [], []
    for step, (tokens, targets) in enumerate(zip(*batches), start=1):
        params = {name: parameters_of(p.detach()) for name, p in masters.items()}
        _, loss, gradients = loss_and_gradients(
            params, tokens, targets, loss_scale, dropout_of(step)
        )
        for name, p in masters.items():
            p.grad = gradients[name].to(master_dtype) / loss_scale
        norms.append(torch.nn.utils.clip_grad_norm_(masters.values(), MAX_GRAD_NORM).double())
        optimizer.step()
        losses.append(loss.double())
    return torch.stack(losses), torch.stack(norms)


def expected(weights, batches, parameters_of, true_parameters_of, loss_scale=1):
    """What PyTorch computes in one dtype, and under "true." what fp64 computes from the same
    parameters, without a loss scale."""
    tensors = {}
    runs = [
        ("", torch.float32, parameters_of, loss_scale),
        ("true.", torch.float64, true_parameters_of, 1),
    ]
    for prefix, master_dtype, to_params, scale in runs:
        params = {name: to_params(w.to(master_dtype)) for name, w in weights.items()}
        logits, loss, gradients = loss_and_gradients(params, batches[0][0], batches[1][0], scale)
        losses, norms = train(weights, batches, master_dtype, to_params, scale)
        results = {"logits": logits, **{f"grad.{name}": g for name, g in gradients.items()}}
        for name, value in results.items():
            # Truth is kept in fp32: half an fp32 ulp from fp64, and half the bytes.
            tensors[prefix + name] = value.float() if prefix else value
        tensors |= {f"{prefix}loss": loss.double().view(1), f"{prefix}losses": losses}
        tensors[f"{prefix}grad_norms"] = norms
    return tensors


def expected_of_ranks(weights, batches):
    """What fp64 arithmetic computes from the parameters of each dtype."""
    tensors = {"tokens": batches[0].int(), "targets": batches[1].int()}
    dtypes = {
        "fp32": lambda w: w,
        "bf16": lambda w: round_to_bf16(w).double(),
        "fp16": lambda w: round_to_fp16(w).double(),
    }
    for dtype, parameters_of in dtypes.items():
        params = {name: parameters_of(w.double()) for name, w in weights.items()}
        _, loss, gradients = loss_and_gradients(params, batches[0][0], batches[1][0])
        losses, norms = train(weights, batches, torch.float64, parameters_of)
        results = {"loss": loss.view(1), "losses": losses, "grad_norms": norms}
        results |= {f"grad.{name}": g.float() for name, g in gradients.items()}
        tensors |= {f"{dtype}.{name}": value for name, value in results.items()}
    return tensors


def expected_with_dropout(weights, batches):
    """What fp64 arithmetic computes from fp32 parameters."""
    params = {name: w.double() for name, w in weights.items()}
    logits, loss, gradients = loss_and_gradients(
        params, batches[0][0], batches[1][0], dropout=Dropout(step=1)
    )
    batches = [part[:DROPOUT_STEPS] for part in batches]
    losses, norms = train(weights, batches, torch.float64, lambda w: w, dropout_of=Dropout)
    results = {"logits": logits, **{f"grad.{name}": g for name, g in gradients.items()}}
    tensors = {f"true.{name}": value.float() for name, value in results.items()}
    return tensors | {"true.loss": loss.view(1), "true.losses": losses, "true.grad_norms": norms}


def report(dtype, tensors, loss_scale):
    def worst(names):
        def error(name):
            truth = tensors[f"true.{name}"].double()
            scale = loss_scale if name.startswith("grad.") else 1
            return ((tensors[name].double() / scale - truth).abs().max() / truth.abs().max()).item()

        return max(error(name) for name in names)

    gradients = [name for name in tensors if name.startswith("grad.")]
    norms = ", ".join(f"{n:.2f}" for n in tensors["true.grad_norms"].tolist())
    print(f"{dtype}: loss {tensors['losses'][0]:.6f} -> {tensors['losses'][-1]:.6f}")
    print(f"  gradient norms {norms}")
    print("  PyTorch's largest error as a share of the tensor's largest element:")
    print(f"  logits {worst(['logits']):.1e}, gradients {worst(gradients):.1e}", end=", ")
    print(f"losses {worst(['losses']):.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    generator = torch.Generator().manual_seed(SEED)
    weights = make_weights(generator)
    batches = make_batches(generator, STEPS, BATCH)
    about = {
        "config": CONFIG,
        "optimizer": {**ADAMW, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_GRAD_NORM},
        "torch": torch.__version__,
    }
    metadata = {"about": json.dumps(about)}  # one key: safetensors does not keep an order of keys

    inputs = {f"weight.{name}": w for name, w in weights.items()}
    inputs |= {"tokens": batches[0].int(), "targets": batches[1].int()}
    save_file(inputs, output / "gpt2.safetensors", metadata)

    fp32 = expected(weights, batches, lambda w: w, lambda w: w)
    bf16 = expected(weights, batches, round_to_bf16, lambda w: round_to_bf16(w).double())
    true_fp16 = lambda w: round_to_fp16(w).double()
    fp16 = expected(weights, batches, round_to_fp16, true_fp16, FP16_LOSS_SCALE)
    for dtype, tensors in {"fp32": fp32, "bf16": bf16, "fp16": fp16}.items():
        save_file(tensors, output / f"gpt2_{dtype}.safetensors", metadata)
        report(dtype, tensors, FP16_LOSS_SCALE if dtype == "fp16" else 1)

    about |= {"config": {**CONFIG, **DROPOUT}, "seed": DROPOUT_SEED}
    dropped = expected_with_dropout(weights, batches)
    save_file(dropped, output / "gpt2_dropout.safetensors", {"about": json.dumps(about)})

    generator = torch.Generator().manual_seed(RANKS_SEED)
    batches = make_batches(generator, RANKS_STEPS, RANKS_BATCH)
    save_file(expected_of_ranks(weights, batches), output / "gpt2_ranks.safetensors", metadata)


if __name__ == "__main__":
    main()
