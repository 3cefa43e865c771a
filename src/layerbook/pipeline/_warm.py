"""What runs in the parent of all warm kernels and in its forks: the imports, and how a fork becomes
a kernel.

The parent touches no GPU and computes nothing. This package's own modules are left out of its
imports: they bind the root folder when they are imported, and a kernel may have another.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import warnings
from multiprocessing import forkserver

VARIABLE = "LAYERBOOK_WARM_PARENT"
# Heavy imports of the notebooks, and what a kernel itself needs. One that is missing costs time,
# not correctness.
MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.debugger",
    "IPython.core.interactiveshell",
    "IPython.core.completer",
    "IPython.extensions.storemagic",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "numpy",
    "scipy.stats",
    "sklearn.linear_model",
    "torch",
    "torch.nn.functional",
    "safetensors.torch",
    "safetensors.numpy",
    "jsonschema",
    "ruamel.yaml",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "threadpoolctl",
    "sqlite3",
    "tornado.gen",
)


def load() -> None:
    """Import all of them."""
    # Ctrl-C is for the process that this one ends with, not for it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the debugger, which nobody attaches here, says nothing
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    # stored notebooks hold no progress bars
    warnings.filterwarnings("ignore", message="IProgress not found")
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue


def serve(
    arguments: list[str], cwd: str | None, environment: dict[str, str], path: list[str]
) -> None:
    """Become a kernel (in the forked child)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a plain kernel
    os.setsid()  # a group of its own, so that signals to it reach nobody else
    # else the warm parent would outlive this book's process
    os.close(forkserver._forkserver._forkserver_alive_fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd or ".")
    sys.path[:] = path
    for name in [m for m in sys.modules if m == "layerbook" or m.startswith("layerbook.")]:
        del sys.modules[
            name
        ]  # the kernel's working folder may lie in another checkout than this process's
    sys.argv = [importlib.util.find_spec("ipykernel_launcher").origin, *arguments]
    threads = environment.get("OMP_NUM_THREADS")
    if threads:
        import threadpoolctl
        import torch

        torch.set_num_threads(int(threads))
        threadpoolctl.threadpool_limits(int(threads))
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    # A plain kernel chooses its backend before matplotlib is imported; here that is done already.
    matplotlib.rcParams["backend"] = (
        environment.get("MPLBACKEND") or "module://matplotlib_inline.backend_inline"
    )
    # The kernel ends when its warm parent does, and that one when this book's process ends, however
    # it ends.
    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


if os.environ.get(VARIABLE):  # set for the parent alone, which imports this module to be warm
    load()
