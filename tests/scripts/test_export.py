"""An export is the run's network, without the machine that it was trained on."""

import json

import pytest
import torch

from scripts.export import main
from src.library import UserError, generate, load_model
from tests.in_process import new_run, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    found = new_run(tmp_path_factory.mktemp("export"), "trainer.accelerator=cpu", "trainer.max_steps=2")
    train(found)
    return found.path


def test_an_export_computes_what_the_run_computes(run, tmp_path, capsys):
    folder = tmp_path / "model"
    assert main([f"run={run}", f"folder={folder}"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    x = torch.randint(256, (2, 50))
    assert torch.equal(load_model(folder)(x), load_model(run)(x))
    assert "bits_per_byte" in (folder / "README.md").read_text()


def test_a_network_of_shared_keys_is_read_back(tmp_path):
    run = new_run(tmp_path, "trainer.accelerator=cpu", "trainer.max_steps=2", "model.kv_heads=1")
    train(run)
    assert main([f"run={run.path}", f"folder={tmp_path / 'model'}"]) == 0
    model, x = load_model(tmp_path / "model"), torch.randint(256, (2, 50))
    assert {block.attention.heads for block in model.blocks} == {(2, 1, 1)}
    assert torch.equal(model(x), load_model(run.path)(x))
    assert generate(model, x[:, :9].to(torch.uint8), 3).shape == (2, 12)


def test_nothing_of_the_machine_goes_along(run, tmp_path):
    main([f"run={run}", f"folder={tmp_path / 'model'}"])
    content = (tmp_path / "model" / "config.json").read_text() + (tmp_path / "model" / "README.md").read_text()
    assert str(run.parent) not in content
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["logger"] == {"kind": "none"} and config["data"]["path"] is None


def test_written_anew_it_replaces_an_export_and_nothing_else(run, tmp_path, capsys):
    assert [main([f"run={run}", f"folder={tmp_path / 'model'}"]) for _ in range(2)] == [0, 0]
    (tmp_path / "mine").mkdir()
    assert main([f"run={run}", f"folder={tmp_path / 'mine'}"]) == 2
    assert "folder must be new" in capsys.readouterr().err


def test_a_damaged_export_is_refused_in_a_sentence(run, tmp_path):
    folder = tmp_path / "model"
    main([f"run={run}", f"folder={folder}"])
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["checkpoint=best"], "run has no value"), (["run=nowhere"], "nowhere is not a run directory"),
     (["run=x", "to=y"], "to is no key of scripts.export")],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
