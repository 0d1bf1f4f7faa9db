"""One command for all measurements: what fails or takes too long does not keep the others from running."""

from scripts.bench import all as bench_all


def test_every_measurement_is_a_script_of_ours():
    for module, *_ in bench_all.BENCHES.values():
        assert (bench_all.Path(*module.split(".")).with_suffix(".py")).is_file()


def test_failures_and_lack_of_time_are_reported_and_the_rest_runs(tmp_path, monkeypatch, capsys):
    benches = {
        "fails": ("timeit", "-n", "1", "raise ValueError"),
        "works": ("timeit", "-n", "1", "print('a figure')"),
        "lasts": ("timeit", "-n", "1", "import time; time.sleep(60)"),
        "late": ("timeit", "-n", "1", "pass"),
    }
    monkeypatch.setattr(bench_all, "BENCHES", benches)
    assert bench_all.main(["--output", str(tmp_path / "new"), "--minutes", "0.08"]) == 1
    said = capsys.readouterr().out
    assert "a figure" in said and "a figure" in (tmp_path / "new" / "works.txt").read_text()
    ends = {line.split()[0]: line.split(" s  ")[1] for line in said.splitlines() if " s  " in line}
    assert ends["fails"].startswith("failed with exit code 1") and ends["works"] == "done"
    assert ends["lasts"].startswith("cut off") and ends["late"] == "left out: the time is up"


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert bench_all.main(["--output", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be made" in capsys.readouterr().err
