"""A Hub that does not answer is noticed at the first attempt, and only where it is needed."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub import serve
from train_loop import FillMask
from train_loop.sharing.locate import require_hub

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)


def test_an_id_fails_at_the_first_attempt(capfd: pytest.CaptureFixture[str]) -> None:
    """The client of the Hub would retry five times, and print each."""
    with pytest.raises(ValueError, match=f"model 'nobody/nothing' is neither .*, and {NOBODY} does not answer"):
        FillMask.from_pretrained("nobody/nothing")
    assert "Retrying" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["README.md", "no/such/folder", "./missing", "texts/*.jsonl", "user/cached"])
def test_a_path_and_what_is_cached_need_no_hub(name: str, tmp_path: Path) -> None:
    (tmp_path / "datasets--user--cached").mkdir()
    require_hub(name, "dataset")


def test_without_network_by_choice_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    require_hub("nobody/nothing")


def test_a_hub_that_answers_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        require_hub("nobody/nothing")
        assert hub.requests == ["HEAD /"]
