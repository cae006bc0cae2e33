"""The wrapped optimizer: it stands where torch's stood, and never writes half a step."""

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc.algorithms import Algorithm
from aimc.nn.pulsed import pulsed_layers
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import EXACT, PULSED, assert_same_cells, batch, cells_of, loss_of, sgd, small_net


def nets(hardware=EXACT):
    return aimc.convert(small_net(), hardware, seed=0), small_net()


def assert_same_parameters(net, reference, atol=1e-5):
    for (name, a), (_, b) in zip(net.named_parameters(), reference.named_parameters(), strict=True):
        assert_close(name, a, b, atol=atol)


@pytest.fixture
def plain():
    """A pulsed network and a digital one, each with its optimizer, that have to stay equal."""
    net, reference = nets()
    return net, sgd(net), reference, torch.optim.SGD(reference.parameters(), lr=0.1)


def both(plain):
    net, optimizer, reference, other = plain
    return (net, optimizer), (reference, other)


# Stands where torch's optimizer stood ---------------------------------------------------------------------------------


def test_schedulers_reach_the_cells(plain):
    for net, opt in both(plain):
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, 0.1)
        for k in range(5):
            opt.zero_grad()
            loss_of(net, batch(seed=k)).backward()
            opt.step()
            scheduler.step()
    assert plain[1].param_groups[0]["lr"] == pytest.approx(0.001)
    assert_same_parameters(plain[0], plain[2])


def test_the_learning_rate_of_a_group_is_its_cells(plain):
    net, _, reference, _ = plain

    def groups(n):
        return torch.optim.SGD(
            [{"params": n[0].parameters(), "lr": 0.03}, {"params": n[3].parameters()}], lr=0.1
        )

    for n, opt in ((net, aimc.optim.wrap(groups(net), net)), (reference, groups(reference))):
        loss_of(n).backward()
        opt.step()
    assert_same_parameters(net, reference)


def test_a_tensor_as_learning_rate_and_a_closure(plain):
    net, _, reference, _ = plain
    for n in (net, reference):
        opt = torch.optim.SGD(n.parameters(), lr=torch.tensor(0.1))
        opt = aimc.optim.wrap(opt, n) if n is net else opt

        def closure(n=n, opt=opt):
            opt.zero_grad()
            loss = loss_of(n)
            loss.backward()
            return loss

        first = opt.step(closure)
        assert first is not None and float(opt.step(closure).detach()) < float(first.detach())
    assert_same_parameters(net, reference)


def test_maximize_climbs(plain):
    net, _, reference, _ = plain
    for n in (net, reference):
        opt = torch.optim.SGD(n.parameters(), lr=0.1, maximize=True)
        opt = aimc.optim.wrap(opt, n) if n is net else opt
        loss_of(n).backward()
        opt.step()
    assert_same_parameters(net, reference)


def test_state_of_the_inner_optimizer_survives_a_file():
    def build():
        net = aimc.convert(small_net(), EXACT, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return net, aimc.optim.wrap(torch.optim.AdamW(net.parameters(), lr=0.01), net)

    def steps(net, optimizer, numbers):
        for k in numbers:
            optimizer.zero_grad()
            loss_of(net, batch(seed=k)).backward()
            optimizer.step()

    net, optimizer = build()
    steps(net, optimizer, range(3))
    fresh, resumed = build()
    fresh.load_state_dict(net.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups is resumed.inner.param_groups
    steps(net, optimizer, range(3, 6))
    steps(fresh, resumed, range(3, 6))
    assert_same_cells(cells_of(net), cells_of(fresh))
    assert_same_parameters(net, fresh, atol=0)
    assert len(resumed.state) == 2  # the biases; cells have no moments


def test_hooks_and_later_groups():
    net = aimc.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), EXACT)
    extra = nn.Parameter(torch.zeros(2))
    optimizer, calls = sgd(net), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    optimizer.add_param_group({"params": [extra], "lr": 1.0})
    (net(torch.ones(1, 3)) + extra).sum().backward()
    optimizer.step()
    optimizer.state_dict()
    assert calls == ["pre", "post", "state"] and extra.tolist() == [-1.0, -1.0]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [extra]})


def test_two_networks_have_two_optimizers():
    a, b = aimc.convert(nn.Linear(3, 3), EXACT), aimc.convert(nn.Linear(3, 2), EXACT)
    first, second = sgd(a), sgd(b)
    before = a.weight.detach().clone(), b.weight.detach().clone()
    b(a(torch.ones(1, 3))).sum().backward()
    second.step()
    assert torch.equal(a.weight, before[0]) and not torch.equal(b.weight, before[1])
    first.step()
    assert not torch.equal(a.weight, before[0])


def test_a_digital_network_beside_a_wrapped_one_has_its_plain_optimizer():
    generator, judge = nn.Linear(3, 3), aimc.convert(nn.Linear(3, 1), EXACT)
    optimizer, plain = sgd(judge), torch.optim.SGD(generator.parameters(), lr=0.1)
    judge(generator(torch.ones(1, 3))).sum().backward()
    plain.step()
    optimizer.zero_grad()
    before = judge.weight.detach().clone()
    optimizer.step()
    assert torch.equal(judge.weight, before)


# Cancelled and skipped steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", [EXACT, PULSED], ids=["exact", "pulses"])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("who", ["optimizer", "network"])
def test_zero_grad_cancels_the_update(hardware, set_to_none, who):
    net, _ = nets(hardware)
    optimizer = sgd(net)
    before, weights = cells_of(net), [p.detach().clone() for p in net.parameters()]
    loss_of(net).backward()
    (optimizer if who == "optimizer" else net).zero_grad(set_to_none=set_to_none)
    optimizer.step()
    assert_same_cells(cells_of(net), before)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights))


def test_learning_rate_zero_skips_the_cells_and_drops_the_update():
    net, _ = nets()
    optimizer = sgd(net, 0.0)
    before = cells_of(net)
    loss_of(net).backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert_same_cells(cells_of(net), before)
    optimizer.param_groups[0]["lr"] = -0.1
    loss_of(net).backward()
    with pytest.raises(aimc.AimcError, match="layer '0', field 'lr': must not be negative"):
        optimizer.step()


def test_a_scaler_scales_and_skips():
    net, reference = nets()
    optimizer, other = sgd(net), torch.optim.SGD(reference.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    twin = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        for n, opt, s in ((net, optimizer, scaler), (reference, other, twin)):
            opt.zero_grad()
            loss = loss_of(n, batch(seed=k)) * (torch.inf if k == 1 else 1.0)
            before = [p.detach().clone() for p in n.parameters()]
            s.scale(loss).backward()
            if k == 3:
                s.unscale_(opt)
                nn.utils.clip_grad_norm_(n.parameters(), 0.05)
            s.step(opt)
            s.update()
            moved = [not torch.equal(p, b) for p, b in zip(n.parameters(), before)]
            assert all(moved) if k != 1 else not any(moved), k
    assert scaler.get_scale() == twin.get_scale() == 2.0**9
    assert_same_parameters(net, reference)


# Gradients that are looked at and scaled ------------------------------------------------------------------------------


def test_inspection_and_clipping_are_those_of_torch(plain):
    norms = []
    for net, opt in both(plain):
        for k in range(3):
            opt.zero_grad()
            loss_of(net, batch(seed=k)).backward()
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), 0.1))
            assert float(torch.stack([p.grad.norm() for p in net.parameters()]).norm()) < 0.1 + 1e-6
            opt.step()
    assert float(norms[0]) > 0.2
    assert_close("norms", torch.stack(norms[:3]), torch.stack(norms[3:]), rtol=1e-5)
    assert_same_parameters(plain[0], plain[2])


def test_clipping_between_accumulated_passes_scales_what_was_there(plain):
    for net, opt in both(plain):
        loss_of(net).backward()
        for p in net.parameters():
            p.grad *= 0.25
        loss_of(net, batch(seed=2)).backward()
        opt.step()
    assert_same_parameters(plain[0], plain[2])


def test_real_pulses_follow_the_scaled_gradient():
    layer = aimc.convert(nn.Linear(30, 40, bias=False), PULSED, seed=0)
    layer.program(torch.zeros(40, 30))
    layer(torch.ones(20, 30)).sum().backward()
    layer.weight.grad.mul_(0.5)
    sgd(layer, 0.001).step()
    assert float(layer.weight.detach().mean()) == pytest.approx(-0.01, rel=0.05)


@pytest.mark.parametrize(
    "change", [lambda g: g.clamp_(-0.01, 0.01), lambda g: g.add_(0.01), lambda g: g[0].zero_()]
)
def test_any_other_change_of_the_gradient_is_refused(change):
    net, _ = nets()
    optimizer = sgd(net)
    loss_of(net).backward()
    before, bias = cells_of(net), net[3].bias.detach().clone()
    change(net[3].weight.grad)
    with pytest.raises(aimc.AimcError, match="layer '3', field 'weight.grad': .*more than a factor"):
        optimizer.step()
    assert_same_cells(cells_of(net), before)
    assert torch.equal(net[3].bias, bias)


def test_a_gradient_cannot_be_set():
    net, _ = nets()
    with pytest.raises(aimc.AimcError, match="layer '3', field 'weight.grad': .*cannot be set"):
        net[3].weight.grad = torch.zeros_like(net[3].weight)


# Never half a step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "d", "what"), [(torch.nan, 1.0, "input"), (1.0, torch.inf, "gradient")])
def test_what_is_not_finite_stops_the_step_before_the_first_pulse(x, d, what):
    net, _ = nets(PULSED)
    optimizer = sgd(net)
    loss_of(net).backward()
    before, bias = cells_of(net), net[3].bias.detach().clone()
    net[3](torch.full((1, 48), x)).backward(torch.full((1, 4), d))
    shape = rf"\[1, {48 if what == 'input' else 4}\]"
    with pytest.raises(aimc.AimcError, match=f"layer '3', shape {shape}: the {what} holds NaN"):
        optimizer.step()
    assert_same_cells(cells_of(net), before)
    assert torch.equal(net[3].bias, bias)


def test_an_activation_that_is_overwritten_before_the_step_is_noticed():
    net = aimc.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), EXACT)
    optimizer = sgd(net)
    hidden = net[0](torch.ones(1, 3))
    net[1](hidden).sum().backward()
    hidden.data  # noqa: B018  (looking is fine)
    with torch.no_grad():
        hidden.zero_()
    with pytest.raises(aimc.AimcError, match="layer '1': an input or output gradient was changed in place"):
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_plain_optimizer_is_an_error_and_writes_nothing(kind):
    net, _ = nets()
    optimizer = kind(net.parameters(), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    loss_of(net).backward()
    with pytest.raises(
        aimc.AimcError, match=rf"layer '0': {kind.__name__} steps while cells wait.*aimc.optim.wrap"
    ):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))
    digital = kind([p for p in net.parameters() if not isinstance(p, aimc.nn.CellWeight)], lr=0.1)
    with pytest.raises(aimc.AimcError, match="steps while cells wait"):
        digital.step()
    wrapped = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.1), net)
    with pytest.raises(aimc.AimcError, match="steps while cells wait"):
        wrapped.inner.step()
    wrapped.step()
    assert not torch.equal(net[0].weight, before[0])


def test_cells_are_back_in_their_group_when_the_inner_step_fails():
    net, _ = nets()
    optimizer = sgd(net)
    loss_of(net).backward()

    def fail(*_):
        raise RuntimeError("stop")

    optimizer.inner.register_step_pre_hook(fail)
    before = cells_of(net)
    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step()
    assert len(optimizer.param_groups[0]["params"]) == 4
    assert_same_cells(cells_of(net), before)


# What cannot be wrapped -----------------------------------------------------------------------------------------------


def test_mistakes_in_wrapping_say_the_way_out():
    net, reference = nets()
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(aimc.AimcError, match="no layer that trains in memory"):
        aimc.optim.wrap(torch.optim.SGD(reference.parameters(), lr=0.1), reference)
    with pytest.raises(
        aimc.AimcError, match="layer '3', field 'optimizer': its weight is not in the optimizer"
    ):
        aimc.optim.wrap(torch.optim.SGD(net[0].parameters(), lr=0.1), net)
    with pytest.raises(aimc.AimcError, match="layer '0', field 'optimizer'"):
        aimc.optim.wrap(torch.optim.SGD(reference.parameters(), lr=0.1), net)
    wrapped = aimc.optim.wrap(inner, net)
    for again in (wrapped, inner):
        with pytest.raises(aimc.AimcError, match="wrapped"):
            aimc.optim.wrap(again, net)
    with pytest.raises(aimc.AimcError, match="LBFGS"):
        aimc.optim.wrap(torch.optim.LBFGS(net.parameters()), net)
    with pytest.raises(aimc.AimcError, match="expects a torch optimizer"):
        aimc.optim.wrap(net, net)


def test_a_new_optimizer_takes_over_from_the_old_one():
    net, _ = nets()
    old = sgd(net)
    new = sgd(net)
    loss_of(net).backward()
    with pytest.raises(aimc.AimcError, match="layer '0': .*that aimc.optim.wrap made last"):
        old.step()
    new.step()
    del new
    gc.collect()
    loss_of(net).backward()
    with pytest.raises(aimc.AimcError, match="step an optimizer made by aimc.optim.wrap"):
        old.step()


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (
            torch.optim.SGD,
            {"momentum": 0.9, "weight_decay": 1e-4},
            "momentum, weight_decay of SGD act on the digital",
        ),
        (torch.optim.Adam, {}, "betas of Adam act"),
        (torch.optim.Adagrad, {}, "steps of Adagrad act"),
    ],
)
def test_settings_that_do_not_reach_the_cells_are_a_warning(kind, options, named):
    net, _ = nets()
    with pytest.warns(UserWarning, match=named):
        optimizer = aimc.optim.wrap(kind(net.parameters(), lr=0.01, **options), net)
    before = net[0].weight.detach().clone()
    loss_of(net).backward()
    gradient = net[0].weight.grad.clone()
    optimizer.step()
    assert_close("cells step by lr times the gradient", net[0].weight, before - 0.01 * gradient, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgd(net)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_observe_tells_every_layer(monkeypatch):
    told = []
    monkeypatch.setattr(
        Algorithm, "observe", lambda self, array, state, loss: told.append((array.shape, loss))
    )
    net, reference = nets()
    loss_of(net).backward()
    aimc.optim.observe(net, 0.25)
    assert told == [((3, 9), 0.25), ((4, 48), 0.25)]
    assert net[0].weight.grad is not None  # telling the loss does not cancel an update
    with pytest.raises(aimc.AimcError, match="field 'loss': must be finite"):
        aimc.optim.observe(net, float("nan"))
    with pytest.raises(aimc.AimcError, match="no layer that trains in memory"):
        aimc.optim.observe(reference, 0.25)


def test_few_states_train_a_network():
    """Eight updates are far from convergence; the loss has to fall well all the same."""
    torch.manual_seed(0)
    x = torch.randn(100, 12)
    y = (x @ torch.randn(12, 3)).argmax(1)
    net = aimc.convert(nn.Linear(12, 3), aimc.presets.reram(100, w_max_dtod=0.0, w_min_dtod=0.0), seed=0)
    optimizer, losses = sgd(net, 0.5), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


# Time and schedules ---------------------------------------------------------------------------------------------------


def test_cells_decay_once_per_step_on_every_tile_whatever_the_gradient():
    """``w(t) = w(0) (1 - 1/lifetime)^t`` with zero gradients, with none, at learning rate zero."""
    alike = {"lifetime_dtod": 0.0, "w_max_dtod": 0.0, "w_min_dtod": 0.0}
    hardware = aimc.presets.reram(4, aimc.algorithms.Residual(tiles=3), lifetime=20.0, **alike)
    net = aimc.convert(small_net(), hardware, seed=0)
    optimizer = sgd(net)
    layers = [layer.cells.state for layer in pulsed_layers(net).values()]
    start = [layer["held"].clone() for layer in layers]
    x, _ = batch()
    for step in range(6):
        optimizer.zero_grad()
        if step % 3 == 0:
            (net(x) * 0).sum().backward()
        elif step % 3 == 1:
            loss_of(net).backward()
            optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
    for before, layer in zip(start, layers, strict=True):
        assert_close("held", layer["held"], before * 0.95**6, atol=1e-6)


def test_whatever_touches_an_array_redraws_its_write_noise():
    cell = {"lifetime": 1e6, "write_noise_std": 1.0}
    net = aimc.convert(small_net(), aimc.presets.reram(20, aimc.algorithms.AnalogSGD(), **cell), seed=0)
    optimizer, seen = sgd(net), []
    for _ in range(3):
        optimizer.step()
        seen += [
            torch.cat(
                [(s["w"] - s["held"]).flatten() for s in [m.cells.state for m in pulsed_layers(net).values()]]
            )
        ]
    std, n = 0.1, len(seen[0])
    for noise in seen:
        assert abs(float(noise.std()) / std - 1) < 5 / (2 * n) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack(seen))[0, 1])) < 5 / n**0.5


@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        (aimc.algorithms.TikiTakaV1(), "fast_lr and transfer_lr"),
        (aimc.algorithms.TikiTakaV2(), "fast_lr"),
        (aimc.algorithms.TikiTakaV3(), "fast_lr"),
        (aimc.algorithms.TikiTakaV3(scale_transfer_lr=False), "fast_lr and transfer_lr"),
        (aimc.algorithms.Residual(order="paper"), "transfer_lr"),
        (aimc.algorithms.Residual(), None),
        (aimc.algorithms.AnalogSGD(), None),
    ],
)
def test_a_schedule_that_misses_rates_of_the_cells_says_so_once(algorithm, named):
    net = aimc.convert(small_net(), aimc.presets.reram(20, algorithm), seed=0)
    optimizer = sgd(net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    found = []
    for _ in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            scheduler.step()
        found.append([str(w.message) for w in caught if "learning rate has changed" in str(w.message)])
    assert [len(f) for f in found] == [0, 1 if named else 0, 0]
    assert named is None or f"{named} of {type(algorithm).__name__} (layers 0, 3)" in found[1][0]
