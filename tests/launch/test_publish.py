"""The command that pushes a model: the real client against a stand-in Hub on loopback."""

from pathlib import Path

import pytest

from tests.hub import TOKEN, Hub
from tests.pushing import NAME, REPOSITORY, errors, impatient, publish, python


def test_a_busy_hub_is_asked_again(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    """At every request that a push makes; a 502 does not say when to come back."""
    parts = ["/api/repos/create", "/auth-check", "/validate-yaml", "/preupload/", "/info/lfs/", "PUT /lfs/", "/commit/"]
    hub.refusals |= {part: [429, 503] for part in parts} | {"/api/repos/create": [502, 503]}
    done = publish(hub, tmp_path, finished_run / "model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.endpoint}/{NAME}/commit/")
    assert not any(hub.refusals.values())
    assert "the Hub answered 502 Bad Gateway; trying again in 1 s (1 of 5)" in done.stderr
    assert "the Hub answered 429 Too Many Requests; trying again in 0 s (3 of 5)" in done.stderr
    assert len(hub.commits) == 1


def test_a_login_is_as_good_as_the_environment(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    login = tmp_path / "hf" / "token"
    login.parent.mkdir()
    login.write_text(TOKEN)
    command = ["launch.publish", "--model", str(finished_run / "model"), "--repo_id", NAME]
    done = python(command, hub, tmp_path, token=None)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    files = [*tmp_path.rglob("*"), *finished_run.rglob("*")]
    assert [path for path in files if path.is_file() and TOKEN.encode() in path.read_bytes()] == [login]


def test_a_pull_request_or_a_branch(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "there").mkdir()
    hub.repositories[REPOSITORY] = tmp_path / "there"
    hub.read_only.add(REPOSITORY)  # which is when a pull request is needed
    done = publish(hub, tmp_path, finished_run / "model", "--create_pr")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.endpoint}/{NAME}/discussions/1\n"
    assert (hub.repositories[f"{REPOSITORY}@refs/pr/1"] / "model.safetensors").is_file()

    hub.read_only.clear()
    done = publish(hub, tmp_path, finished_run / "model", "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert (hub.repositories[f"{REPOSITORY}@v2"] / "model.safetensors").is_file()
    assert list((tmp_path / "there").iterdir()) == []  # main is as it was


def test_a_second_push_of_the_same_makes_no_commit(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    """The folder of a run is its model's."""
    for model in (finished_run / "model", finished_run):
        assert publish(hub, tmp_path, model).returncode == 0
    assert len(hub.commits) == 1


@pytest.mark.parametrize("part", ["/api/repos/create", "/commit/"])
def test_a_hub_that_never_answers_ends_a_push(hub: Hub, tmp_path: Path, finished_run: Path, part: str) -> None:
    hub.silent.add(part)
    model = finished_run / "model"
    done = impatient(["launch.publish", "--model", str(model), "--repo_id", NAME], hub, tmp_path)
    assert done.returncode == 3, done.stderr
    assert "the Hub did not answer in time (ReadTimeout); trying again in 1 s (1 of 5)" in done.stderr
    (error,) = errors(done)
    assert f"the Hub did not answer in time (ReadTimeout); {model} is as it was; push it again by: " in error
    assert hub.count(part) == 6


@pytest.mark.parametrize("words", [[], ["--revision", "v2"], ["--create_pr"]])
def test_a_commit_whose_answer_was_lost_is_found(
    hub: Hub, tmp_path: Path, finished_run: Path, words: list[str]
) -> None:
    hub.pull_requests.append("Upload masked language model")  # an older one
    hub.lost.add("/commit/")
    done = publish(hub, tmp_path, finished_run / "model", *words)
    assert done.returncode == 0, done.stderr
    assert "the Hub could not be reached (RemoteProtocolError); trying again in 1 s (1 of 5)" in done.stderr
    address = f"{hub.endpoint}/{NAME}/{'discussions/2' if words == ['--create_pr'] else 'commit/'}"
    assert done.stdout.startswith(address)
    assert not hub.lost
    assert len(hub.commits) == 1


def test_a_checkpoint_is_pushed_without_what_only_a_run_needs(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "step-00000002"
    files = {path.name for path in checkpoint.iterdir()}
    done = publish(hub, tmp_path, checkpoint)
    assert done.returncode == 0, done.stderr
    assert set(hub.commits[0][2]) == files - {"optimizer.safetensors", "state.json", "manifest.json"} | {"README.md"}
    assert {path.name for path in checkpoint.iterdir()} == files  # its manifest still tells the truth
    assert "2 updates" in (hub.repositories[REPOSITORY] / "README.md").read_text()


def test_a_card_of_ones_own_is_left_alone(hub: Hub, tmp_path: Path, model_folder: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert publish(hub, tmp_path, folder).returncode == 0
    assert (hub.repositories[REPOSITORY] / "README.md").read_text() == "---\nlicense: mit\n---\nmine\n"


def test_what_is_wrong_before_a_push_is_one_line(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    model = finished_run / "model"
    for words, token, code, message in (
        (["--model", str(tmp_path)], TOKEN, 2, "holds no config.json"),
        (["--repo_id", "tiny"], TOKEN, 2, "repo_id='tiny' must be user/name"),
        (["--create_pr", "--revision", "v2"], TOKEN, 2, "give one"),
        ([], None, 3, "there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN"),
        ([], "hf_wrong", 3, "the Hub answered 401 Unauthorized"),
        (["--repo_id", "others/tiny"], TOKEN, 3, "403 Forbidden: You don't have the rights"),
    ):
        command = ["launch.publish", "--model", str(model), "--repo_id", NAME, *words]
        done = python(command, hub, tmp_path, token)
        assert done.returncode == code, done.stderr
        (error,) = errors(done)
        assert message in error
    assert hub.commits == []


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "there").mkdir()
    hub.repositories[REPOSITORY] = tmp_path / "there"
    done = publish(hub, tmp_path, finished_run / "model", "--private")
    assert done.returncode == 3
    assert f"{NAME} exists already and is public" in errors(done)[0]
    assert hub.commits == []
