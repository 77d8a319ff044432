#!/usr/bin/env python3
"""Trains a GPT-2 on bytes of text with PyTorch eager on the CPU, to compare `strata train` with.

    pip install torch numpy
    python3 tools/compare/pytorch_gpt.py --data /usr/share/common-licenses --seconds 240

Same data, split, model, optimizer and wall time; only training counts as time. The last line has
tokens/s, the mean training loss of the last steps and the validation loss in nats a byte.
"""

import argparse
import json
import math
import os
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

VOCAB = 256
HELD_OUT_PART = 10  # the last tenth


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, type=pathlib.Path, help="a text file, or a directory of them")
    add("--seconds", type=float, default=240, help="wall time of training (default 240)")
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=8, help="sequences a micro-batch")
    add("--accumulate", type=int, default=1, help="micro-batches a step")
    add("--seq", type=int, default=256, help="tokens a sequence")
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=6)
    add("--channels", type=int, default=384)
    add("--lr", type=float, default=1e-3)
    add("--warmup", type=int, default=100, help="steps of linear warm-up; constant after them")
    add("--beta2", type=float, default=0.99, help="decay of the second moment")
    add("--weight-decay", type=float, default=0.1, help="on matrices and embeddings")
    add("--clip", type=float, default=1.0, help="global gradient norm")
    add("--seed", type=int, default=1)
    add("--dtype", choices=["bf16", "autocast", "fp32"], default="bf16",
        help="bf16: parameters, activations and gradients in bf16, fp32 masters in the optimizer")
    add("--validate-every", type=float, default=60, help="seconds of training between reports")
    add("--json", action="store_true", help="print the result as one line of JSON")
    return parser.parse_args()


def load_text(path):
    """Training and held-out bytes: files sorted by path, each content once, joined by newlines."""
    files = [path]
    if path.is_dir():
        walk = os.walk(path, followlinks=True)
        files = sorted(pathlib.Path(root, name) for root, _, names in walk for name in names)
    texts = [file.read_bytes() for file in files if file.is_file()]
    joined = b"\n".join(dict.fromkeys(text for text in texts if text))
    split = len(joined) - len(joined) // HELD_OUT_PART
    data = torch.from_numpy(np.frombuffer(joined, dtype=np.uint8).astype(np.int64))
    return data[:split], data[split:]


def windows_of(data, starts, seq):
    rows = torch.stack([data[start : start + seq + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def training_windows(data, seq, generator):
    """Starts of windows without end: each epoch cuts the text at another offset, shuffled."""
    count = (len(data) - seq) // seq
    while True:
        offset = torch.randint(seq, (1,), generator=generator).item()
        for i in torch.randperm(count, generator=generator).tolist():
            yield offset + i * seq


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(channels)
        self.c_attn = nn.Linear(channels, 3 * channels)
        self.c_proj = nn.Linear(channels, channels)
        self.ln_2 = nn.LayerNorm(channels)
        self.c_fc = nn.Linear(channels, 4 * channels)
        self.c_out = nn.Linear(4 * channels, channels)

    def forward(self, x):
        b, t, c = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(b, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.wte = nn.Embedding(VOCAB, args.channels)
        self.wpe = nn.Embedding(args.seq, args.channels)
        self.blocks = nn.ModuleList(Block(args.channels, args.heads) for _ in range(args.layers))
        self.ln_f = nn.LayerNorm(args.channels)
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                residual = name.endswith(("c_proj.weight", "c_out.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * args.layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, targets):
        """Mean cross-entropy in nats a byte."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Trainer:
    def __init__(self, args):
        self.args = args
        self.model = Gpt2(args)
        self.masters = [p.detach().clone() for p in self.model.parameters()]
        if args.dtype == "bf16":
            self.model.bfloat16()
        self.params = list(self.model.parameters())
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        groups = [
            {"params": [p for p in self.masters if p.dim() >= 2], "weight_decay": args.weight_decay},
            {"params": [p for p in self.masters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, args.beta2), fused=True)
        self.steps = 0

    def loss(self, tokens, targets):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.dtype == "autocast"):
            return self.model(tokens, targets)

    def step(self, micro_batches):
        gradients = [master.grad for master in self.masters]
        torch._foreach_zero_(gradients)
        total = 0.0
        for tokens, targets in micro_batches:
            loss = self.loss(tokens, targets)
            loss.backward()
            total += loss.item()
            torch._foreach_add_(gradients, [p.grad for p in self.params])  # accumulates in fp32
            self.model.zero_grad()
        torch._foreach_mul_(gradients, 1 / len(micro_batches))
        torch.nn.utils.clip_grad_norm_(self.masters, self.args.clip)
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * min(1.0, self.steps / self.args.warmup)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.masters)
        return total / len(micro_batches)

    @torch.no_grad()
    def validation_loss(self, data):
        seq, batch = self.args.seq, self.args.batch
        starts = range(0, len(data) - seq, seq)
        total = 0.0
        for i in range(0, len(starts), batch):
            rows = starts[i : i + batch]
            total += len(rows) * self.loss(*windows_of(data, rows, seq)).item()
        return total / len(starts)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_data, held_out = load_text(args.data)
    starts = training_windows(train_data, args.seq, torch.Generator().manual_seed(args.seed))
    trainer = Trainer(args)
    parameters = sum(p.numel() for p in trainer.masters)
    print(f"{parameters / 1e6:.2f} million parameters, {args.dtype}, {len(train_data)} training "
          f"bytes, {len(held_out)} held out", flush=True)

    def draw():
        return windows_of(train_data, [next(starts) for _ in range(args.batch)], args.seq)

    def report(seconds, losses):
        tokens = trainer.steps * args.accumulate * args.batch * args.seq
        result = {
            "seconds": round(seconds, 1),
            "steps": trainer.steps,
            "tokens_per_second": round(tokens / seconds),
            "train_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
            "validation_loss": round(trainer.validation_loss(held_out), 4),
        }
        if args.json:
            print(json.dumps({**vars(args), "data": str(args.data), **result}), flush=True)
        else:
            print(", ".join(f"{name} {value}" for name, value in result.items()), flush=True)

    losses, elapsed, next_report = [], 0.0, args.validate_every
    while elapsed < args.seconds:
        begin = time.perf_counter()
        losses.append(trainer.step([draw() for _ in range(args.accumulate)]))
        elapsed += time.perf_counter() - begin
        if next_report <= elapsed < args.seconds:
            report(elapsed, losses)
            next_report += args.validate_every
    report(elapsed, losses)


if __name__ == "__main__":
    main()
