"""A key that wandb is given is never written: not in a log, a configuration, a checkpoint or wandb's own files."""

import zipfile

import pytest

from tests.tiny_runs import TINY, command, corpus, only_run

KEY = "0123456789abcdef" * 2 + "feedbeef"
NOBODY = "http://127.0.0.1:9"


def files_with(secret: bytes, folder):
    """Files that hold it, those inside of archives too."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            parts = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    parts += [archive.read(name) for name in archive.namelist()]
            if any(secret in part for part in parts):
                found.append(path.name)
    return found


@pytest.mark.parametrize("mode", [pytest.param("offline", marks=pytest.mark.slow), "online"])
def test_the_key_of_wandb_is_nowhere(mode, tmp_path):
    """Offline, and online where no server answers."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "netrc").write_text(f"machine 127.0.0.1:9\n login user\n password {KEY}\n")
    work = tmp_path / "work"
    work.mkdir()
    few = ("logger.kind=wandb", "trainer.max_steps=2", "logger.sample_bytes=0", "data.workers=0")
    done = command(
        "train", *TINY, *few, f"data.path={corpus(work)}", folder=work, HOME=str(home), NETRC=str(home / "netrc"),
        WANDB_API_KEY=KEY, WANDB_MODE=mode, WANDB_BASE_URL=NOBODY, WANDB_INIT_TIMEOUT="5",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert list((only_run(work) / "wandb").glob("offline-run-*/*.wandb"))
    assert files_with(KEY.encode(), work) == []
    assert files_with(b"bits_per_byte", work)  # the search finds what is there
