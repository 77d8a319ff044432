"""What the comparisons with DeepSpeed share: its environment, a worker in it, rounds in turns."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

TORCH = "torch==2.15.0"
DEEPSPEED = "deepspeed==0.19.8"  # whose source the comparisons follow


def add_arguments(parser, rounds):
    add = parser.add_argument
    add("--strata", type=pathlib.Path, default=pathlib.Path("build/release/bin/strata"),
        help="the command to compare (default build/release/bin/strata)")
    add("--environment", type=pathlib.Path, default=pathlib.Path("build/deepspeed"),
        help="virtual environment; made, with PyTorch and DeepSpeed, where it is not there "
             "(default build/deepspeed)")
    add("--threads", type=int, default=os.cpu_count(), help="of either side (default: all cores)")
    add("--rounds", type=int, default=rounds, help=f"of both in turn (default {rounds})")
    add("--huge-pages", action="store_true",
        help="for DeepSpeed's tensors too, which is not PyTorch's default")
    add("--json", action="store_true", help="print the result as one JSON object")
    add("--worker", action="store_true", help="DeepSpeed's side; started by the script itself")


def python_of(environment):
    """Its interpreter; the environment is made first if need be."""
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"making {environment} with {TORCH} and {DEEPSPEED}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", TORCH, DEEPSPEED, "ninja"],
                       check=True)
    return python


def extensions_of(environment):
    """Where DeepSpeed's C++ is built. A lock of a build that was killed would be waited for."""
    extensions = environment.resolve() / "extensions"
    for lock in extensions.glob("*/lock"):
        lock.unlink()
    return extensions


class Worker:
    """DeepSpeed's side in a process of its own: a line in is a round, a line out its result."""

    def __init__(self, script, arguments, args):
        python = python_of(args.environment)
        environment = {
            "PATH": f"{python.parent.resolve()}:{os.environ['PATH']}",  # ninja, for its own build
            "OMP_NUM_THREADS": str(args.threads),
            "DS_ACCELERATOR": "cpu",
            "TORCH_EXTENSIONS_DIR": str(extensions_of(args.environment)),
            "THP_MEM_ALLOC_ENABLE": str(int(args.huge_pages)),
        }
        self.process = subprocess.Popen([python, script, "--worker", *map(str, arguments)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **environment})
        self.versions = self.receive()

    def receive(self):
        for line in self.process.stdout:
            if line.startswith("{"):  # the rest is DeepSpeed's talk
                return json.loads(line)
        sys.exit(f"DeepSpeed's side ended with {self.process.wait()}")

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.receive()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(versions, run):
    """The worker's end: answers each line with what run() returns."""
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


def strata(args, *arguments):
    command = [args.strata, *map(str, arguments), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {ran.returncode}: {ran.stderr.strip()}")
    return json.loads(ran.stdout)


def in_turns(args, worker, run_strata):
    """Results of both, round by round; the first round only warms up."""
    rounds = []
    for i in range(args.rounds + 1):
        rounds.append((worker.round(), run_strata()))
        print(f"round {i} of {args.rounds}", file=sys.stderr, flush=True)
    worker.close()
    return rounds[1:]


def machine():
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        model = {key.strip(): value.strip() for key, value in lines.items()}["model name"]
    except (OSError, KeyError):
        pass
    return {"cpu": model, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def median(values):
    return statistics.median(list(values))
