"""Data files and archives: missing, closed, damaged, hostile."""

import gzip
import io
import lzma
import os
import tarfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from scripts import prepare_imagenet64
from src.data.cifar10 import Cifar10
from src.data.enwik8 import Enwik8
from tests.bad.door import PROGRAMS, Bad, all_of, as_anybody, file, full_after, patched
from tests.data.picture_files import batch, cifar, planes, png, tar
from tests.data.test_enwik8 import CONTENT, Small

PROGRAMS["prepare"] = prepare_imagenet64.main
OWN = "train data=bytes data.path=corpus.txt data.context=64 attention.stride=8 attention.summary=2 logger=csv"
OFFSETS = "data.document_offsets=offsets"
ENWIK8 = (
    "train experiment=enwik8 data.context=64 attention=dense logger=csv paths.data_dir=data trainer.accelerator=cpu"
)
CIFAR = "train experiment=cifar10 logger=csv paths.data_dir=data trainer.accelerator=cpu data.allow_partial=true"
PREPARE = "prepare . --allow-partial"
PART = "data/cifar-10-python-part.tar.gz"
small = patched((Enwik8, "SIZE", Small.SIZE), (Enwik8, "MD5", Small.MD5), (Enwik8, "URL", "http://127.0.0.1:9/x.zip"),
                (Cifar10, "URL", "http://127.0.0.1:9/x.tar.gz"))  # fmt: skip


def zipped(members, **changes):
    """A zip archive of (name, content) as it comes, whatever the names are."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            item = zipfile.ZipInfo(name)
            item.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(item, key, value)
            archive.writestr(item, content)
    return packed.getvalue()


def enwik8(name, content, sentence, **more):
    return Bad(ENWIK8, sentence, file(f"data/{name}", content), around=more.pop("around", small), **more)


def own(sentence, prepare, **more):
    return Bad(OWN, sentence, prepare, **more)


def documents(key, sentence, prepare=lambda folder: None, **more):
    return Bad(f"{OWN} {key}", sentence, all_of(file("corpus.txt", b"hello, yo" * 111), prepare), **more)


def link(name, target):
    def prepare(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return prepare


def special(name, kind, linkname=""):
    """The parts of CIFAR-10 in an archive, one of them no plain file."""

    def prepare(folder):
        path = folder / PART
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w:gz") as archive:
            for key, raw in cifar().items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{key}")
                if key == name:
                    member.type, member.linkname = kind, linkname
                else:
                    member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))

    return prepare


def cifar_tar(files, sentence):
    return Bad(CIFAR, sentence, lambda folder: tar(folder / PART, files, "w:gz"), around=small)


def imagenet_tar(kind, linkname="/etc/passwd"):
    def prepare(folder):
        tar(folder / "valid_64x64.tar", {"0.png": png()})
        with tarfile.open(folder / "train_64x64.tar", "w") as archive:
            member = tarfile.TarInfo("train_64x64/0.png")
            member.type, member.linkname = kind, linkname
            archive.addfile(member)

    return prepare


def npz(array):
    def prepare(folder):
        for name in ("val_data", *(f"train_data_batch_{i}" for i in range(1, 11))):
            np.savez(folder / f"{name}.npz", data=array, labels=np.zeros(1))

    return prepare


def both(one, other):
    def entered(folder):
        stack = ExitStack()
        stack.enter_context(one(folder))
        stack.enter_context(other(folder))
        return stack

    return entered


GONE = link("data/cifar-10-batches-py", "gone")
SUM = r"data/enwik8\.md5\.json"
WHOLE = zipped([("enwik8", CONTENT)])
BOMB = lambda: zipped([("enwik8", CONTENT + bytes(50_000_000))])  # noqa: E731
EVIL = zipped([("../../../evil", b"evil")])
SHORTER = "is not the whole of enwik8: expected 50,000 bytes"
TRAVERSAL = f"{SHORTER}, found 4"

TABLE = {
    # a file of one's own
    "missing": own("data.path must be an existing file, found corpus.txt", lambda f: None),
    "a folder": own("data.path must be an existing file", lambda f: (f / "corpus.txt").mkdir()),
    "a pipe": own("data.path must be an existing file", lambda f: os.mkfifo(f / "corpus.txt")),
    "a link to nowhere": own("data.path must be an existing file", link("corpus.txt", "gone")),
    "a link to itself": own("data.path must be an existing file", link("corpus.txt", "corpus.txt")),
    "a device": Bad(OWN.replace("corpus.txt", "/dev/zero"), "data.path must be an existing file, found /dev/zero"),
    "empty": own("data.path must have at least 20 bytes, found 0", file("corpus.txt")),
    "a few bytes": own("data.path must have at least 20 bytes, found 19", file("corpus.txt", b"x" * 19)),
    "shorter than the context": own("data.context must be at most", file("corpus.txt", b"x" * 100)),
    "without rights": own("data.path cannot be read .Permission denied.", file("corpus.txt", "x" * 999, 0),
                          around=as_anybody),
    # its documents
    "a separator that is nowhere": documents("data.documents=;;", "data.documents must stand somewhere in "),
    "offsets as a separator": documents("data.documents=o.npy", ".* file of .* is data.document_offsets=FILE"),
    "no offsets": documents(OFFSETS, "data.document_offsets must be an existing file, found offsets"),
    "offsets in a folder": documents(
        OFFSETS, "data.document_offsets must be an existing file", lambda f: (f / "offsets").mkdir()
    ),
    "offsets without rights": documents(
        OFFSETS, "data.document_offsets cannot be read .Permission denied.", file("offsets", "0", 0), around=as_anybody
    ),
    "offsets of words": documents(OFFSETS, "data.document_offsets must be .*found 'x'", file("offsets", "0 x")),
    "offsets that fall": documents(OFFSETS, "data.document_offsets must ascend, found 9 ", file("offsets", "0 9 8")),
    "offsets behind the end": documents(
        OFFSETS, "data.document_offsets must be .*below the 999 bytes of the text, found 999", file("offsets", "0 999")
    ),
    "offsets in an archive": documents(
        f"{OFFSETS}.npy", "data.document_offsets must be a .npy file", file("offsets.npy", zipped([("a", b"a")]))
    ),
    "too long a name": Bad(OWN.replace("corpus.txt", "x" * 300), ".*File name too long"),
    # enwik8
    "enwik8: cut short": enwik8("enwik8", CONTENT[:-1], f".*{SHORTER}, found 49,999", left=SUM),
    "enwik8: one byte wrong": enwik8("enwik8", CONTENT[:-1] + b"!", ".*is not enwik8: expected md5 .*", left=SUM),
    "enwik8: without rights": Bad(ENWIK8, ".*enwik8/enwik8 cannot be", file("data/enwik8/enwik8", CONTENT, 0),
                                  around=both(small, as_anybody)),
    "enwik8: its folder is a file": enwik8("enwik8", b"x", f".*{SHORTER}, found 1", left=SUM),
    "zip: cut short": enwik8("enwik8.zip", WHOLE[:-100], ".*cannot be unpacked .*damaged or cut short; remove it"),
    "zip: empty": enwik8("enwik8.zip", b"", ".*enwik8.zip cannot be unpacked"),
    "zip: a web page": enwik8("enwik8.zip", "<html>log in</html>", ".*enwik8.zip cannot be unpacked .*remove it"),
    "zip: a byte changed": enwik8("enwik8.zip", WHOLE[:200] + b"!!!!" + WHOLE[204:], ".*cannot be unpacked .*damaged"),
    "zip: of two files": enwik8("enwik8.zip", zipped([("enwik8", CONTENT), ("b", b"")]), ".*exactly one file, found 2"),
    "zip: of no file": enwik8("enwik8.zip", zipped([("enwik8/", b"")]), ".*must hold exactly one file, found 0"),
    "zip: path out of the folder": enwik8("enwik8.zip", EVIL, f".*{TRAVERSAL}"),
    "zip: absolute path": enwik8("enwik8.zip", zipped([("/tmp/evil-enwik8", b"evil")]), f".*{TRAVERSAL}"),
    "zip: a link": enwik8("enwik8.zip", zipped([("enwik8", b"/etc")], external_attr=0o120777 << 16), f".*{TRAVERSAL}"),
    "zip: a bomb": enwik8("enwik8.zip", BOMB, ".*expected 50,000 bytes, found [0-9,]+ or more"),
    "zip: with a password": enwik8("enwik8.zip", WHOLE.replace(b"PK\1\2\24\3\24\0\0", b"PK\1\2\24\3\24\0\1")
                                   .replace(b"PK\3\4\24\0\0", b"PK\3\4\24\0\1"), ".*enwik8.zip cannot be unpacked"),
    "gz: cut short": enwik8("enwik8.gz", gzip.compress(CONTENT)[:-9], ".*enwik8.gz cannot be unpacked .*remove it"),
    "gz: wrong sum": enwik8("enwik8.gz", gzip.compress(CONTENT)[:-8] + bytes(8), ".*enwik8.gz cannot be unpacked"),
    "xz: noise": enwik8("enwik8.xz", os.urandom(999), ".*enwik8.xz cannot be unpacked"),
    "xz: a bomb": enwik8("enwik8.xz", lambda: lzma.compress(bytes(50_000_000), preset=0), ".*found [0-9,]+ or more"),
    "archive without rights": Bad(ENWIK8, ".*enwik8.zip cannot be read .Permission", file("data/enwik8.zip", WHOLE, 0),
                                  around=both(small, as_anybody)),
    "no room to unpack": enwik8("enwik8.zip", WHOLE, "cannot write .*File too large.; choose another paths.data_dir",
                                around=both(small, full_after(20_000))),
    "data folder read-only": Bad(ENWIK8, "cannot write .*Permission denied.*another paths.data_dir",
                                 all_of(file("data/enwik8.zip", WHOLE), lambda f: (f / "data").chmod(0o555)),
                                 around=both(small, as_anybody)),
    "data folder is a file": Bad(ENWIK8, "cannot write .*paths.data_dir", file("data"), around=small),
    "quickstart: data folder is a file": Bad("train logger=csv paths.data_dir=data", "cannot write", file("data")),
    "quickstart: no room": Bad("train logger=csv paths.data_dir=data", "cannot write .*File too large",
                               around=full_after(100_000)),
    # CIFAR-10
    "tar: a link for a batch": Bad(CIFAR, ".*data_batch_1 must be a plain file, found a link",
                                   special("data_batch_1", tarfile.SYMTYPE, "/etc/passwd"), around=small),
    "tar: a hard link for a batch": Bad(CIFAR, ".*data_batch_1 must be a plain file, found a link",
                                        special("data_batch_1", tarfile.LNKTYPE, "../../etc/passwd"), around=small),
    "tar: a device for a batch": Bad(CIFAR, ".*data_batch_1 must be a plain file",
                                     special("data_batch_1", tarfile.CHRTYPE), around=small),
    "tar: a pipe for a batch": Bad(CIFAR, ".*data_batch_1 must be a plain file",
                                   special("data_batch_1", tarfile.FIFOTYPE), around=small),
    "tar: path out of the folder": cifar_tar({"../../evil": b"evil"}, ".*must hold test_batch and at least"),
    "tar: a bomb": cifar_tar({"x/data_batch_1": bytes(65 << 20)}, ".*data_batch_1 must have at most 67,108,864"),
    "tar: a batch twice": cifar_tar({"a/test_batch": batch(1), "b/test_batch": batch(1)}, ".*holds test_batch twice"),
    "cifar10: a link to nowhere": Bad(CIFAR, "cannot reach .*place cifar", GONE, around=small),
    "cifar10: folder without rights": Bad(
        f"{CIFAR} data.path=c", ".*/c/.* cannot be used .Permission denied",
        all_of(file("c/test_batch", batch(1)), lambda f: (f / "c").chmod(0)), around=both(small, as_anybody),
    ),
    # ImageNet
    "imagenet: a link for a picture": Bad(PREPARE, ".*0.png must be a plain file, found a link",
                                          imagenet_tar(tarfile.SYMTYPE), left="data/imagenet64(/.*)?"),
    "imagenet: a device for a picture": Bad(PREPARE, ".*0.png must be a plain file", imagenet_tar(tarfile.CHRTYPE),
                                            left="data/imagenet64(/.*)?"),
    "imagenet: objects in an npz": Bad(PREPARE, ".*", npz(np.array([print], dtype=object)),
                                       left="data/imagenet64(/.*)?"),
    "imagenet: another shape": Bad(PREPARE, ".*'data' must be uint8", npz(planes(2, 32)), left="data/imagenet64(/.*)?"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_is_refused_in_a_sentence_and_damages_nothing(name, refused, monkeypatch):
    monkeypatch.setattr("src.data.download.RETRY_PAUSE_S", 0.0)
    refused(TABLE[name], name)
    assert not Path("/tmp/evil-enwik8").exists()
