"""What the studies share: jobs composed from conf/, and archives that hold results and nothing else."""

import io
import tarfile

import pytest

from scripts.paper.study import grid, pack, progress, run_folders, runnable, small_files, unpack
from src.config.words import quoted
from src.errors import UserError
from src.reporting.load import load
from src.sweep.plan import Job
from tests.reporting.made import every_state


def tar_of(path, **files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_grid_is_read_from_conf_and_may_be_narrowed():
    assert grid("table2")["attention"] == ["dense", "fixed", "strided"]
    assert grid("table2", ["attention=fixed,dense", "model.depth=2"])["attention"] == ["fixed", "dense"]
    rates = grid("lr")["optimizer.muon_learning_rate"]
    assert sorted(float(rate) / 0.02 for rate in rates) == pytest.approx([0.25, 0.5, 1, 1.5])


@pytest.mark.parametrize("name", ["a b,c=[d].txt", "it's here", "back\\slash", "a\\'b", "end\\"])
def test_any_path_reaches_the_configuration_as_it_is(name, tmp_path):
    (tmp_path / name).write_bytes(b"text")
    words = ["experiment=quickstart", "data=bytes", f"data.path={quoted(tmp_path / name)}"]
    assert runnable(words).data.path == str(tmp_path / name)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("model.depht=3", "model.depht is not a key"), ("model.depth=0", "model.depth must be at least 1"),
     ("attention=fixd", "attention=fixd is no choice")],
)  # fmt: skip
def test_a_wrong_word_is_refused_in_a_sentence(word, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        runnable(["experiment=quickstart", word])


def test_progress_says_what_is_left(tmp_path):
    job = {number: Job(number, f"run{number}", {}, runnable(["experiment=quickstart"])) for number in range(3)}
    job[0].state, job[1].state = "finished", "stopped"
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "metrics.csv").write_text("step,train/bits_per_byte\n10,5.0\n20,4.0\n")
    said = progress(list(job.values()), tmp_path)
    assert (
        said == "1 of 3 runs are done; left: run1 (stopped, step 20 of 700), run2 (waiting); the same command goes on"
    )
    assert progress([job[0]], tmp_path) == "1 of 1 runs are done"


def test_an_archive_has_what_a_report_needs_and_no_checkpoints(tmp_path):
    folder = every_state(tmp_path / "here" / "study")
    (folder / "a-dense" / "checkpoints").mkdir()
    (folder / "a-dense" / "checkpoints" / "last.ckpt").write_bytes(b"large")
    size = pack([folder, tmp_path / "nowhere"], tmp_path / "new" / "p.tar.gz")
    assert size == (tmp_path / "new" / "p.tar.gz").stat().st_size
    assert unpack(tmp_path / "new" / "p.tar.gz", tmp_path / "there") == [tmp_path / "there" / "study"]
    there = tmp_path / "there" / "study"
    assert not list(there.rglob("*.ckpt"))
    assert [path.name for path in (there / "a-dense" / "samples").iterdir()] == ["step-0000020.txt"]  # the newest
    assert [run.name for run in run_folders(there)] == [run.name for run in run_folders(folder)]
    ours, theirs = (load(run_folders(place)).runs for place in (folder, there))
    assert [(run.val, run.summary, run.config) for run in ours] == [
        (run.val, run.summary, run.config) for run in theirs
    ]


def test_runs_that_are_there_stay_as_they_are(tmp_path):
    folder = every_state(tmp_path / "here" / "study")
    pack([folder], tmp_path / "p.tar.gz")
    mine = tmp_path / "there" / "study" / "a-dense"
    mine.mkdir(parents=True)
    (mine / "config.yaml").write_text("mine")
    unpack(tmp_path / "p.tar.gz", tmp_path / "there")
    assert [(file.name, file.read_text()) for file in mine.iterdir()] == [("config.yaml", "mine")]
    assert (mine.parent / "a-fixed" / "metrics.csv").is_file()
    assert (mine.parent / "sweep.json").is_file()


@pytest.mark.parametrize("name", ["..__escape__config.yaml", "study__..__..__config.yaml", "study__run__evil.py", "x"])
def test_other_members_are_left_alone(tmp_path, name):
    archive = tar_of(tmp_path / "p.tar.gz", **{name: b"x", "study__run__config.yaml": b"a: 1\n"})
    unpack(archive, tmp_path / "a" / "b")
    assert [path for path in (tmp_path / "a").rglob("*") if path.is_file()] == [tmp_path / "a/b/study/run/config.yaml"]


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_no_archive_is_told_in_a_sentence(tmp_path, content):
    archive = tmp_path / "p.tar.gz"
    if content is None:
        tar_of(archive, other=b"x")
    else:
        archive.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.tar\.gz"):
        unpack(archive, tmp_path / "there")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        unpack(tmp_path / "none.tar.gz", tmp_path)


def test_nothing_to_pack(tmp_path):
    with pytest.raises(UserError, match="nothing to pack"):
        pack([tmp_path], tmp_path / "p.tar.gz")
    assert small_files(tmp_path) == []
