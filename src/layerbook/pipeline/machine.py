"""What this machine has to hand out to papers that run side by side."""

from __future__ import annotations

import os
import subprocess


def free_memory_mb() -> float:
    """Memory that can be promised, in MB; infinite where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(
                int(line.split()[1]) / 1024 for line in stream if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        return float("inf")


def gpus() -> list[str]:
    """Indices of the GPUs to hand out, as CUDA counts them; found without initialising CUDA here."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [g for g in named.split(",") if g.strip()]
    try:
        out = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(out.splitlines()) if line.startswith("GPU")]
