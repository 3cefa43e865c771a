"""Warm kernels: forked from a parent with the imports done, and in nothing else different from
plain ones.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from layerbook.pipeline import _warm, kernels, runner

pytestmark = pytest.mark.skipif(
    not kernels.available(), reason="no forkserver on this system: plain kernels are used there"
)
LOOK = """\
import json, os, random, sys
import matplotlib, matplotlib.pyplot as plt, numpy as np, torch
from transformers import AutoModelForCausalLM
from pathlib import Path
seen = {"threads": torch.get_num_threads(), "cwd": os.getcwd(), "hash": hash("layer"), "backend": matplotlib.get_backend(),
        "random": random.random(), "numpy": np.random.rand(), "torch": torch.rand(1).item(), "cuda": torch.cuda.is_initialized(),
        "path": [p for p in sys.path if p], "argv": sys.argv[:1], "main": __name__, "tqdm": os.environ.get("TQDM_DISABLE"),
        "group": os.getpgid(0) == os.getpid(),
        "product": (torch.ones(300, 300) @ torch.linspace(0, 1, 90000).view(300, 300)).sum().item(),
        "solve": float(np.linalg.solve(np.eye(200) * 3 + 1, np.arange(200.0)).sum())}
Path("seen.json").write_text(json.dumps(seen, default=str))
"""


def look(house, warm, **how):
    house.paper(extra=LOOK)
    runner.run("toy", warm=warm, **how)
    return json.loads((house.root / "seen.json").read_text(encoding="utf-8")), house.results()


def test_warm_and_plain_kernels_differ_in_nothing_that_a_notebook_sees(house):
    plain, files = look(house, warm=False)
    warm, again = look(house, warm=True)
    assert warm == plain
    assert (
        warm["cwd"] == str(house.root)
        and warm["main"] == "__main__"
        and warm["tqdm"] == "1"
        and not warm["cuda"]
    )
    for name in files:
        if name.endswith(".ipynb"):
            assert files[name] == again[name]
    old, new = (json.loads(f["cpu/toy.json"]) for f in (files, again))
    for part in ("measured", "measured_by", "device"):
        assert old[part] == new[part], part


def test_each_kernel_has_the_threads_that_were_asked_for(house):
    for n in (1, 2):
        assert look(house, warm=True, threads=n)[0]["threads"] == n
    assert house.record()["device"] == "cpu, 2 threads"


def test_runs_do_not_inherit_each_others_random_state(house):
    house.paper(extra="import random, torch; random.random(); np.random.rand(); torch.rand(9)")
    first = runner.run("toy", warm=True, write=False)["claims"]
    assert runner.run("toy", warm=True, write=False)["claims"] == first
    assert look(house, warm=True)[0]["torch"] == look(house, warm=True)[0]["torch"]


def test_the_parent_touches_no_gpu_and_none_of_our_modules():
    code = (
        "import sys\nfrom layerbook.pipeline import _warm; _warm.load(); import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "ours = ('layerbook.pipeline', 'layerbook.pipeline._warm')\n"
        "assert not [line for line in open('/proc/self/maps') if 'libcuda.so' in line]\n"
        "assert not [m for m in sys.modules if m.startswith('layerbook.') and m not in ours]\n"
        "assert 'transformers' in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_every_preloaded_module_exists():
    assert [m for m in _warm.MODULES if importlib.util.find_spec(m) is None] == []


def test_a_killed_warm_kernel_is_a_clear_error(house):
    house.paper(extra="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(runner.RunError, match="the kernel died"):
        runner.run("toy", warm=True)
    house.paper()
    runner.run("toy", warm=True)  # the parent survives its children
    assert house.record()["measured"]


@pytest.fixture
def taken(monkeypatch):
    """Every port that Jupyter finds free is another process's by the time the kernel opens it."""
    from jupyter_client import connect

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(
            connect.LocalPortCache, "find_available_port", lambda self, ip: other.getsockname()[1]
        )
        yield


def test_a_warm_kernel_needs_no_port_that_another_process_could_take(house, taken, monkeypatch):
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", short)
        runner.run("toy", warm=True)
        assert house.results() and os.listdir(short) == []  # nothing is left behind


def test_a_path_too_long_for_a_socket_means_ports_again(house, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / ("long" * 30)))
    runner.run("toy", warm=True)
    assert house.results()


def test_an_interrupt_reaches_a_warm_kernel_and_nobody_else():
    import asyncio

    from jupyter_client import AsyncKernelManager

    kernels.register()

    async def stop_it() -> str:
        manager = AsyncKernelManager(kernel_name=kernels.WARM)
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        client.execute("import time; time.sleep(60)")
        await asyncio.sleep(1)
        await manager.interrupt_kernel()
        reply = await client.get_shell_msg(timeout=20)
        alive = await manager.is_alive()
        await manager.shutdown_kernel(now=True)
        return f"{reply['content'].get('ename')} {alive}"

    with ThreadPoolExecutor(
        1
    ) as elsewhere:  # the browser tests leave an event loop running in the main thread
        assert elsewhere.submit(asyncio.run, stop_it()).result() == "KeyboardInterrupt True"


def test_kernels_end_when_their_driver_is_killed(house):
    house.paper(extra="import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(120)")
    child = subprocess.Popen(
        [sys.executable, "-m", "layerbook", "run", "toy"],
        cwd=house.root,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mark = house.root / "pid"
    wait(lambda: mark.exists() and mark.read_text(encoding="utf-8"), 60)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    wait(lambda: gone(int(mark.read_text(encoding="utf-8"))), 30)
    assert house.results() == {}


def gone(pid):
    """True when no process has this id, or only its entry is left for somebody to collect."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
