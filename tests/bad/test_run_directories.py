"""Run directories, what is in them, and their checkpoints; and disks that are full or closed."""

import os
import pickle

import pytest
import torch

from tests.bad.door import Bad, all_of, as_anybody, file, full_after
from tests.bad.spoiled import Evil, a_run, cut

CORPUS = file("corpus.txt", b"hello sparse world. " * 1000)
LAST, BEST = "run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt"


def a_begun_run(folder, *changes):
    """A run directory as a stopped run leaves it, and its data."""
    CORPUS(folder)
    run = a_run(folder, *changes)
    (run / "checkpoints" / "last.ckpt").write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    (run / "provenance.jsonl").write_text("{}\n")
    (run / "metrics.csv").write_text("step,train/bits_per_byte\n1,8.0\n")
    return run


def with_run(*steps, changes=()):
    return all_of(lambda folder: a_begun_run(folder, *changes), *steps)


def on_run(line, sentence, *steps, changes=(), **more):
    return Bad(line, sentence, with_run(*steps, changes=changes), **more)


def evil(name):
    return lambda folder: torch.save({"state_dict": Evil()}, folder / name)


def plain_pickle(name):
    return lambda folder: (folder / name).write_bytes(pickle.dumps({"state_dict": Evil()}))


def shortened(name):
    return lambda folder: cut(folder / name)


def flipped(name):
    """One bit in the middle of the file."""

    def prepare(folder):
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / name).write_bytes(raw)

    return prepare


def of_another_model(name):
    def prepare(folder):
        state = torch.load(folder / name)
        state["state_dict"] = {key: x[..., :1] for key, x in state["state_dict"].items()}
        torch.save(state, folder / name)

    return prepare


def no_rights(name, mode=0):
    return lambda folder: (folder / name).chmod(mode)


def folder_instead(name):
    def prepare(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return prepare


def removed(name):
    return lambda folder: (folder / name).unlink()


NEW = "train data=bytes data.path=corpus.txt data.context=64 attention.stride=8 attention.summary=2 logger=csv"
DAMAGED = r"run/checkpoints/\w+.ckpt cannot be read as a checkpoint: "
UNREADABLE = "run/config.yaml cannot be read: "

TABLE = {
    # which run
    "resume: no such folder": Bad("train resume=gone", "gone is not a run directory: there is no such folder"),
    "resume: a file": Bad("train resume=a", "a is not a run directory", file("a")),
    "resume: a folder of something else": Bad("train resume=a", "a is not a run dir.* no config.yaml", file("a/b")),
    "resume: another model": on_run("train resume=run model.depth=9", "model.depth cannot be changed for an existing"),
    "resume: another seed": on_run("train resume=run seed=9", "seed cannot be changed for an existing run: "),
    "eval: no run named": Bad("eval", "run has no value: give it as run=VALUE"),
    "eval: no such checkpoint": on_run("eval run=run checkpoint=middle", "checkpoint must be one of best, last"),
    "eval: no such split": on_run("eval run=run split=train", "split must be one of validation, test, found 'train'"),
    "eval: without a checkpoint": on_run("eval run=run", f"{BEST} does not exist: .*resume=run", removed(BEST)),
    "job: nothing named": Bad("job", "src.job takes one run directory: start runs with python -m src.train"),
    "job: two named": Bad("job a b", "src.job takes one run directory"),
    "job: no such folder": Bad("job gone", "gone is not a run directory"),
    # config.yaml
    "config.yaml cut short": on_run("train resume=run", UNREADABLE, lambda f: cut(f / "run/config.yaml", 0.33)),
    "config.yaml is noise": on_run("train resume=run", UNREADABLE, file("run/config.yaml", b"\xff\x00{[")),
    "config.yaml is a list": on_run("train resume=run", f"{UNREADABLE}it is not a", file("run/config.yaml", "- 1")),
    "config.yaml with a wrong type": on_run("job run", UNREADABLE, file("run/config.yaml", "model: {depth: many}")),
    "config.yaml without rights": on_run(
        "train resume=run", f"{UNREADABLE}Permission denied", no_rights("run/config.yaml"), around=as_anybody
    ),
    "config.yaml made impossible": on_run(
        "train resume=run", "model.dropout must be below 1, found 2.0",
        lambda f: (f / "run/config.yaml").write_text((f / "run/config.yaml").read_text().replace(": 0.2", ": 2.0")),
    ),
    # checkpoints
    "last.ckpt cut short": on_run("train resume=run", "no checkpoint in .* can be read|" + DAMAGED,
                                  shortened(LAST), removed(BEST)),
    "last.ckpt empty": on_run("train resume=run", f"{DAMAGED}it is empty", file(LAST), removed(BEST)),
    "last.ckpt is text": on_run("train resume=run", DAMAGED, file(LAST, "hello"), removed(BEST)),
    "last.ckpt with a flipped bit": on_run("train resume=run", DAMAGED, flipped(LAST), removed(BEST)),
    "last.ckpt runs code": on_run("train resume=run", f"{DAMAGED}.*never run", evil(LAST), removed(BEST)),
    "last.ckpt is a pickle that runs code": on_run("train resume=run", DAMAGED, plain_pickle(LAST), removed(BEST)),
    "last.ckpt holds no weights": on_run(
        "train resume=run", f"{DAMAGED}it holds no weights", lambda f: torch.save({}, f / LAST), removed(BEST)
    ),
    "both checkpoints damaged": on_run("train resume=run", "no checkpoint in run/checkpoints can be read: last.ckpt",
                                       file(LAST), file(BEST)),
    "last.ckpt of another model": on_run("train resume=run", f"{LAST} is of another model than the config",
                                         of_another_model(LAST), left=r"run/wandb_id"),
    "eval: best.ckpt cut short": on_run("eval run=run", DAMAGED, shortened(BEST)),
    "eval: best.ckpt runs code": on_run("eval run=run", f"{DAMAGED}.*never run", evil(BEST)),
    "eval: best.ckpt of another model": on_run("eval run=run", f"{BEST} is of another model", of_another_model(BEST)),
    "sample: best.ckpt without rights": on_run("sample run=run", ".*best.ckpt", no_rights(BEST), around=as_anybody),
    # what else a run holds
    "summary.json cut short": on_run("train resume=run", "run/summary.json cannot be read .*src.eval run=run",
                                     file("run/summary.json", '{"a": ')),
    "summary.json is a list": on_run("train resume=run", "run/summary.json cannot be", file("run/summary.json", "[]")),
    "finished already": on_run("train resume=run", "run is finished at step 12: raise trainer.max_steps to go on",
                               file("run/summary.json", '{"status": "finished", "train/steps": 12}')),
    "metrics.csv is noise": on_run("train resume=run", "run/metrics.csv cannot be read .*move it away",
                                   file("run/metrics.csv", b"\xff\x00,\n\x00")),
    "metrics.csv is a list of other things": on_run("train resume=run", "run/metrics.csv cannot be read",
                                                    file("run/metrics.csv", "name,size\na,1\n")),
    "wandb_id is noise": on_run("train resume=run", "run/wandb_id must hold the letters .*remove it",
                                file("run/wandb_id", b"\xff/../"), changes=("logger.kind=wandb",)),
    "wandb_id is empty": on_run("train resume=run", "run/wandb_id must hold the letters", file("run/wandb_id"),
                                changes=("logger.kind=wandb",)),
    "train.log is a folder": on_run("train resume=run", ".*train.log cannot be used", folder_instead("run/train.log")),
    # rights
    "output folder is a file": Bad(f"{NEW} paths.output_dir=a", "paths.output_dir=a cannot be written: File exists",
                                   all_of(CORPUS, file("a"))),
    "output folder below a file": Bad(f"{NEW} paths.output_dir=a/b", "paths.output_dir=a/b cannot be written: Not a d",
                                      all_of(CORPUS, file("a"))),
    "output folder read-only": Bad(f"{NEW} paths.output_dir=a", "paths.output_dir=a cannot be written: Permission",
                                   all_of(CORPUS, file("a/b"), no_rights("a", 0o555)), around=as_anybody),
    "output folder with too long a name": Bad(f"{NEW} paths.output_dir={'x' * 256}", ".*cannot be .*File name too long",
                                              CORPUS),
    "run directory read-only": on_run("train resume=run", "run cannot be written .Permission denied.: a job needs",
                                      no_rights("run", 0o555), around=as_anybody),
    "job: run directory read-only": on_run("job run", "run cannot be written .Permission denied.: a job needs its run",
                                           no_rights("run", 0o555), around=as_anybody),
    # room
    "no room for a new run": Bad(NEW, "paths.output_dir=runs cannot be written: File too large", CORPUS,
                                 around=full_after(500)),
    "no room to change config.yaml": on_run("train resume=run trainer.max_steps=50",
                                            "there is no room on the disk", around=full_after(500)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_is_refused_in_a_sentence_and_damages_nothing(name, refused):
    refused(TABLE[name], name)
    assert not os.path.exists("ran"), "a checkpoint ran code"  # noqa: PTH110
