"""A run that shares its model: the real client against a stand-in Hub on loopback."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.cards import metadata_errors
from tests.hub import TOKEN, Hub
from tests.launch.conftest import Train
from tests.launchers import ROOT, launcher
from tests.pushing import NAME, REPOSITORY, errors, impatient, python, train_words
from train_loop.checkpoint import verify


@pytest.fixture
def sharing(tmp_path: Path, model_folder: Path, eli5_folder: Path) -> list[str]:
    """A run of four updates that pushes."""
    words = train_words(tmp_path / "run", model_folder, eli5_folder)
    return ["launch.train", *words, "--push_to_hub", "--hub_model_id", NAME]


_FILL = """
import sys
from transformers import pipeline
from train_loop import FillMask
name = sys.argv[1]
(fill,) = FillMask.from_pretrained(name)(f"the cat <mask> on a mat", top_k=1)
assert pipeline("fill-mask", model=name, device="cpu")("the cat <mask> on a mat", top_k=1)[0]["token"] == fill["token"]
print(fill["token_str"])
"""


def test_a_run_pushes_its_model_and_anyone_fills_masks_with_it(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    done = python([*sharing, "--hub_private_repo", "true", "--hub_license", "apache-2.0"], hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"pushed     {hub.endpoint}/{NAME}/commit/" in done.stdout
    assert hub.private == {REPOSITORY}
    (commit,) = hub.commits
    assert set(commit[2]) == {path.name for path in (tmp_path / "run" / "model").iterdir()}
    folder = hub.repositories[REPOSITORY]
    for path in (tmp_path / "run" / "model").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    card = (folder / "README.md").read_text()
    assert metadata_errors(card) == []
    assert ModelCard(card).data.license == "apache-2.0"
    assert f'model="{NAME}"' in card

    filled = python(["-c", _FILL, NAME], hub, tmp_path)
    assert filled.returncode == 0, filled.stderr
    assert any(
        line.startswith(f"GET /{NAME}/resolve/") and line.endswith("/model.safetensors") for line in hub.requests
    )


def test_the_token_is_in_no_file_and_no_output(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    """The run pushes at each save, is refused sometimes, and fails in the end."""
    hub.refusals["/commit/"] = [503] + [403] * 100
    done = python([*sharing, "--hub_strategy", "every_save", "--report_to", "tensorboard"], hub, tmp_path)
    assert done.returncode == 3
    assert f"Bearer {TOKEN}" in hub.tokens  # it did travel, and where it belongs
    assert TOKEN not in done.stdout + done.stderr + "".join(hub.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "state.json", "README.md"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_each_save_is_pushed_while_training_goes_on(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    """The Hub does not answer the first push until its checkpoint is deleted, two saves later."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    hub.before["/preupload/"] = lambda: _wait_until(lambda: not checkpoint.exists())
    words = ["--hub_strategy", "every_save", "--save_total_limit", "1", "--max_steps", "6"]
    done = python([*sharing, *words], hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not pushed" not in done.stderr
    summaries = [summary for _, summary, _ in hub.commits]
    assert summaries[0] == "Model after step-00000002"
    for _, _, paths in hub.commits:
        assert not {"optimizer.safetensors", "state.json", "manifest.json"} & set(paths)
    _assert_holds(hub.repositories[REPOSITORY], tmp_path / "run" / "model")
    assert not (tmp_path / "run" / "hub").exists()


def test_a_save_that_cannot_be_pushed_harms_nothing(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    hub.refusals["/commit/"] = [403]
    done = python([*sharing, "--hub_strategy", "every_save"], hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step-00000002 was not pushed (the Hub answered 403 Forbidden); training goes on" in done.stderr
    _assert_holds(hub.repositories[REPOSITORY], tmp_path / "run" / "model")


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _assert_holds(repository: Path, model: Path) -> None:
    for path in model.iterdir():
        assert (repository / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_the_code_of_a_push_that_failed_comes_through_two_processes(
    hub: Hub, tmp_path: Path, sharing: list[str]
) -> None:
    hub.refusals["/commit/"] = [403]
    done = python(["launch.mlm", "train", "--num_processes", "2", *sharing[1:]], hub, tmp_path)
    assert done.returncode == 3, done.stderr
    assert len(errors(done)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_last_push_at_once(
    hub: Hub, tmp_path: Path, sharing: list[str], number: signal.Signals
) -> None:
    code, stderr = _signalled_while_it_uploads(sharing, hub, tmp_path, number)
    assert code == 128 + number
    command = f"mlm publish --model {tmp_path / 'run' / 'model'} --repo_id {NAME}"
    assert (
        f"not pushed, {number.name} came first; {tmp_path / 'run' / 'model'} is complete; push it by: {command}\n"
        in stderr
    )
    again = python(["launch.mlm", *command.split()[1:]], hub, tmp_path)
    assert again.returncode == 0, again.stderr
    _assert_holds(hub.repositories[REPOSITORY], tmp_path / "run" / "model")


def test_a_stop_does_not_wait_for_a_push(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    words = [*sharing, "--hub_strategy", "every_save", "--max_steps", "1000000"]
    code, stderr = _signalled_while_it_uploads(words, hub, tmp_path, signal.SIGTERM)
    assert code == 143
    assert "Traceback" not in stderr
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    verify(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    assert not (tmp_path / "run" / "hub").exists()


def _signalled_while_it_uploads(words: list[str], hub: Hub, tmp_path: Path, number: signal.Signals) -> tuple[int, str]:
    """Exit code and messages of a run that gets a signal while the Hub takes its files and does not answer."""
    uploads, goes_on = threading.Event(), threading.Event()
    hub.before["PUT /lfs/"] = lambda: (uploads.set(), goes_on.wait(60))
    command = [sys.executable, "-m", *words]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=hub.environment(tmp_path), stdout=stderr, stderr=stderr)
        try:
            assert uploads.wait(60)
            process.send_signal(number)
            code = process.wait(timeout=20)
        finally:
            process.kill()
            goes_on.set()
    return code, (tmp_path / "stderr").read_text()


@pytest.mark.slow
def test_on_two_processes_one_talks_to_the_hub(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    done = _on_two_processes(sharing, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(hub.commits) == hub.count("/api/repos/create") == 1
    _assert_holds(hub.repositories[REPOSITORY], tmp_path / "run" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("at_the_end", [False, True])
def test_on_two_processes_a_refusal_ends_both(hub: Hub, tmp_path: Path, sharing: list[str], at_the_end: bool) -> None:
    hub.refusals["/commit/" if at_the_end else "/api/repos/create"] = [401]
    done = _on_two_processes(sharing, hub, tmp_path)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("error: ") == 1, done.stderr
    assert ("error: not pushed: " if at_the_end else "error: push_to_hub with") in done.stderr
    assert (tmp_path / "run" / "model" / "README.md").exists() == at_the_end


def _on_two_processes(words: list[str], hub: Hub, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = hub.environment(tmp_path) | {"ACCELERATE_USE_CPU": "true"}
    command = [*launcher("torchrun", 2), *words[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_refused_push_loses_nothing_and_says_how_to_push_again(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    hub.refusals["/commit/"] = [403]
    done = python(sharing, hub, tmp_path)
    assert done.returncode == 3
    (error,) = errors(done)
    assert "not pushed: the Hub answered 403 Forbidden; " in error
    command = error.partition("push it by: ")[2]
    assert command == f"mlm publish --model {tmp_path / 'run' / 'model'} --repo_id {NAME}"
    assert "perplexity" in done.stdout

    again = python(["launch.mlm", *command.split()[1:]], hub, tmp_path)
    assert again.returncode == 0, again.stderr
    assert (hub.repositories[REPOSITORY] / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no token", "there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN"),
        ("may only read", "the Hub answered 403 Forbidden"),
        ("nobody there", "the Hub could not be reached"),
        pytest.param("no such licence", "the Hub knows no licence 'my-own'", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_could_not_push_does_not_begin(
    hub: Hub, tmp_path: Path, sharing: list[str], case: str, message: str
) -> None:
    if case == "may only read":
        (tmp_path / "there").mkdir()
        hub.repositories[REPOSITORY] = tmp_path / "there"
        hub.read_only.add(REPOSITORY)
    if case == "nobody there":
        hub.endpoint = "http://127.0.0.1:9"
    words = [*sharing, "--hub_license", "my-own" if case == "no such licence" else "mit"]
    done = python(words, hub, tmp_path, None if case == "no token" else TOKEN)
    assert done.returncode == 2
    (error,) = errors(done)
    assert f"push_to_hub with hub_model_id='{NAME}': {message}" in error
    assert not (tmp_path / "run").exists()


def test_a_run_whose_hub_never_answers_does_not_begin(hub: Hub, tmp_path: Path, sharing: list[str]) -> None:
    hub.silent.add("")
    done = impatient(sharing, hub, tmp_path)
    assert done.returncode == 2, done.stderr
    (error,) = errors(done)
    assert error.endswith(f"push_to_hub with hub_model_id='{NAME}': the Hub did not answer in time (ReadTimeout)")
    assert not (tmp_path / "run").exists()


def test_a_run_says_where_to_push_to(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", "--push_to_hub")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: push_to_hub does not say where to: add --hub_model_id user/name\n"


def test_a_dry_run_asks_nobody(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError):  # no metrics
        train(tmp_path / "run", "--push_to_hub", "--hub_model_id", NAME, "--dry_run")
    assert f"hub_model_id: {NAME}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_recipe_in_the_card_makes_the_same_model(finished_run: Path, tmp_path: Path) -> None:
    card = (finished_run / "model" / "README.md").read_text()
    recipe = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    given = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert (recipe["dataset"], Path(recipe["dataset"]).name) == (Path(given["dataset"]).name, recipe["dataset"])
    recipe |= {name: given[name] for name in ("dataset", "model_name_or_path")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--recipe", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    done = python(["launch.train", *words, "--cache_dir", given["cache_dir"], "--cpu_threads", "1"], None, tmp_path)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert made == (finished_run / "model" / "model.safetensors").read_bytes()
