"""A sealed checkpoint is an ordinary archive that shows any change to it."""

import io
import random
import zipfile

import pytest
import torch

from src.checkpoint.file import inspect, write
from src.checkpoint.seal import Damaged, check_seal, read_seal


def state(step: int, size: int = 1000) -> dict:
    """The least that is a checkpoint."""
    return {"global_step": step, "state_dict": {"weight": torch.full((size,), float(step)), "bias": torch.zeros(3)}}


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "last.ckpt"
    write(state(300), path)
    return path


def test_the_seal_says_the_step_and_is_read_by_any_zip_program(sealed):
    seal = read_seal(sealed)
    assert seal is not None
    assert seal.step == 300
    assert check_seal(sealed) == seal
    comment = zipfile.ZipFile(sealed).comment.decode()
    assert comment == f"sparse-transformer checkpoint, step 300, sha256 {seal.digest}"


def test_torch_load_needs_nothing_else(sealed):
    loaded = torch.load(sealed, weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((1000,), 300.0))


def test_a_flipped_bit_is_found_wherever_it_is(sealed):
    whole = sealed.read_bytes()
    draw = random.Random(1)
    for offset in [*draw.sample(range(len(whole)), 150), *range(len(whole) - 130, len(whole))]:
        changed = bytearray(whole)
        changed[offset] ^= 1 << draw.randrange(8)
        sealed.write_bytes(changed)
        with pytest.raises(Damaged):
            inspect(sealed)
            raise AssertionError(f"a bit changed at {offset} of {len(whole)} was not found")
    sealed.write_bytes(whole)
    assert inspect(sealed) == 300


def test_a_file_that_was_cut_off_anywhere_is_found(sealed):
    whole = sealed.read_bytes()
    draw = random.Random(2)
    for length in [0, 1, *draw.sample(range(len(whole)), 80), *range(len(whole) - 130, len(whole))]:
        sealed.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            inspect(sealed)
            raise AssertionError(f"{length} of {len(whole)} bytes were taken as whole")


def test_bytes_behind_the_end_are_found(sealed):
    sealed.write_bytes(sealed.read_bytes() + b"more")
    with pytest.raises(Damaged):
        inspect(sealed)


def test_a_file_without_a_seal_is_held_against_the_sums_of_its_parts(tmp_path):
    """As versions before the seal wrote them."""
    path = tmp_path / "last.ckpt"
    file = io.BytesIO()
    torch.save(state(7), file)
    path.write_bytes(file.getvalue())
    assert read_seal(path) is None
    assert inspect(path) == 7
    changed = bytearray(file.getvalue())
    changed[changed.index(torch.full((1000,), 7.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(changed)
    with pytest.raises(Damaged, match=r"its part .*/data/.* is not what was written"):
        inspect(path)


def test_a_seal_of_another_step_than_the_content_is_found(sealed):
    sealed.write_bytes(sealed.read_bytes().replace(b"step 300,", b"step 301,"))
    with pytest.raises(Damaged, match="its seal says step 301 and its content step 300"):
        inspect(sealed)
