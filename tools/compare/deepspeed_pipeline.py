#!/usr/bin/env python3
"""Measures DeepSpeed's optimizer step with state on nvme, to compare a step of Strata's with.

    python3 tools/compare/deepspeed_pipeline.py --path DIRECTORY

Runs DeepSpeed's own PipelinedOptimizerSwapper (its asynchronous I/O through libaio, whose headers
it needs: Debian's libaio-dev) and DeepSpeedCPUAdam, sub-group by sub-group in the order of its
ZeRO-3 step: swap in, unscale, Adam, copy to bf16, swap out, with the next sub-group read and the
last one written meanwhile. A step reads master, moments and gradient and writes master and moments,
28 bytes a parameter in fp32. The gradients, written during backward, are timed apart.

With --strata-arguments that command runs in turns, and --strata-ms says where in its JSON a step's
milliseconds are, keys joined by dots.
"""

import argparse
import functools
import json
import os
import pathlib
import shlex
import tempfile
import time
import types

import side_by_side as compare

GROUP_NUMEL = 8 << 20
STEPS_A_ROUND = 3
STEP_BYTES = 28
PINNED_BUFFERS = 12  # master, moments and gradient of the sub-groups in, under way in and out


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    compare.add_arguments(parser, rounds=5)
    add = parser.add_argument
    add("--path", type=pathlib.Path, required=True, help="a directory on the disk to measure")
    add("--groups", type=int, default=8, help="sub-groups of 8 Mi parameters (default 8)")
    add("--block-bytes", type=int, default=1 << 20,
        help="DeepSpeed's aio.block_size (default 1 Mi)")
    add("--queue-depth", type=int, default=32, help="DeepSpeed's aio.queue_depth (default 32)")
    add("--io-threads", type=int, default=1,
        help="DeepSpeed's aio.intra_op_parallelism (default 1)")
    add("--strata-arguments", default="", help='such as "bench pipeline --smoke"')
    add("--strata-ms", default="median_ms", help="where the milliseconds are (default median_ms)")
    return parser.parse_args()


class DeepSpeedPipeline:
    """Sub-groups whose fp32 state is in files of DeepSpeed's, and its step over them."""

    def __init__(self, args):
        import deepspeed
        import torch
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.runtime.swap_tensor.pipelined_optimizer_swapper import \
            PipelinedOptimizerSwapper

        self.torch = torch
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"),
                            ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29517")):
            os.environ.setdefault(name, value)
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        self.adam = DeepSpeedCPUAdam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        self.adam.param_groups[0]["params"] = []
        self.swapper = PipelinedOptimizerSwapper(
            swap_config=types.SimpleNamespace(pipeline_read=True, pipeline_write=True,
                                              buffer_count=PINNED_BUFFERS),
            aio_config={"block_size": args.block_bytes, "queue_depth": args.queue_depth,
                        "intra_op_parallelism": args.io_threads, "single_submit": False,
                        "overlap_events": True},
            base_folder=str(args.path), optimizer=self.adam, largest_numel=GROUP_NUMEL, device="cpu",
            dtype=torch.float32, timers=None)
        torch.manual_seed(1)
        self.grad = torch.randn(GROUP_NUMEL) * 0.01
        self.groups = [torch.empty(0) for _ in range(args.groups)]
        self.params = [torch.empty(GROUP_NUMEL, dtype=torch.bfloat16) for _ in self.groups]
        for i, group in enumerate(self.groups):
            group.ds_id = f"group-{i}"
            self.swapper.initialize_parameters([group], [torch.randn(GROUP_NUMEL) * 0.02])

    def write_gradients(self):
        for group in self.groups:
            self.swapper.swap_out_gradients(group, [0], [self.grad])
        self.swapper.flush_gradients()

    def step(self):
        for i, group in enumerate(self.groups):
            following = self.groups[i + 1] if i + 1 < len(self.groups) else None
            self.swapper.swap_in_optimizer_state(group, following)
            group.grad.mul_(0.5)
            self.adam.param_groups[0]["params"] = [group]
            self.adam.step()
            self.adam.param_groups[0]["params"] = []
            self.params[i].copy_(group)
            self.swapper.swap_out_optimizer_state(group, following is not None)
            group.grad = None

    def run(self):
        """Milliseconds of a step, and of the gradients' way to the disk before it."""
        grads, steps = [], []
        with self.torch.no_grad():
            for _ in range(STEPS_A_ROUND):
                begin = time.perf_counter()
                self.write_gradients()
                written = time.perf_counter()
                self.step()
                grads.append(1e3 * (written - begin))
                steps.append(1e3 * (time.perf_counter() - written))
        return {"gradients_ms": compare.median(grads), "step_ms": compare.median(steps)}

    def check(self):
        """That state came back from the disk: Adam's first steps move each weight by about lr."""
        before = [param.float() for param in self.params]
        self.run()
        for old, param in zip(before, self.params):
            moved = (param.float() - old).abs().mean().item() / (STEPS_A_ROUND * 1e-3)
            if not 0.5 < moved < 1.5:
                raise SystemExit(f"DeepSpeed's weights moved by {moved} of what Adam moves them by")


def worker(args):
    import deepspeed
    import torch

    torch.set_num_threads(args.threads)
    pipeline = DeepSpeedPipeline(args)
    pipeline.run()
    pipeline.check()
    compare.serve({"torch": torch.__version__, "deepspeed": deepspeed.__version__}, pipeline.run)


def main():
    args = parse_arguments()
    if args.worker:
        return worker(args)
    with tempfile.TemporaryDirectory(prefix="deepspeed-", dir=args.path) as folder:
        measured, versions = measure(args, folder)
    print_result(args, versions, measured)


def measure(args, folder):
    arguments = ("--threads", args.threads, "--path", folder, "--groups", args.groups,
                 "--block-bytes", args.block_bytes, "--queue-depth", args.queue_depth,
                 "--io-threads", args.io_threads)
    deepspeed = compare.Worker(__file__, arguments, args)

    def strata_ms():
        if not args.strata_arguments:
            return None
        result = compare.strata(args, *shlex.split(args.strata_arguments))
        return functools.reduce(lambda part, key: part[key], args.strata_ms.split("."), result)

    return compare.in_turns(args, deepspeed, strata_ms), deepspeed.versions


def print_result(args, versions, measured):
    numel = args.groups * GROUP_NUMEL
    step_ms = compare.median(step["step_ms"] for step, _ in measured)
    result = {
        **compare.machine(), **versions, "numel": numel, "groups": args.groups,
        "threads": args.threads, "rounds": args.rounds, "steps_a_round": STEPS_A_ROUND,
        "deepspeed_ms": step_ms, "deepspeed_gb_per_s": numel * STEP_BYTES / step_ms * 1e-6,
        "deepspeed_gradients_ms": compare.median(step["gradients_ms"] for step, _ in measured),
    }
    if args.strata_arguments:
        result["strata_ms"] = compare.median(ms for _, ms in measured)
        result["ratio"] = compare.median(step["step_ms"] / ms for step, ms in measured)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['cpu']}, {args.threads} threads, load {result['load']}; DeepSpeed "
          f"{versions['deepspeed']}, PyTorch {versions['torch']}")
    print(f"{numel} parameters in {args.groups} sub-groups, medians of {args.rounds} rounds of "
          f"{STEPS_A_ROUND} steps\n")
    print(f"DeepSpeed's step {step_ms:10.1f} ms, {result['deepspeed_gb_per_s']:.2f} GB/s of "
          f"{STEP_BYTES} bytes a parameter; gradients to disk before it "
          f"{result['deepspeed_gradients_ms']:.1f} ms")
    if args.strata_arguments:
        print(f"Strata's step    {result['strata_ms']:10.1f} ms: {result['ratio']:.2f} x as fast")


if __name__ == "__main__":
    main()
