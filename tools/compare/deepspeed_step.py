#!/usr/bin/env python3
"""Measures the CPU part of DeepSpeed's ZeRO-Offload step against `strata bench step`.

    python3 tools/compare/deepspeed_step.py

Both take 64 Mi parameters, one sub-group, from bf16 gradients in host memory to bf16 parameters in
host memory, clipped by the global norm, with AdamW and fp32 state. DeepSpeed's side runs methods
of its own ZeRO-3 optimizer (deepspeed/runtime/zero/stage3.py) and its compiled DeepSpeedCPUAdam.

Where DeepSpeed has a GPU, norm and conversion to fp32 run there, at twice the bytes to the host;
what then is left to the CPU is given apart, against all of Strata's step.
"""

import argparse
import json
import time
import types

import side_by_side as compare

NORM, WIDEN, UNSCALE, ADAM, NARROW = PASSES = ("norm", "to fp32", "unscale and clip", "CPUAdam",
                                               "to bf16")
LEFT_TO_CPU = (UNSCALE, ADAM, NARROW)
STEPS_A_ROUND = 5
REQUIRED = 5.0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    compare.add_arguments(parser, rounds=9)
    parser.add_argument("--numel", type=int, default=64 << 20, help="parameters (default 64 Mi)")
    return parser.parse_args()


class DeepSpeedStep:
    """One sub-group of one parameter, and the steps of DeepSpeed's ZeRO-3 optimizer on it."""

    def __init__(self, numel):
        import torch
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

        torch.manual_seed(1)
        self.torch = torch
        self.methods = DeepSpeedZeroOptimizer_Stage3
        self.master = torch.randn(numel) * 0.02
        self.master.grad = torch.zeros_like(self.master)
        self.arrived = (torch.randn(numel) * 0.01).bfloat16()
        self.param = self.master.bfloat16()
        # The sub-group's parameter is put in and taken out by each step.
        self.adam = DeepSpeedCPUAdam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3,
                                     weight_decay=0.1)
        self.ms = {}
        self.zero = self.make_zero(numel)

    def make_zero(self, numel):
        """What the methods below use of their optimizer."""
        return types.SimpleNamespace(
            fp32_partitioned_groups_flat=[self.master],
            fp16_partitioned_groups_flat=[self.param],
            grad_position={0: (0, 0, numel)},
            norm_for_param_grads={},
            get_param_id=lambda _: 0,
            master_weights_and_grads_dtype=self.torch.float32,
            _constant_buffered_norm2=lambda grad: self.timed(
                NORM, lambda: self.methods._constant_buffered_norm2(self.zero, grad)),
            _swappable_optimizer_subgroup=lambda _: False,
            _unflatten_partitioned_parameters=lambda _: None,
            sub_group_to_group_id={0: 0},
            subgroup_to_device={0: "cpu"},
            offload_optimizer=True,
            optimizer=self.adam,
            torch_autocast_gradscaler=None,
            zenflow=False,
            use_muon=False,
            loss_scale=1.0,
            clip_grad=1.0,
        )

    def timed(self, name, function):
        begin = time.perf_counter()
        result = function()
        self.ms[name] = 1e3 * (time.perf_counter() - begin)
        return result

    def step(self):
        """Milliseconds by pass."""
        zero, methods = self.zero, self.methods
        with self.torch.no_grad():
            self.timed(WIDEN, lambda: methods._offload_grad_partition_at_boundary(
                zero, None, self.arrived, {}, {}))
            self.ms[WIDEN] -= self.ms[NORM]  # which it calls
            self.timed(UNSCALE, lambda: methods.unscale_and_clip_grads(
                zero, 0, zero.norm_for_param_grads[0]))
            self.timed(ADAM, lambda: methods._optimizer_step(zero, 0))
            self.timed(NARROW,
                       lambda: methods._reassign_or_swap_out_partitioned_parameters(zero, 0))
        return dict(self.ms)

    def check(self):
        """That steps did what they stand for, else their times say nothing."""
        state = self.adam.state[self.master]
        norm = (state["exp_avg"].double().norm() / (1 - 0.9 ** state["step"])).item()
        if abs(norm - 1) > 1e-2:
            raise SystemExit(f"DeepSpeed's clipped gradient has norm {norm}, not 1")
        if not self.torch.equal(self.param, self.master.bfloat16()):
            raise SystemExit("DeepSpeed's parameters are not its master weights in bf16")


def worker(args):
    import deepspeed
    import torch

    torch.set_num_threads(args.threads)
    step = DeepSpeedStep(args.numel)

    def run():
        steps = [step.step() for _ in range(STEPS_A_ROUND)]
        return {name: compare.median(one[name] for one in steps) for name in PASSES}

    run()
    step.check()
    compare.serve({"torch": torch.__version__, "deepspeed": deepspeed.__version__,
                   "isa": torch.backends.cpu.get_cpu_capability()}, run)


def main():
    args = parse_arguments()
    if args.worker:
        return worker(args)
    arguments = ("--threads", args.threads, "--numel", args.numel)
    deepspeed = compare.Worker(__file__, arguments, args)
    measured = compare.in_turns(
        args, deepspeed,
        lambda: compare.strata(args, "bench", "step", *arguments, "--repeat", STEPS_A_ROUND))
    print_result(args, deepspeed.versions, measured)


def print_result(args, versions, measured):
    strata = [step["fused"]["median_ms"] for _, step in measured]
    passes = {name: compare.median(step[name] for step, _ in measured) for name in PASSES}

    def total(names):
        return [sum(step[name] for name in names) for step, _ in measured]

    def ratio(names):
        return compare.median(theirs / ours for theirs, ours in zip(total(names), strata))

    result = {
        **compare.machine(), **versions, "numel": args.numel, "threads": args.threads,
        "rounds": args.rounds, "steps_a_round": STEPS_A_ROUND, "huge_pages": args.huge_pages,
        "deepspeed_ms": {**passes, "all": compare.median(total(PASSES)),
                         "left to the CPU": compare.median(total(LEFT_TO_CPU))},
        "strata_ms": {"land": median_of_pass(measured, "land"),
                      "update": median_of_pass(measured, "update"), "all": compare.median(strata)},
        "ratio": ratio(PASSES), "ratio_left_to_cpu": ratio(LEFT_TO_CPU), "required": REQUIRED,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['cpu']}, {args.threads} threads, load {result['load']}; DeepSpeed "
          f"{versions['deepspeed']}, PyTorch {versions['torch']} ({versions['isa']}"
          f"{', huge pages' if args.huge_pages else ''})")
    print(f"{args.numel} parameters, medians of {args.rounds} rounds of {STEPS_A_ROUND} steps\n")
    for side in ("deepspeed", "strata"):
        for name, milliseconds in result[f"{side}_ms"].items():
            print(f"{side:<10} {name:<18} {milliseconds:8.1f} ms")
    print(f"\nStrata's step is {result['ratio']:.2f} x as fast (required: {REQUIRED:.0f} x), and "
          f"{result['ratio_left_to_cpu']:.2f} x as fast as what a GPU leaves to DeepSpeed's CPU")


def median_of_pass(measured, name):
    return compare.median(one["median_ms"] for _, step in measured
                          for one in step["fused"]["passes"] if one["name"] == name)


if __name__ == "__main__":
    main()
