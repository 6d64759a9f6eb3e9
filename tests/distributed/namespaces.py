"""Two machines on one: each is a network namespace with an address, a host name, /etc/hosts, HOME and a working folder
of its own, and a cable (a veth pair) joins them. It needs Linux, root and iproute2."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.launchers import ROOT, environment

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_TOOLS = ("ip", "nsenter", "unshare")
_BIN = Path(sys.executable).parent


def why_not() -> str | None:
    """Why this machine cannot play two; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"network namespaces need {', '.join(missing)}"
    name = f"mlm-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Machine:
    """One of the two: ``home`` and ``work`` are its folders, ``node0`` or ``node1`` its name."""

    def __init__(self, number: int, folder: Path, hosts: list[str]) -> None:
        self.number = number
        self.folder = folder / f"node{number}"
        self.name = f"mlm-{os.getpid()}-{number}"
        self.started: list[subprocess.Popen[str]] = []
        for part in ("home", "work"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))

    @property
    def work(self) -> Path:
        """The working folder of what `start` starts."""
        return self.folder / "work"

    @property
    def enter(self) -> list[str]:
        """The words before a command that is to run here; it replaces them, and gets their signals."""
        script = f'hostname node{self.number}; mount --bind {self.folder}/hosts /etc/hosts; exec "$@"'
        enter = ["nsenter", f"--net=/var/run/netns/{self.name}", "unshare", "--uts", "--mount"]
        return [*enter, "bash", "-c", script, "-"]

    def start(self, command: list[str], **variables: str) -> tuple[subprocess.Popen[str], Path]:
        """Start a command here; and the file with what it prints."""
        output = self.folder / f"output{len(self.started)}.txt"
        variables = {**environment(), "HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT), **variables}
        with output.open("w") as file:
            process = subprocess.Popen(
                [*self.enter, *command], cwd=self.work, env=variables, stdout=file, stderr=file, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process, output

    def cable(self, state: str) -> None:
        """Plug the cable in (``up``) or pull it out (``down``)."""
        _ip("-n", self.name, "link", "set", "eth0", state)

    def pids(self) -> list[int]:
        """Of all processes that run here."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to everything that runs here: SIGKILL is a power cut, SIGSTOP a machine that hangs."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def two_machines(folder: Path, own_address: str | None = None) -> Iterator[tuple[Machine, Machine]]:
    """Both, until the block ends.

    Args:
        folder: For their folders.
        own_address: By which a machine knows its own name; as Debian's installer has it, 127.0.1.1.
    """
    machines = []
    try:
        for i in (0, 1):
            known = [own_address if own_address and k == i else address for k, address in enumerate(ADDRESSES)]
            machines.append(Machine(i, folder, [f"{address} node{k}" for k, address in enumerate(known)]))
            _ip("netns", "add", machines[i].name)
        one, other = machines
        _ip("-n", one.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other.name)
        for machine, address in zip(machines, ADDRESSES, strict=True):
            _ip("-n", machine.name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", machine.name, "link", "set", device, "up")
        yield one, other
    finally:
        for machine in machines:
            with contextlib.suppress(subprocess.CalledProcessError):
                machine.kill()
            for process in machine.started:
                process.wait(10)
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True, check=False)


def torchrun(number: int, *words: str, elastic: bool = False, num_processes: int = 1) -> list[str]:
    """The launch line of the README for machine ``number``, or that by which a run goes on with one machine."""
    nodes = ("--nnodes", "1:2", "--max_restarts", "5") if elastic else ("--nnodes", "2")
    meet = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29500", "--rdzv_id", "run")
    is_host = "true" if number == 0 else "false"
    here = ("--rdzv_conf", f"is_host={is_host},last_call_timeout=5" if elastic else f"is_host={is_host}")
    return [
        str(_BIN / "torchrun"), *nodes, "--nproc_per_node", str(num_processes), *meet, *here, *words,
    ]  # fmt: skip


def accelerate(number: int, *words: str, num_processes: int = 1) -> list[str]:
    """The same with Accelerate's launcher, which is told which machine this is."""
    head = ("--main_process_ip", ADDRESSES[0], "--main_process_port", "29500")
    return [
        *(str(_BIN / "accelerate"), "launch", "--config_file", str(ROOT / "accelerate_config.yaml"), "--multi_gpu"),
        *("--num_machines", "2", "--machine_rank", str(number), *head, "--num_processes", str(2 * num_processes)),
        *words,
    ]
