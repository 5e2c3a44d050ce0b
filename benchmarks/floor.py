"""The floor: how long the matrix products alone would take, at the rate that this machine gives them.

Counted are 6 FLOP for each weight and token (2 forward, 4 backward): the weights of the body's linear layers for each
input token, those of the head for each *trained* token only. Not counted are padding, the attention's own products,
norms, softmax, the optimiser, and anything that is computed twice. So the floor is lower than "6 x parameters x tokens"
by the head at the question's tokens, and a contender's share of it is lower too.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.workload import Workload

ROWS = {"cpu": 1024, "cuda": 8192}
"""Tokens that are multiplied at once."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def count_flop(workload: Workload, input_tokens: int, trained_tokens: int) -> float:
    """FLOP of some training tokens, as counted above."""
    head = workload.vocabulary * workload.hidden
    body = sum(rows * columns for rows, columns in _shapes(workload)) - head
    return 6.0 * (body * input_tokens + head * trained_tokens)


def count_rollout_flop(workload: Workload, drawn_tokens: float) -> tuple[float, float]:
    """FLOP of drawing some tokens (2 for each weight) and of learning from them (6). Their prompts are not counted."""
    weights = sum(rows * columns for rows, columns in _shapes(workload))
    return 2.0 * weights * drawn_tokens, 6.0 * weights * drawn_tokens


def matrix_rate(workload: Workload, device: str, clock: str = "wall", repetitions: int = 12) -> float:
    """FLOP a second over all linear layers of the model: forward, gradient of the input, gradient of the weight.

    Each product is timed alone, its fastest run counts, and its operands are in the caches if they fit.
    """
    flop = seconds = 0.0
    times: dict[tuple[int, int], float] = {}
    for shape in _shapes(workload):
        if shape not in times:
            times[shape] = _seconds(workload, shape, device, CLOCKS[clock], repetitions)
        flop += 6.0 * ROWS[device] * shape[0] * shape[1]
        seconds += times[shape]
    return flop / seconds


def _shapes(workload: Workload) -> list[tuple[int, int]]:
    """`(outputs, inputs)` of every linear layer, the head included."""
    with torch.device("meta"):
        model = workload.model("meta")
    return [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Linear)]  # type: ignore[misc]


def _seconds(
    workload: Workload, shape: tuple[int, int], device: str, now: Callable[[], float], repetitions: int
) -> float:
    outputs, inputs = shape
    dtype = getattr(torch, workload.dtype)
    x, weight, gradient = (
        torch.randn(*size, device=device, dtype=dtype)
        for size in ((ROWS[device], inputs), (outputs, inputs), (ROWS[device], outputs))
    )
    products: list[Callable[[], Tensor]] = [lambda: x @ weight.T, lambda: gradient @ weight, lambda: gradient.T @ x]
    return sum(_fastest(product, device, now, repetitions) for product in products)


def _fastest(product: Callable[[], Tensor], device: str, now: Callable[[], float], repetitions: int) -> float:
    best = float("inf")
    for _ in range(repetitions):
        started = now()
        product()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, now() - started)
    return best
