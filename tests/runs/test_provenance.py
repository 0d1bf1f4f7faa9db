"""What a run notes of the data it was trained on."""

from src.runs.provenance import append_provenance, data_changes


def test_data_that_changed_between_two_processes_of_a_run_is_told(tmp_path):
    file = tmp_path / "provenance.jsonl"
    before = {"label": "a.txt (9 bytes)", "path": "/here/a.txt", "size": 9, "sha256": "ab"}
    assert data_changes(file, before) == []
    append_provenance(file, before)
    assert data_changes(file, before | {"path": "/there/a.txt"}) == []
    offsets = {"offsets_sha256": "12"}
    append_provenance(file, before | offsets)
    assert data_changes(file, before | {"offsets_sha256": "34"}) == ["offsets_sha256 was 12, is 34"]
    assert data_changes(file, before | {"size": 8, "sha256": "cd"}) == ["size was 9, is 8", "sha256 was ab, is cd"]


def test_runs_of_before_have_no_changes(tmp_path):
    file = tmp_path / "provenance.jsonl"
    for line in ('{"time": "then"}', "no JSON", "[]", ""):
        file.write_text(line)
        assert data_changes(file, {"size": 8}) == []
