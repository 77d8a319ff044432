#!/usr/bin/env python3
"""Sets an optimizer step over state on nvme beside DeepSpeed's, round by round.

    python3 tools/compare/deepspeed_pipeline.py --path DIRECTORY [--tune] [--huge-pages]

DeepSpeed's side is its own PipelinedOptimizerSwapper (asynchronous I/O through libaio, whose headers
it needs: Debian's libaio-dev; pinned, aligned buffers) and DeepSpeedCPUAdam, sub-group by sub-group
in the order of its ZeRO-3 step: swap in, unscale, Adam, copy to bf16, swap out, with the next
sub-group read and the last one written meanwhile. A step reads master, moments and gradient in fp32
and writes master and moments, 28 bytes a parameter. Not counted: that the gradients are written
during backward, 4 bytes more, which is timed apart.

Strata's side is `strata bench pipeline` over as many parameters, from bf16 gradients in memory, with
masters in split16 and moments in each codec, which take turns. fp32 moments have DeepSpeed's
arithmetic, exact; bf16 and int8 moments are rounded. A step is everything from the first byte read
to the last one written, and a sample of it is checked bit for bit. Not counted: its gradients' way
to the host.

A round is some steps of either, with as many threads; files have been written once before. --tune
first tries settings of the kind that DeepSpeed's own ds_nvme_tune tries, in a round each, and takes
the fastest; what is named by an option is not tried.
"""

import argparse
import itertools
import json
import os
import pathlib
import shlex
import sys
import tempfile
import time
import types

import side_by_side as compare

GROUP_NUMEL = 8 << 20
STEPS_A_ROUND = 3
STEP_BYTES = 28
STRATA_CASES = {("split16", "fp32"): 1.3, ("split16", "bf16"): None, ("split16", "int8"): 3.0}
AIO_SETTINGS = {"block_bytes": (1 << 20, 8 << 20), "queue_depth": (32, 128), "io_threads": (1, 2, 4)}
PINNED_BUFFERS = 12  # master, moments and gradient of the sub-groups in, under way in and out


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    compare.add_arguments(parser, rounds=5)
    add = parser.add_argument
    add("--path", type=pathlib.Path, required=True, help="a directory on the disk to measure")
    add("--groups", type=int, default=8, help="sub-groups of 8 Mi parameters (default 8)")
    add("--block-bytes", type=int, help="DeepSpeed's aio.block_size (default 1 Mi)")
    add("--queue-depth", type=int, help="DeepSpeed's aio.queue_depth (default 32)")
    add("--io-threads", type=int, help="DeepSpeed's aio.intra_op_parallelism (default 1)")
    add("--tune", action="store_true", help="choose DeepSpeed's aio settings by trial")
    add("--strata-arguments", default="", help='more for Strata, such as "--staging 6"')
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
    compare.serve({"torch_version": torch.__version__,
                   "deepspeed_version": deepspeed.__version__}, pipeline.run)


def main():
    args = parse_arguments()
    if args.worker:
        return worker(args)
    with tempfile.TemporaryDirectory(prefix="deepspeed-", dir=args.path) as folder:
        aio, trials = chosen_aio(args, folder)
        deepspeed = start(args, folder, aio)
        measured = compare.in_turns(args, deepspeed, lambda: strata_ms(args))
    print_result(args, result_of(args, deepspeed.versions, {**aio, "trials": trials}, measured))


def start(args, folder, aio):
    arguments = ["--threads", args.threads, "--path", folder, "--groups", args.groups]
    for name, value in aio.items():
        arguments += ["--" + name.replace("_", "-"), value]
    return compare.Worker(__file__, arguments, args)


def chosen_aio(args, folder):
    """DeepSpeed's settings, and the milliseconds of each that was tried."""
    values = {name: [given] if (given := getattr(args, name)) else list(tried)
              for name, tried in AIO_SETTINGS.items()}
    if not args.tune:
        return {name: tried[0] for name, tried in values.items()}, []
    trials = []
    for setting in itertools.product(*values.values()):
        aio = dict(zip(values, setting))
        deepspeed = start(args, folder, aio)
        trials.append({**aio, "step_ms": deepspeed.round()["step_ms"]})
        deepspeed.close()
        print(f"DeepSpeed with {trials[-1]}", file=sys.stderr, flush=True)
    best = min(trials, key=lambda trial: trial["step_ms"])
    return {name: best[name] for name in values}, trials


def strata_ms(args):
    """A step's milliseconds by codecs."""
    result = compare.strata(args, "bench", "pipeline", "--path", args.path, "--numel",
                            args.groups * GROUP_NUMEL, "--steps", STEPS_A_ROUND, "--threads",
                            args.threads, "--master-codec", "split16", "--moment-codec", "all",
                            *shlex.split(args.strata_arguments))
    return {(case["master_codec"], case["moment_codec"]): case for case in result["cases"]}


def result_of(args, versions, aio, measured):
    numel = args.groups * GROUP_NUMEL
    step_ms = compare.median(step["step_ms"] for step, _ in measured)
    cases = []
    for (master, moments), bar in STRATA_CASES.items():
        of_round = [(step["step_ms"], strata[master, moments]) for step, strata in measured]
        bytes_each = [of_round[0][1][key] for key in ("read_per_parameter", "written_per_parameter")]
        cases.append({
            "master_codec": master, "moment_codec": moments, "bytes_per_parameter": sum(bytes_each),
            "step_ms": compare.median(1e3 * case["step_s"] for _, case in of_round),
            "of_ceiling": compare.median(case["ratio"] for _, case in of_round),
            "speedup": compare.median(ms / (1e3 * case["step_s"]) for ms, case in of_round),
            "required": bar,
        })
    return {
        **compare.machine(), **versions, "numel": numel, "groups": args.groups,
        "threads": args.threads, "rounds": args.rounds, "steps_a_round": STEPS_A_ROUND,
        "deepspeed": {
            **aio, "bytes_per_parameter": STEP_BYTES, "step_ms": step_ms,
            "gb_per_s": numel * STEP_BYTES / step_ms * 1e-6,
            "gradients_ms": compare.median(step["gradients_ms"] for step, _ in measured)},
        "strata": cases,
    }


def print_result(args, result):
    if args.json:
        print(json.dumps(result))
        return
    deepspeed = result["deepspeed"]
    print(f"{result['cpu']}, {args.threads} threads, load {result['load']}; DeepSpeed "
          f"{result['deepspeed_version']}, PyTorch {result['torch_version']}")
    print(f"{result['numel']} parameters, {args.groups} sub-groups of DeepSpeed's, medians of "
          f"{args.rounds} rounds of {STEPS_A_ROUND} steps")
    print(f"DeepSpeed with blocks of {deepspeed['block_bytes']} bytes, queue depth "
          f"{deepspeed['queue_depth']}, {deepspeed['io_threads']} I/O threads; gradients to disk "
          f"before its step {deepspeed['gradients_ms']:.1f} ms\n")
    row = "{:<26}{:>16}{:>12}{:>8}{:>12}{:>10}".format
    print(row("", "bytes/parameter", "step ms", "GB/s", "speedup", "required"))
    def line(name, side, speedup, required):
        gb_per_s = result["numel"] * side["bytes_per_parameter"] / side["step_ms"] * 1e-6
        print(row(name, f"{side['bytes_per_parameter']:.2f}", f"{side['step_ms']:.1f}",
                  f"{gb_per_s:.2f}", speedup, required))
    line("DeepSpeed", deepspeed, "", "")
    for case in result["strata"]:
        line(f"Strata {case['master_codec']}, {case['moment_codec']}", case,
             f"{case['speedup']:.2f} x", f"{case['required']} x" if case["required"] else "")


if __name__ == "__main__":
    main()
