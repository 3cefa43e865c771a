"""A real Slurm cluster of one node on the loopback address, started for a test and stopped by it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
CONFIG = """\
ClusterName=layerbook-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SlurmdTimeout=5
ReturnToService=2
KillWait=2
MessageTimeout=5
JobRequeue=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    gone = [n for n in NEEDED if not shutil.which(n)]
    return f"not installed: {', '.join(gone)} (Debian: slurm-wlm, munge)" if gone else ""


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """munged, slurmctld and slurmd in a folder of their own; `environment` makes Slurm's commands
    use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(mode=0o700)
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "munge/key").chmod(0o400)
        config = folder / "slurm.conf"
        host = socket.gethostname().split(".")[0]
        config.write_text(
            CONFIG.format(folder=folder, host=host, ports=free_ports(2)), encoding="utf-8"
        )
        self.environment = {"SLURM_CONF": str(config)}
        m = folder / "munge"
        self._run(
            "munged",
            "--force",
            f"--key-file={m}/key",
            f"--socket={m}/socket",
            f"--pid-file={m}/pid",
            f"--log-file={m}/log",
            f"--seed-file={m}/seed",
        )
        self._run("slurmctld")
        self.start_node()

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
        return done.stdout

    def start_node(self) -> None:
        """Start the node and wait until it takes jobs."""
        self._run("slurmd")
        wait_for(lambda: "idle" in self._run("sinfo", "-h", "-o", "%T"), 60)

    def lose_node(self) -> None:
        """Kill the node and everything that runs on it, without a word to the controller."""
        node = self._pid("slurmd.pid")
        os.kill(node, signal.SIGKILL)
        subprocess.run(["pkill", "-9", "-f", "slurmstepd: "], check=False)
        for pid in self.job_processes():
            os.kill(pid, signal.SIGKILL)

    def job_processes(self) -> list[int]:
        """Processes that belong to a job of this cluster."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if (
                b"SLURM_JOB_ID=" in environment
                and f"SLURM_CONF={self.folder}".encode() in environment
            ):
                found.append(int(entry.name))
        return found

    def jobs(self) -> dict[str, str]:
        """State of every job by its name, the latest of that name."""
        rows = [
            line.split("|")
            for line in self._run(
                "squeue", "-h", "-t", "all", "-S", "i", "-o", "%j|%T|%i"
            ).splitlines()
        ]
        return {name: state for name, state, _ in rows}

    def cancel(self, name: str) -> None:
        """Cancel the jobs of that name."""
        self._run("scancel", f"--name={name}")

    def stop(self) -> None:
        """Stop all of it."""
        for pid in self.job_processes():
            os.kill(pid, signal.SIGKILL)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            try:
                os.kill(self._pid(name), signal.SIGKILL)
            except (OSError, ValueError):
                continue

    def _pid(self, name: str) -> int:
        return int((self.folder / name).read_text(encoding="utf-8"))


def wait_for(condition, seconds: float) -> None:
    """Return when `condition()` is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.3)
