"""Several processes (gloo) move weights as one does: with whole parameters, and with shares of rows (FSDP2)."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from src.optimizers.muon import Muon
from src.optimizers.orthogonal import orthogonalize
from tests.subprocesses import in_processes

STEPS = 3
FULL = StateDictOptions(full_state_dict=True)


class Net(nn.Module):
    """Matrices whose rows no number of processes divides: three in one, tall, wide, and fewer rows than processes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fused = nn.Linear(12, 33)
        self.tall = nn.Linear(11, 41)
        self.wide = nn.Linear(41, 10)
        self.one = nn.Linear(10, 1)

    def forward(self, x):
        a, b, c = self.fused(x).split(11, -1)
        return self.one(self.wide(F.gelu(self.tall(a * b + c))))

    def optimizer(self, **options):
        groups = [
            {"params": [self.fused.weight], "muon": True, "rows": (11, 11, 11), "lr": 0.05, "weight_decay": 0.1},
            {"params": [self.tall.weight, self.wide.weight, self.one.weight], "muon": True, "lr": 0.02},
            {"params": [parameter for parameter in self.parameters() if parameter.ndim == 1]},
        ]
        return Muon(groups, lr=0.01, fused=True, **options)


def trained(net, optimizer, steps=range(STEPS)):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(5, 12, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()
    return values(net)


def values(net):
    """As lists: tensors of a process are gone when it ends."""
    tensors = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in net.named_parameters()}
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def whole_parameters(sizes, share=True):
    net = Net()

    def counted(x, steps):
        sizes.append(len(x))
        return orthogonalize(x, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.optimizers.muon.orthogonalize", counted)
        return trained(net, net.optimizer(share=share))


def sharded():
    net = Net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(net, mesh=mesh)
    return net


def shares_of_rows():
    net = sharded()
    optimizer = net.optimizer()
    found = trained(net, optimizer)
    state = get_optimizer_state_dict(net, optimizer, options=FULL)
    momentum = {name: state["state"][name]["momentum_buffer"].tolist() for name in ("fused.weight", "one.weight")}
    other = sharded()
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    resumed = other.optimizer()
    set_optimizer_state_dict(other, resumed, copy.deepcopy(state), options=FULL)
    gone_on = trained(other, resumed, [STEPS]) == trained(net, optimizer, [STEPS])
    for parameter in net.parameters():
        parameter.grad.to_local().fill_(float("nan"))
    before = values(net)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    return found, momentum, gone_on, values(net) == before


def work(rank):
    sizes, alone = [], []
    found = {"shared": whole_parameters(sizes), "not shared": whole_parameters(alone, share=False)}
    return found, sizes[:4], alone[:4], shares_of_rows()


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def processes(request, tmp_path_factory):
    """What ``work`` gives in each of some processes."""
    return in_processes(work, tmp_path_factory.mktemp("muon"), request.param)


@pytest.fixture(scope="module")
def alone():
    """Weights and momentum of one process."""
    net = Net()
    optimizer = net.optimizer()
    return trained(net, optimizer), {name: optimizer.state[p] for name, p in net.named_parameters()}


def assert_near(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(wanted[name]), rtol=1e-5, atol=1e-6)


def test_one_process_learns(alone):
    assert all(not torch.equal(torch.tensor(alone[0][name]), p) for name, p in Net().named_parameters())


def test_shared_work_gives_the_same_weights_everywhere(processes, alone):
    for found, *_ in processes:
        assert found["shared"] == processes[0][0]["shared"]
        assert_near(found["shared"], alone[0])
        assert_near(found["not shared"], alone[0])


def test_work_is_shared_evenly(processes):
    """The matrices of a step: three of (11, 12), and (11, 41), (10, 41) and (1, 10) by themselves."""
    for _, sizes, sizes_alone, _ in processes:
        assert sizes == [2 if len(processes) == 2 else 1, 1, 1, 1]
        assert sizes_alone == [3, 1, 1, 1]


def test_shares_of_rows_move_as_whole_parameters(processes, alone):
    weights, state = alone
    for *_, (found, momentum, _, _) in processes:
        assert_near(found, weights)
        for name, value in momentum.items():
            torch.testing.assert_close(torch.tensor(value), state[name]["momentum_buffer"], rtol=1e-5, atol=1e-7)


def test_shares_of_rows_go_on_and_are_skipped(processes):
    for *_, (_, _, gone_on, skipped) in processes:
        assert gone_on and skipped
