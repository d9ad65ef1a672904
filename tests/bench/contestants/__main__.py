"""``python -m contestants MODULE WORK``: take part in a benchmark, as the harness asks for."""

from __future__ import annotations

import importlib
import os
import sys
import traceback


def main(module: str, text: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # frameworks print; answers have a stream of their own
    if peers := os.environ.get("KDFED_BENCH_PEERS"):
        sys.path.append(peers)

    import torch
    from work import Judge, Work

    from contestants.gate import Finished, Gate

    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = Work.read(text)
    gate = Gate(sys.stdin, answers, Judge(work))
    try:
        importlib.import_module(f"contestants.{module}").main(work, gate)
    except Finished:
        return
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a thread of the framework may still wait for the gate


if __name__ == "__main__":
    main(*sys.argv[1:])
