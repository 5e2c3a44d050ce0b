"""The process that `smt` starts: z3 reads formulas that a model wrote, and compares them with the right ones.

Run by its path, like `sandbox_worker`, whose limits and refusals it puts on itself once z3 is loaded: no network, no
further process or thread, no file. A formula is no program; this is against what a parser in C++ may do with one.
"""

import json
import os
import resource
import sys
from typing import Any

MEMORY = 2 << 30
STEPS = 200_000
"""z3's own count of work (`rlimit`) for one question: the same on every machine, unlike seconds."""


def judge(request: dict[str, Any]) -> dict[str, str]:
    """What z3 says of `candidate` beside `gold`, both terms of sort Bool over what `declarations` declare."""
    import z3

    context = z3.Context()  # of its own: what was asked before changes nothing
    declarations, gold, candidate = (request[name] for name in ("declarations", "gold", "candidate"))
    try:
        z3.parse_smt2_string(f"{declarations}\n(assert {gold})", ctx=context)
    except z3.Z3Exception as error:
        return {"verdict": "gold", "cause": _told(error)}
    try:
        right, said = z3.parse_smt2_string(f"{declarations}\n(assert {gold})\n(assert {candidate})", ctx=context)
    except (z3.Z3Exception, ValueError) as error:
        return {"verdict": "malformed", "cause": _told(error)}

    def possible(*formulas: Any) -> bool | None:
        solver = z3.SimpleSolver(ctx=context)  # the other one sets alarms, which takes a thread
        solver.set("rlimit", STEPS)
        solver.add(*formulas)
        return {"sat": True, "unsat": False}.get(str(solver.check()))

    differs = possible(right != said)
    if differs is False:
        return {"verdict": "same"}
    if possible(said) is False:
        return {"verdict": "contradiction"}
    if possible(z3.Not(said)) is False:
        return {"verdict": "tautology"}
    if possible(right, z3.Not(said)) is False:
        return {"verdict": "weaker"}
    if possible(said, z3.Not(right)) is False:
        return {"verdict": "stronger"}
    return {"verdict": "undecided" if differs is None else "other"}


def _told(error: Exception) -> str:
    """One line for a person."""
    text = error.args[0] if error.args else error
    return " ".join((text.decode(errors="replace") if isinstance(text, bytes) else str(text)).split())[:300]


def confine(folder: str) -> None:
    """Give up, for good, whatever reading formulas does not need."""
    sys.path.append(os.path.dirname(__file__))
    import sandbox_worker  # type: ignore[import-not-found]  # it is beside this file, which is run by its path

    sandbox_worker.give_up_privileges()
    sandbox_worker.keep_to_files(sandbox_worker.allowed_files(folder))
    for which, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(which, (most, most))
    sandbox_worker.forbid_calls(sandbox_worker.seccomp_filter())


def serve(folder: str, packages: str) -> None:
    """Answer requests until nobody asks any more."""
    os.rmdir(folder)  # nothing is written
    sys.path.append(packages)
    import z3

    z3.main_ctx()  # what it loads when it is first used
    confine(folder)
    while len(head := sys.stdin.buffer.read(8)) == 8:
        body = json.dumps(judge(json.loads(sys.stdin.buffer.read(int.from_bytes(head))))).encode()
        sys.stdout.buffer.write(len(body).to_bytes(8) + body)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
