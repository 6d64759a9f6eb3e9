"""Two machines, each with a network of its own (namespaces.py): they train, agree, and end well when one fails."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import sentences
from tests.distributed.namespaces import ADDRESSES, Machine, accelerate, torchrun, two_machines, why_not
from tests.faults.running import ENDLESS
from tests.launchers import ROOT, assert_same_run, launcher, rows, run, tiny_run
from train_loop.checkpoint import verify
from train_loop.run_files import checkpoints

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TIMEOUT = 8  # process_timeout, in seconds
Machines = tuple[Machine, Machine]
Started = tuple[subprocess.Popen[str], Path]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with two_machines(tmp_path) as both:
        yield both


def _words(machine: Machine, texts: list[str] | None = None, **changes: str | int | float) -> list[str]:
    """Words of a run on a machine, all of whose files are its own."""
    (machine.work / "corpus.txt").write_text("\n".join(sentences(400) if texts is None else texts) + "\n")
    settings: dict[str, str | int | float] = {"output_dir": "run", "process_timeout": TIMEOUT, **changes}
    return tiny_run(Path("corpus.txt"), "cache", **settings)


def _endless(machine: Machine) -> list[str]:
    return _words(machine, max_steps=ENDLESS, eval_steps=ENDLESS, save_steps=20, lr_scheduler_type="constant")


def _start(machine: Machine, words: list[str], **variables: str) -> Started:
    """Start the trainer without a launcher: half the processes to start."""
    world = {"WORLD_SIZE": "2", "RANK": str(machine.number), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    meet = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", **variables}
    return machine.start([sys.executable, "-m", "launch.train", *words], **world, **meet)


def _ended(started: list[Started], within: float = 120) -> list[tuple[int, str]]:
    """Exit codes and what was printed."""
    return [(process.wait(within), output.read_text()) for process, output in started]


def _error(output: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def _wait_for_rows(folder: Path, more: int, started: list[Started]) -> None:
    """Until a run has written so many more rows."""
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120

    def count() -> int:
        return metrics.read_text().count("\n") if metrics.exists() else 0

    wanted = count() + more
    while count() < wanted:
        assert all(process.poll() is None for process, _ in started), [output.read_text() for _, output in started]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("launch", "num_processes", "how"),
    [
        (torchrun, 1, ()),
        pytest.param(accelerate, 2, (), marks=pytest.mark.slow),
        pytest.param(torchrun, 2, ("--shard", "true", "--replicas", "2"), marks=pytest.mark.slow),
    ],
)
def test_the_launch_lines_of_the_readme_make_the_run_of_one_process(
    launch: type[torchrun], num_processes: int, how: tuple[str, ...], machines: Machines
) -> None:
    """Each machine has a folder of its own: the first writes all of it, and every line is printed once."""
    started = []
    for machine in machines:
        words = ("-m", "launch.train", *_words(machine, process_timeout=60), *how)
        started.append(machine.start(launch(machine.number, *words, num_processes=num_processes)))
    first, second = _ended(started)
    assert (first[0], second[0]) == (0, 0), first[1] + second[1]
    assert "perplexity" in first[1]
    assert "perplexity" not in second[1]
    assert not (machines[1].work / "run" / "checkpoints").exists()
    whole = machines[0].folder / "whole"
    alone = tiny_run(machines[0].work / "corpus.txt", str(whole / "cache"), output_dir=str(whole / "run"))
    done = run(launcher("python", 1), *alone)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole / "run", machines[0].work / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "texts", "message"),
    [
        ({"seed": 7}, None, "process 1 (on node1) has seed=7, and process 0 (on node0) has 0"),
        ({"max_steps": 9}, None, "process 1 (on node1) has max_steps=9, and process 0 (on node0) has 8"),
        ({}, ["the dog ran", *sentences(400)[1:]], "process 1 (on node1) has tokenizer (SHA-256)="),
        ({}, sentences(399), "process 1 (on node1) has evaluation tokens (SHA-256)="),  # the last one is held out
    ],
)
def test_machines_that_differ_are_refused_by_name(
    changes: dict[str, int], texts: list[str] | None, message: str, machines: Machines
) -> None:
    words = [_words(machines[0]), _words(machines[1], texts, **changes)]
    for code, output in _ended([_start(m, w) for m, w in zip(machines, words, strict=True)]):
        assert code == 2
        assert message in _error(output)
    assert not (machines[0].work / "run").exists()


@pytest.mark.slow
def test_what_a_machine_has_of_checkpoints(machines: Machines) -> None:
    """The first machine's count: what the other one has does not, unless it is newer, which is refused by name."""
    one, other = machines
    resume = ("--resume_from_checkpoint", "latest")
    longer = {"max_steps": 8, "lr_scheduler_type": "constant"}
    for code, output in _ended([_start(m, _words(m, **{**longer, "max_steps": 4})) for m in machines]):
        assert code == 0, output
    ours = one.work / "run" / "checkpoints" / "step-00000004"
    theirs = other.work / "run" / "checkpoints"

    # An older one of another run, and one of the same step that is damaged.
    shutil.copytree(ours, theirs / "step-00000002")
    shutil.copytree(ours, theirs / "step-00000004")
    (theirs / "step-00000004" / "optimizer.safetensors").write_bytes(b"damaged")
    for code, output in _ended([_start(m, [*_words(m, **longer), *resume]) for m in machines]):
        assert code == 0, output
    steps = [row["step"] for row in rows(one.work / "run") if "loss" in row]
    assert steps == list(range(1, 9))

    # After a restart the machines may change places, and the new first one has no checkpoint.
    (theirs / "step-00000004").rename(theirs / "step-00000012")
    for code, output in _ended([_start(m, [*_words(m, **longer), *resume]) for m in machines]):
        assert code == 2
        assert "node1 has step-00000012 in run, and node0, where process 0 reads them, has step-00000008" in output


FAULTS = {
    "trainers killed": (TIMEOUT, "another process died"),
    "power lost": (TIMEOUT + 12, "another process died, or did not answer within process_timeout"),
    "cable out": (TIMEOUT + 12, "another process died, or did not answer within process_timeout"),
    "machine stopped": (TIMEOUT + 12, "another process died, or did not answer within process_timeout"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_other_machine_ends_with_a_named_error_and_a_whole_checkpoint(fault: str, machines: Machines) -> None:
    within, message = FAULTS[fault]
    one, other = machines
    started = [_start(m, _endless(m)) for m in machines]
    _wait_for_rows(one.work / "run", 50, started)
    if fault in ("power lost", "cable out"):
        other.cable("down")
    if fault in ("power lost", "trainers killed"):
        other.kill()
    if fault == "machine stopped":
        other.kill(signal.SIGSTOP)
    began = time.monotonic()
    code = started[0][0].wait(60)
    seconds = time.monotonic() - began
    assert code == 1
    assert seconds < within, seconds
    assert message in _error(started[0][1].read_text())
    newest = checkpoints(one.work / "run")[-1]
    verify(newest)
    last = [row["step"] for row in rows(one.work / "run")][-1]
    print(f"{fault}: ended after {seconds:.1f} s, {last - int(newest.name[5:])} updates lost")
    assert last - int(newest.name[5:]) < 40  # one save may have been under way
    other.kill(signal.SIGCONT)


@pytest.mark.slow
def test_a_short_cut_is_waited_out(machines: Machines) -> None:
    started = [_start(m, _endless(m)) for m in machines]
    _wait_for_rows(machines[0].work / "run", 30, started)
    machines[1].cable("down")
    time.sleep(5)
    machines[1].cable("up")
    _wait_for_rows(machines[0].work / "run", 30, started)


@pytest.mark.slow
def test_one_more_checkpoint_when_the_other_machine_is_lost(machines: Machines) -> None:
    """It is of the last whole update, and the run that goes on from it, on one process, is the uninterrupted one."""
    one, other = machines
    started = [_start(m, [*_endless(m), "--save_when_lost", "true"]) for m in machines]
    _wait_for_rows(one.work / "run", 30, started)
    other.kill()
    assert started[0][0].wait(60) == 1
    newest = int(checkpoints(one.work / "run")[-1].name[5:])
    assert newest >= rows(one.work / "run")[-1]["step"]
    corpus, last = one.work / "corpus.txt", str(newest + 6)
    words = tiny_run(corpus, str(one.work / "cache"), max_steps=last, eval_steps=ENDLESS, lr_scheduler_type="constant")
    for folder, more in ((one.work / "run", ("--resume_from_checkpoint", "latest")), (one.work / "whole", ())):
        done = run(launcher("python", 1), *words, *more, "--output_dir", str(folder))
        assert done.returncode == 0, done.stderr
    resumed, whole = ({row["step"]: row for row in rows(one.work / name) if "loss" in row} for name in ("run", "whole"))
    for step in range(newest + 1, newest + 7):
        assert resumed[step]["loss"] == pytest.approx(whole[step]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_slow_cable_that_loses_frames_is_only_slow(machines: Machines) -> None:
    """50 ms each way, and one frame of a hundred lost."""
    names = [machine.name for machine in machines]
    relay = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.relay", *names, "0.05", "0.01"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert relay.stdout is not None
        assert relay.stdout.readline() == "ready\n"
        cable = {"MASTER_ADDR": "10.78.0.1", "GLOO_SOCKET_IFNAME": "eth1"}
        started = [_start(m, _words(m, process_timeout=60), **cable) for m in machines]
        for code, output in _ended(started, within=240):
            assert code == 0, output
    finally:
        relay.kill()
        relay.communicate()
    seconds = [row["seconds"] for row in rows(machines[0].work / "run") if "loss" in row]
    print(f"{(len(seconds) - 1) / (seconds[-1] - seconds[0]):.1f} updates a second, evaluation included")


@pytest.mark.slow
def test_a_signal_to_one_machine_saves_and_ends_both(machines: Machines) -> None:
    started = [_start(m, _endless(m)) for m in machines]
    _wait_for_rows(machines[0].work / "run", 30, started)
    machines[1].kill(signal.SIGTERM)
    (code, output), (other_code, other_output) = _ended(started, within=30)
    assert (code, other_code) == (143, 143), output + other_output
    step = int(re.findall(r"stopped after step (\d+) by SIGTERM", output)[0])
    assert checkpoints(machines[0].work / "run")[-1].name == f"step-{step:08d}"
    assert "stopped after" not in other_output


@pytest.mark.slow
def test_torchrun_goes_on_without_a_lost_machine_and_takes_it_back(machines: Machines, tmp_path: Path) -> None:
    """The two share the run's folder. A machine that returns makes the others save: nothing is lost then."""
    folder = tmp_path / "shared"
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def launch(machine: Machine) -> Started:
        words = [*_endless(machine), "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
        return machine.start(torchrun(machine.number, "-m", "launch.train", *words, elastic=True), **variables)

    one, other = machines
    first = launch(one)
    lost = launch(other)
    _wait_for_rows(folder, 50, [first, lost])
    newest, last = checkpoints(folder)[-1], rows(folder)[-1]["step"]
    other.kill()
    began = time.monotonic()
    _wait_for_text(first[1], "= 1 process(es)", 1)
    print(f"machine lost: went on alone after {time.monotonic() - began:.0f} s, from step {newest.name[5:]} of {last}")
    _wait_for_rows(folder, 30, [first])
    began = time.monotonic()
    back = launch(other)
    _wait_for_text(first[1], "= 2 process(es)", 2)
    print(f"machine back: taken in after {time.monotonic() - began:.0f} s")
    _wait_for_rows(folder, 30, [first, back])
    assert "by SIGTERM" in first[1].read_text()
    one.kill()
    other.kill()
    steps = [row["step"] for row in rows(folder)]
    assert steps == list(range(1, len(steps) + 1))


def _wait_for_text(output: Path, text: str, times: int) -> None:
    deadline = time.monotonic() + 150
    while output.read_text().count(text) < times:
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_machine_that_never_comes_is_one_line(machines: Machines) -> None:
    began = time.monotonic()
    ((code, output),) = _ended([_start(machines[0], _words(machines[0]))])
    assert code == 2
    assert "error: the 2 processes did not meet" in _error(output)
    assert time.monotonic() - began < TIMEOUT + 20


@pytest.mark.slow
@pytest.mark.parametrize("variable", [{}, {"GLOO_SOCKET_IFNAME": "eth0"}], ids=["unset", "set"])
def test_a_machine_that_knows_itself_as_127_0_1_1_says_which_variable_to_set(
    variable: dict[str, str], tmp_path: Path
) -> None:
    with two_machines(tmp_path, own_address="127.0.1.1") as machines:
        started = [
            m.start(accelerate(m.number, "-m", "launch.train", *_words(m, max_steps=2)), **variable) for m in machines
        ]
        for code, output in _ended(started):
            if variable:
                assert code == 0, output
            else:
                assert code != 0
                assert "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the one between the machines" in _error(output)
