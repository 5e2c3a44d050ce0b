"""Peak memory of this process, and of its training alone."""

from pathlib import Path

import torch

MIB = 2**20


class PeakMemory:
    """From here on: the peak, and how far it is above what is held now (libraries, model, data).

    On a GPU the caching allocator's account of tensors; on Linux the kernel's account of resident pages.
    """

    def __init__(self, device: str) -> None:
        self._gpu = device == "cuda"
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated()
            self._before = 0
        else:
            self._held, self._before = _resident("VmRSS"), _resident("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now

    def report(self) -> dict[str, float]:
        """MiB: `training` above what was held at the start, `process` in all (its start included)."""
        peak = torch.cuda.max_memory_allocated() if self._gpu else _resident("VmHWM")
        return {"training": (peak - self._held) / MIB, "process": max(peak, self._before) / MIB}


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {name}: peak memory is measured on Linux only")
