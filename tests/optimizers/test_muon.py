"""Muon on one process: its matrices, AdamW beside them, skipped steps, and its state."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn

from src.optimizers.muon import ADAMW_STEP, Muon
from tests.optimizers.test_orthogonal import exact

SHAPES = [(24, 24), (16, 40), (40, 16), (1, 7)]
STEPS = 4


def parameters(shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(step, shapes=SHAPES):
    generator = torch.Generator().manual_seed(10 + step)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def train(optimizer, moved, steps=range(STEPS), shapes=SHAPES):
    for step in steps:
        for parameter, gradient in zip(moved, gradients(step, shapes), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in moved]


def muon(moved, **options):
    return {"params": moved, "muon": True, "lr": 0.02, **options}


def reference(weights, momentum=0.95, nesterov=True, weight_decay=0.01, ns_steps=5, lr=0.02):
    """The article's optimizer in float64."""
    found = []
    for number, weight in enumerate(weights):
        w = weight.detach().double()
        buffer = torch.zeros_like(w)
        for step in range(STEPS):
            gradient = gradients(step)[number].double()
            buffer = momentum * buffer + (1 - momentum) * gradient
            update = momentum * buffer + (1 - momentum) * gradient if nesterov else buffer
            update = exact(update[None], ns_steps)[0]
            w = (1 - lr * weight_decay) * w - lr * max(1, w.shape[0] / w.shape[1]) ** 0.5 * update
        found.append(w)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False},
        {"weight_decay": 0.3},
        {"momentum": 0.6, "lr": 0.1},
        {"ns_steps": 2},
        {"momentum": 0.0},
    ],
    ids=str,
)
def test_weights_are_those_of_float64(options):
    moved = parameters()
    wanted = reference(moved, **options)
    found = train(Muon([muon(moved, **options)]), moved)
    for ours, exactly, before in zip(found, wanted, parameters(), strict=True):
        # gradients of (1, 7) are normalised alone, which float32 does to some ulp of the weight
        assert (ours - exactly).norm() <= 1e-5 * (before - exactly).norm() + 1e-7 * before.norm()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_weights_are_those_of_torch_optim_muon(nesterov, weight_decay):
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.02, "nesterov": nesterov, "weight_decay": weight_decay, "momentum": 0.9}
    optimizer = Muon([muon(ours, **options)], dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, **options)
    for a, b, before in zip(train(optimizer, ours), train(reference, theirs), parameters(), strict=True):
        assert (a - b).norm() <= 0.05 * (b - before).norm()  # bf16 keeps 8 bits, through 15 products


@pytest.mark.parametrize("rows", [(16, 16, 16), (8, 8, 32), (40, 8)], ids=str)
def test_matrices_of_a_fused_projection_move_as_if_they_were_apart(rows):
    together, apart = parameters([(48, 16)]), parameters([(48, 16)])
    apart = [nn.Parameter(part.clone()) for part in apart[0].detach().split(rows)]
    one = Muon([muon(together, rows=rows)])
    several = Muon([muon(apart)])
    for step in range(STEPS):
        together[0].grad = gradients(step, [(48, 16)])[0]
        for parameter, gradient in zip(apart, together[0].grad.split(rows), strict=True):
            parameter.grad = gradient.clone()
        one.step()
        several.step()
    assert torch.equal(together[0].detach(), torch.cat(apart).detach())
    assert not torch.equal(
        train(Muon([muon(whole := parameters([(48, 16)]))]), whole, shapes=[(48, 16)])[0], together[0]
    )


@pytest.mark.parametrize("fused", [False, True])
def test_other_groups_are_adamw_to_the_last_bit(fused):
    shapes = [(5, 3), (7,), (24, 24)]
    ours, theirs = parameters(shapes), parameters(shapes)
    options = {"lr": 3e-3, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.1, "fused": fused}
    mixed = Muon(
        [{"params": ours[:1]}, muon(ours[2:]), {"params": ours[1:2], "weight_decay": 0.0, "lr": 0.1}], **options
    )
    plain = torch.optim.AdamW(
        [{"params": theirs[:1]}, {"params": theirs[1:2], "weight_decay": 0.0, "lr": 0.1}], **options
    )
    train(mixed, ours, shapes=shapes)
    train(plain, theirs[:2], shapes=shapes[:2])
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(a, b)
        assert all(
            torch.equal(mixed.state[a][name], plain.state[b][name]) for name in ("step", "exp_avg", "exp_avg_sq")
        )
    assert set(mixed.state[ours[2]]) == {"momentum_buffer"}
    assert not torch.equal(ours[2], theirs[2])


def test_batches_make_no_difference():
    shapes = [(24, 24), (8, 24), (24, 8), (24, 24), (8, 24), (12, 24)]
    together, apart = parameters(shapes), parameters(shapes)
    one, several = (Muon([muon(p[:3]), muon(p[3:], rows=None, weight_decay=0.3)]) for p in (together, apart))
    several.limit = 400  # two matrices (8, 24), or one that is larger
    for a, b in zip(train(one, together, shapes=shapes), train(several, apart, shapes=shapes), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing():
    shapes = [(8, 8), (8, 24), (5,)]
    moved = parameters(shapes)
    optimizer = Muon([muon(moved[:2], weight_decay=0.5), {"params": moved[2:]}], fused=True)
    assert optimizer._step_supports_amp_scaling
    before = train(optimizer, moved, range(2), shapes)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    for parameter in moved:
        parameter.grad.fill_(float("nan"))
        parameter.grad.view(-1)[0] = float("inf")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(moved, before, strict=True))
    for number, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[number][name]) for name, value in values.items())
    optimizer.found_inf = torch.zeros(())
    assert not torch.equal(train(optimizer, moved, [2], shapes)[0], before[0])


def test_a_first_step_may_be_skipped_and_a_scale_is_undone():
    ours, theirs = parameters(), parameters()
    scaled, plain = Muon([muon(ours)], fused=True), Muon([muon(theirs)], fused=True)
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, float("nan"))
    scaled.found_inf = torch.ones(())
    scaled.step()
    scaled.found_inf, scaled.grad_scale = torch.zeros(()), torch.tensor(1024.0)
    for step in range(STEPS):
        for parameter, gradient in zip(ours, gradients(step), strict=True):
            parameter.grad = gradient * 1024
        scaled.step()
    assert all(torch.equal(a, b) for a, b in zip(train(plain, theirs), ours, strict=True))


def test_pytorchs_scaler_knows_it():
    ours, theirs = parameters(), parameters()
    optimizer, scaler = Muon([muon(ours)], fused=True), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(2):
        for parameter, gradient in zip(ours, gradients(0), strict=True):
            parameter.grad = gradient * scaler.scale(torch.ones(()))
        ours[1].grad[0, 0] = float("inf") if number == 0 else ours[1].grad[0, 0]
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(train(Muon([muon(theirs)]), theirs, range(1)), ours, strict=True))


def test_a_run_goes_on_to_the_last_bit():
    shapes = [(48, 16), (16, 40), (5,)]
    moved, resumed = parameters(shapes), parameters(shapes)

    def build(some):
        groups = [muon(some[:1], rows=(16, 16, 16)), {"params": some[2:]}, muon(some[1:2], momentum=0.9)]
        return Muon(groups, lr=0.01)

    optimizer = build(moved)
    train(optimizer, moved, range(3), shapes)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in moved]), file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    assert set(state["state"][0]) == {"momentum_buffer"}
    assert state["state"][0]["momentum_buffer"].dtype == torch.float32
    other = build(resumed)
    other.load_state_dict(state)
    for parameter, weight in zip(resumed, weights, strict=True):
        parameter.data.copy_(weight)
    for a, b in zip(train(optimizer, moved, [3, 4], shapes), train(other, resumed, [3, 4], shapes), strict=True):
        assert torch.equal(a, b)


def test_a_copy_keeps_its_options():
    optimizer = Muon([muon(parameters())], share=False, dtype=torch.bfloat16)
    copied = copy.deepcopy(optimizer)
    assert (copied.share, copied.dtype) == (False, torch.bfloat16)
    train(copied, copied.param_groups[0]["params"])


def test_a_closure_a_schedule_and_hooks_see_all_groups_once():
    moved = parameters([(8, 8), (5,)])
    torch.optim.AdamW(parameters([(5,)]))  # PyTorch wraps the step of a class when it is first used
    assert ADAMW_STEP is inspect.unwrap(torch.optim.AdamW.step)
    optimizer = Muon([muon(moved[:1]), {"params": moved[1:]}], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        assert [p.grad for p in moved] == [None, None]
        loss = sum(parameter.square().sum() for parameter in moved)
        loss.backward()
        return loss

    before = [p.detach().clone() for p in moved]
    assert optimizer.step(closure) == sum(b.square().sum() for b in before)
    schedule.step()
    assert seen == ["before", "after"]
    assert all(not torch.equal(a, b) for a, b in zip(moved, before, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]


def test_parameters_without_gradient_stay():
    moved = parameters()
    optimizer = Muon([muon(moved, weight_decay=0.5)])
    moved[0].grad = gradients(0)[0]
    optimizer.step()
    assert not torch.equal(moved[0], parameters()[0])
    assert all(torch.equal(a, b) for a, b in zip(moved[1:], parameters()[1:], strict=True))
    assert list(optimizer.state) == [moved[0]]


def test_gradients_in_another_order_of_memory():
    ours, theirs = parameters(), parameters()
    optimizer = Muon([muon(ours)])
    for parameter, gradient in zip(ours, gradients(0), strict=True):
        parameter.grad = gradient.T.contiguous().T
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, train(Muon([muon(theirs)]), theirs, range(1)), strict=True))


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((5,), {}, "matrices"),
        ((2, 3, 4), {}, "matrices"),
        ((6, 4), {"rows": (2, 2)}, "6 rows"),
        ((6, 4), {"rows": (7, -1)}, "6 rows"),
        ((6, 4), {"rows": ()}, "6 rows"),
        ((6, 4), {"momentum": 1.0}, "momentum"),
        ((6, 4), {"momentum": -0.1}, "momentum"),
        ((6, 4), {"lr": -1.0}, "lr"),
        ((6, 4), {"weight_decay": -1.0}, "weight_decay"),
        ((6, 4), {"ns_steps": 0}, "ns_steps"),
    ],
    ids=str,
)
def test_a_group_that_cannot_be_is_refused(shape, options, said):
    with pytest.raises(ValueError, match=said):
        Muon([muon([nn.Parameter(torch.zeros(shape))], **options)])


def test_a_transposed_matrix_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        Muon([muon([nn.Parameter(torch.zeros(3, 4).T)])])
