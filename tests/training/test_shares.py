"""FSDP2's units of blocks: two processes give the gradients of one, however many blocks come and go together."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from src.attention import Pattern
from src.models.sparse_transformer import SparseTransformer
from src.training.strategies import ShardedLanguageModel, units, whole_weights
from tests.subprocesses import in_processes

DEPTH, N = 4, 32
SHARES = [(unit, recompute) for unit in (1, 8_000, 1 << 24) for recompute in ("none", "block")]


def network(recompute):
    torch.manual_seed(0)
    made = SparseTransformer(
        pattern=Pattern("strided", 8), context=N, depth=DEPTH, width=16, heads=4, kv_heads=2, row=8, recompute=recompute
    )
    nn.init.normal_(made.output.weight, std=0.1)  # or nothing before it has a gradient
    return made.train()


def sequences():
    return torch.randint(256, (2, N), generator=torch.Generator().manual_seed(1))


def loss(model, x):
    return torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())


def gradients_in_shares(rank):
    found = {}
    for unit, recompute in SHARES:
        sharded = ShardedLanguageModel(network(recompute), max_steps=1)
        sharded.unit = unit
        sharded._device_mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
        sharded.configure_model()
        sharded.configure_model()  # Lightning calls it again before testing
        for _ in range(2):  # weights have come and gone once
            sharded.zero_grad()
            loss(sharded.model, sequences()[rank : rank + 1]).backward()
        gradients = {name: p.grad.full_tensor().tolist() for name, p in sharded.model.named_parameters()}
        with whole_weights(sharded.model):
            whole = {name for name, p in sharded.model.named_parameters() if not isinstance(p, DTensor)}
        shares = {name for name, p in sharded.model.named_parameters() if isinstance(p, DTensor)}
        found[unit, recompute] = gradients, len(whole), len(shares)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return in_processes(gradients_in_shares, tmp_path_factory.mktemp("shares"))


@pytest.mark.parametrize(("unit", "recompute"), SHARES)
def test_gradients_are_those_of_one_process(both, unit, recompute):
    plain = network("none")
    loss(plain, sequences()).backward()
    for found in both:
        gradients, whole, shares = found[unit, recompute]
        assert gradients.keys() == dict(plain.named_parameters()).keys() and len(gradients) == whole == shares
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(torch.tensor(gradients[name]), parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_unit_has_as_many_blocks_as_it_needs():
    blocks = list(network("none").blocks)
    size = sum(parameter.numel() for parameter in blocks[0].parameters())
    assert [len(unit) for unit in units(blocks, 1)] == [1] * DEPTH
    assert [len(unit) for unit in units(blocks, size + 1)] == [2, 2]
    assert [len(unit) for unit in units(blocks, 3 * size)] == [3, 1]
    assert [len(unit) for unit in units(blocks, 1 << 24)] == [DEPTH]
    assert [block for unit in units(blocks, size) for block in unit] == blocks
