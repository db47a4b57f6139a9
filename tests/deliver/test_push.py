"""A folder goes to the hub only when it is proven, and is listed before."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveal.cli import app
from foveal.deliver.export import plan_push, push
from foveal.errors import RunError


class FakeHub:
    """Notes what would be sent."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.error = error

    def create_repo(self, repository: str, **options: object) -> str:
        self.calls.append(("create", {"repository": repository, **options}))
        return f"https://hub/{repository}"

    def upload_folder(self, **options: object) -> None:
        if self.error:
            raise self.error
        self.calls.append(("upload", options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "mine"
    out.mkdir()
    for name in ("README.md", "proof.json", "config.json", "model.safetensors"):
        (out / name).write_text(name)
    (out / "proof.json").write_text('{"problems": []}')
    return out


def test_a_new_repository_is_private_and_gets_every_file(folder):
    hub = FakeHub()
    assert push(folder, "me/mine", api=hub) == "https://hub/me/mine"
    (_, made), (_, sent) = hub.calls
    assert made == {"repository": "me/mine", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "me/mine"
    assert sent["allow_patterns"] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "proof.json",
    ]


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(folder, monkeypatch):
    monkeypatch.setattr("foveal.deliver.export.push", lambda *_, **__: pytest.fail("sent"))
    result = CliRunner().invoke(app, ["push", str(folder), "me/mine", "--dry-run"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["9", "README.md"]
    assert lines[-2].split() == ["53", "bytes", "in", "4", "files"]
    assert lines[-1] == "dry run, nothing sent to me/mine"


def test_an_unproven_folder_is_sent_on_demand_only(folder):
    marked = folder.rename(folder.with_name("mine.unverified"))
    with pytest.raises(RunError, match="not proven to be the model that was trained"):
        plan_push(marked)
    assert len(plan_push(marked, unproven=True)) == 4


def test_a_folder_without_a_proof_is_unproven(folder):
    (folder / "proof.json").unlink()
    with pytest.raises(RunError, match="not proven"):
        plan_push(folder)


def test_a_folder_whose_proof_failed_is_unproven_under_any_name(folder):
    (folder / "proof.json").write_text('{"problems": ["3 of 8 answers differ"]}')
    with pytest.raises(RunError, match="not proven"):
        plan_push(folder)


def test_a_pickle_is_never_sent(folder):
    (folder / "extra").mkdir()
    (folder / "extra" / "model.bin").write_bytes(b"would run")
    with pytest.raises(RunError, match=r"model.bin may run code when opened; remove it"):
        plan_push(folder)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a folder that `foveal export` wrote"):
        plan_push(tmp_path)


def test_a_refusal_of_the_hub_is_one_line(folder):
    from huggingface_hub.errors import LocalTokenNotFoundError

    hub = FakeHub(LocalTokenNotFoundError("Token is required,\nbut no token found"))
    with pytest.raises(RunError, match=r"^cannot push to me/mine: Token is required, but no"):
        push(folder, "me/mine", api=hub)
