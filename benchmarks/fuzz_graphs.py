"""Compare random valid graphs with the reference: python benchmarks/fuzz_graphs.py --count 100000 [--start SEED].

Prints a line for each difference, which `differences(SEED)` of tests/helpers/graph_fuzzing.py repeats. Exit code 1 if
there are any.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]
from helpers.graph_fuzzing import differences  # noqa: E402


def main() -> int:
    """Run the graphs of so many seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    args = parser.parse_args()
    end, wrong, done = time.monotonic() + args.seconds, 0, 0
    for seed in range(args.start, args.start + args.count):
        if time.monotonic() > end:
            break
        try:
            for difference in differences(seed):
                wrong += 1
                print(difference, flush=True)
        except Exception:
            wrong += 1
            print(f"seed {seed}:", flush=True)
            traceback.print_exc()
        done += 1
    print(f"{done} graphs from seed {args.start} on, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
