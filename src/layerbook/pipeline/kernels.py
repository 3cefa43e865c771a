"""Warm kernels: forked from one parent that has already imported torch, transformers and
matplotlib.

A plain kernel spends seconds on imports before its first line. Here the standard library's
forkserver keeps a parent with these imports and no threads of its own, and a Jupyter kernel
provisioner starts each kernel as a fork of it. A forked kernel
differs from a plain one in nothing else: environment, working folder, threads and hash seed are set
as asked, every run
seeds its own generators, and CUDA is never touched in the parent. POSIX only; elsewhere plain
kernels are used.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner
from jupyter_core.paths import jupyter_runtime_dir
from nbclient import NotebookClient
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from layerbook.pipeline import _warm, folders, surroundings

WARM, COLD = "layerbook-warm", "python3"
SPECS = Path(__file__).with_name("jupyter")  # found by Jupyter through JUPYTER_PATH
# Read while the parent starts (hash seed) or while it imports (tqdm), so that a fork could not
# change them any more.
FIXED = {"PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
LONGEST = (
    100  # bytes of the path of a Unix socket, "-1" to "-5" not counted; Linux allows 107, macOS 103
)
_starting = threading.Lock()


def available() -> bool:
    """True where kernels can be forked."""
    return "forkserver" in multiprocessing.get_all_start_methods()


def start_parent() -> None:
    """Start the warm parent of this process unless it runs; its imports happen in the background."""
    folders.settle()
    with _starting:
        settings = FIXED | {_warm.VARIABLE: "1"}
        # Read by libraries while they are imported: a fork that leaves them out must not inherit
        # what they did to the parent.
        left_out = [k for k in os.environ if surroundings.unwanted(k)]
        old = {k: os.environ.get(k) for k in [*settings, *left_out]}
        for k in left_out:
            del os.environ[k]
        os.environ.update(settings)
        try:
            multiprocessing.set_forkserver_preload(["layerbook.pipeline._warm"])
            forkserver.ensure_running()
        finally:
            for k, v in old.items():
                os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)


def register() -> None:
    """Let Jupyter find the warm kernel by name and folders to write to, in this process and in
    those that it starts.
    """
    folders.settle()
    known = os.environ.get("JUPYTER_PATH", "")
    if str(SPECS) not in known.split(os.pathsep):
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(SPECS), known]))


@cache
def _path() -> list[str]:
    """The import path of a plain interpreter, without what this process's own script or test runner
    added.
    """
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
        ).stdout
    )


class Forked:
    """A forked kernel behind those methods of `subprocess.Popen` that Jupyter uses."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], cwd: str | None, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(
            target=_warm.serve, args=(arguments, cwd, environment, _path()), daemon=False
        )
        # multiprocessing would run this process's main script again in the child; a kernel wants
        # none of it
        with _starting:
            main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
            try:
                self._process.start()
            finally:
                sys.modules["__main__"] = main
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
    """Starts kernels as forks of the warm parent; named in
    `jupyter/kernels/layerbook-warm/kernel.json`.
    """

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose Unix sockets in place of ports: a free port may be another process's by the time
        the kernel opens it.
        """
        manager = self.parent
        if (
            hasattr(socket, "AF_UNIX")
            and manager is not None
            and manager.transport == "tcp"
            and not self.ports_cached
        ):
            file = manager.connection_file or os.path.join(
                jupyter_runtime_dir(), f"kernel-{uuid.uuid4().hex[:16]}.json"
            )
            address = os.path.splitext(file)[0] + "-ipc"
            if len(os.fsencode(address)) <= LONGEST:
                os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
                manager.connection_file, manager.transport, manager.ip, manager.cache_ports = (
                    file,
                    "ipc",
                    address,
                    False,
                )
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a kernel for the command line `python -m ipykernel_launcher ARGUMENTS`."""
        start_parent()
        arguments = cmd[cmd.index("-f") :]
        self.process = Forked(
            arguments, kwargs.get("cwd"), dict(kwargs.get("env") or os.environ) | FIXED
        )
        # `_warm.serve` makes the child the leader of its own group
        self.pid = self.pgid = self.process.pid
        await self._listening()
        return self.connection_info

    async def _listening(self, seconds: float = 5.0) -> None:
        """Wait until the kernel has opened its last port: a client that comes too early tries again
        only much later.
        """
        end = time.monotonic() + seconds
        where, port = self.connection_info["ip"], self.connection_info["hb_port"]
        unix = self.connection_info["transport"] == "ipc"
        while self.process.poll() is None and time.monotonic() < end:
            with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
                if probe.connect_ex(f"{where}-{port}" if unix else (where, port)) == 0:
                    return
            await asyncio.sleep(0.01)

    async def wait(self) -> int | None:
        """Exit code once the kernel has ended; looked for more often than the base class does."""
        while self.process and self.process.poll() is None:
            await asyncio.sleep(0.01)
        return await super().wait()


class Notebooks(NBClientEngine):
    """Papermill's engine with an environment for each kernel, so that several may run in one
    process.
    """

    _live: set[NotebookClient] = set()

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        env: dict[str, str] | None = None,
        start_timeout: int = 120,
        **kwargs: Any,
    ) -> Any:
        """Run the notebook that `nb_man` holds in a kernel that sees `env` on top of this process's
        cleaned environment.
        """
        kept = {k: v for k, v in kwargs.items() if k in ("shutdown_kernel", "log_output")}
        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            timeout=None,
            extra_arguments=["--log-level=40"],
            **kept,
        )
        cls._live.add(client)
        try:
            return client.execute(env=surroundings.clean() | FIXED | (env or {}))
        finally:
            cls._live.discard(client)

    @classmethod
    def kill_all(cls) -> None:
        """End every kernel that runs a notebook; their runs then fail as if the kernel had died."""
        for client in list(cls._live):
            process = getattr(getattr(client.km, "provisioner", None), "process", None)
            if process is not None and process.poll() is None:
                with suppress(ProcessLookupError, PermissionError):
                    if (
                        os.getpgid(process.pid) == process.pid
                    ):  # with the processes that the notebook started
                        os.killpg(process.pid, signal.SIGKILL)
                process.kill()


papermill_engines.register("layerbook", Notebooks)
