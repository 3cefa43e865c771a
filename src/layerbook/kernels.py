"""Warm kernels: forked from one parent that has already imported torch, transformers and matplotlib.

A plain kernel spends seconds on imports before its first line. Here the standard library's forkserver keeps a parent with
these imports and no threads of its own, and a Jupyter kernel provisioner starts each kernel as a fork of it. A forked kernel
differs from a plain one in nothing else: environment, working folder, threads and hash seed are set as asked, every run
seeds its own generators, and CUDA is never touched in the parent. POSIX only; elsewhere plain kernels are used.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

WARM, COLD = "layerbook-warm", "python3"
SPECS = Path(__file__).with_name("jupyter")  # found by Jupyter through JUPYTER_PATH
# Read while the parent starts (hash seed) or while it imports (tqdm), so that a fork could not change them any more.
FIXED = {"PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
_starting = threading.Lock()


def available() -> bool:
    """True where kernels can be forked."""
    return "forkserver" in multiprocessing.get_all_start_methods()


def start_parent() -> None:
    """Start the warm parent of this process unless it runs; its imports happen in the background."""
    with _starting:
        old = {k: os.environ.get(k) for k in FIXED}
        os.environ.update(FIXED)
        try:
            multiprocessing.set_forkserver_preload(["layerbook._preload"])
            forkserver.ensure_running()
        finally:
            for k, v in old.items():
                os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)


def register() -> None:
    """Let Jupyter find the warm kernel by name, in this process and in those that it starts."""
    known = os.environ.get("JUPYTER_PATH", "")
    if str(SPECS) not in known.split(os.pathsep):
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(SPECS), known]))


@cache
def _path() -> list[str]:
    """The import path of a plain interpreter, without what this process's own script or test runner added."""
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _serve(arguments: list[str], cwd: str | None, environment: dict[str, str], path: list[str]) -> None:
    """Become a kernel (in the forked child)."""
    os.setsid()  # a group of its own, so that signals to it reach nobody else
    os.close(forkserver._forkserver._forkserver_alive_fd)  # else the warm parent would outlive this book's process
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd or ".")
    sys.path[:] = path
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
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND") or "module://matplotlib_inline.backend_inline"
    # The kernel ends when its warm parent does, and that one when this book's process ends, however it ends.
    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


class Forked:
    """A forked kernel behind those methods of `subprocess.Popen` that Jupyter uses."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], cwd: str | None, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_serve, args=(arguments, cwd, environment, _path()), daemon=False)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit code, after at most `timeout` seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the kernel alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class WarmProvisioner(LocalProvisioner):
    """Starts kernels as forks of the warm parent; named in `jupyter/kernels/layerbook-warm/kernel.json`."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a kernel for the command line `python -m ipykernel_launcher ARGUMENTS`."""
        start_parent()
        arguments = cmd[cmd.index("-f"):]
        self.process = Forked(arguments, kwargs.get("cwd"), dict(kwargs.get("env") or os.environ) | FIXED)
        self.pid = self.pgid = self.process.pid  # `_serve` makes the child the leader of its own group
        return self.connection_info


class Notebooks(NBClientEngine):
    """Papermill's engine with an environment for each kernel, so that several may run in one process."""

    _live: set[NotebookClient] = set()

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, env: dict[str, str] | None = None, start_timeout: int = 120,
                                 **kwargs: Any) -> Any:
        """Run the notebook that `nb_man` holds in a kernel that sees `env` on top of this process's environment."""
        kept = {k: v for k, v in kwargs.items() if k in ("shutdown_kernel", "log_output")}
        client = PapermillNotebookClient(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None,
                                         extra_arguments=["--log-level=40"], **kept)
        cls._live.add(client)
        try:
            return client.execute(env=dict(os.environ) | FIXED | (env or {}))
        finally:
            cls._live.discard(client)

    @classmethod
    def kill_all(cls) -> None:
        """End every kernel that runs a notebook; their runs then fail as if the kernel had died."""
        for client in list(cls._live):
            process = getattr(getattr(client.km, "provisioner", None), "process", None)
            if process is not None:
                process.kill()


papermill_engines.register("layerbook", Notebooks)
