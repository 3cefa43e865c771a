"""Start torch and a Jupyter kernel with the Python that runs this, and say so; any failure is an
exception.

Run by `tools/install.py` with the new environment's Python: what merely lies on the disk does not
count as installed.
"""

import os
import tempfile

import torch
from jupyter_client.manager import start_new_kernel

SECONDS = 120  # a first start on a slow disk


def answer(code: str) -> str:
    """Run a line in a fresh kernel; return what it prints."""
    said: list[str] = []

    def hear(message: dict) -> None:
        content = message["content"]
        said.append(content.get("text") or content.get("evalue") or "")

    manager, client = start_new_kernel(startup_timeout=SECONDS)
    try:
        client.execute_interactive(code, timeout=SECONDS, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(said).strip()


def main() -> None:
    """Multiply in torch, here and in a kernel. Raises RuntimeError if the kernel does not answer
    the same.
    """
    here = str((torch.ones(2, 3) @ torch.ones(3, 2)).sum().item())
    with tempfile.TemporaryDirectory(
        prefix="lb-"
    ) as folder:  # neither needs a home that can be written
        os.environ |= {
            "JUPYTER_RUNTIME_DIR": folder,
            "IPYTHONDIR": folder,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        there = answer("import torch; print((torch.ones(2, 3) @ torch.ones(3, 2)).sum().item())")
    if there != here:
        raise RuntimeError(f"a kernel answers {there!r} where {here!r} is right")
    print(f"torch {torch.__version__} computes, a kernel answers")


if __name__ == "__main__":
    main()
