"""All benchmarks: `python -m benchmarks.run` (`make bench`). See benchmarks/README.md.

`--quick` takes about a minute and keeps nothing. Without it results go to benchmarks/results/.
"""

import argparse
import subprocess
import sys

from benchmarks.sft import add_options, measure_all
from benchmarks.workload import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", choices=("sft", "engine", "objectives", "grpo"))
    options = parser.parse_args()
    wrong: list[str] = []
    keep = not (options.quick or options.workload)
    if options.only in (None, "sft"):
        wrong = measure_all(options, RESULTS / f"sft-{options.device}.json" if keep else None)
    for name in ("engine", "objectives", "grpo"):
        if options.only in (None, name) and not options.workload:
            wrong += run_script(name, options, keep)
    if wrong:
        sys.exit("\n".join(wrong))


def run_script(name: str, options: argparse.Namespace, keep: bool) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--device", options.device]
    command += ["--repetitions", str(1 if options.quick else options.repetitions or 3)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    if keep:
        command += ["--output", str(RESULTS / f"{name}-{options.device}.json")]
    found = subprocess.run(command, cwd=ROOT, check=False)
    return [f"benchmarks/{name}.py ended with {found.returncode}"] if found.returncode else []


if __name__ == "__main__":
    main()
