"""A chip is an object: the same today, at any time and after a file, and the network is unharmed by it."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import aimc
from aimc.cells import PCM, Faults, SingleExponentPCM
from aimc.chip import Chip, LeastSquares, MeanAbs, PerColumn
from aimc.errors import AimcError
from aimc.hwa import AddNormal, HardwareAware
from aimc.periphery import InputRange
from aimc.recipes.chips import Calibration
from tests.helpers import assert_close
from tests.moments import assert_moments

TIMES = ("1s", "1h", "1d", "1y")
PLAIN = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "tile.rows": 10})


def make(hardware=PLAIN, layers=2, seed=0):
    torch.manual_seed(seed)
    parts = [nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)]
    if layers == 3:
        parts += [nn.ReLU(), nn.Linear(4, 3)]
    return aimc.convert(nn.Sequential(*parts), hardware, seed=1).eval()


X = torch.randn(6, 24, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def outputs(net, chip, times=TIMES):
    found = {}
    for time in times:
        with chip.at(time):
            found[time] = net(X)
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert_close(str(name), a[name], b[name])


# ---------------------------------------------------------------- one chip


@pytest.mark.parametrize("compensation", [None, LeastSquares(), MeanAbs()])
def test_same_seed_same_chip(compensation):
    a, b = (aimc.program(make(), seed=7, compensation=compensation) for _ in range(2))
    assert a.fingerprint() == b.fingerprint()
    assert_same(outputs(a.net, a), outputs(b.net, b))
    other = aimc.program(make(), seed=8, compensation=compensation)
    assert other.fingerprint() != a.fingerprint()
    for name, g in other.conductances().items():
        assert float((g != a.conductances()[name]).double().mean()) > 0.7


def test_torch_rules_the_seed_where_none_is_given():
    seeds = []
    for s in (3, 3, 4):
        net = make()
        torch.manual_seed(s)
        seeds.append(aimc.program(net).seed)
    assert seeds[0] == seeds[1] != seeds[2]


def test_times_in_any_order_and_again():
    net = make()
    chip = aimc.program(net, seed=7)
    forward = outputs(net, chip)
    backward = outputs(net, chip, TIMES[::-1])
    assert_same(forward, dict(reversed(backward.items())))
    assert_same(outputs(net, aimc.program(net, seed=7), ("1h",)), {"1h": forward["1h"]})
    assert len({tuple(y.flatten().tolist()) for y in forward.values()}) == 4
    with chip.at(3600), torch.no_grad():
        assert_close("seconds or text", net(X), forward["1h"])


@torch.no_grad()
def test_programmed_once_and_held():
    """Two forward passes see the same devices; only the noise of the read is new."""
    net = make(PLAIN.replace(output_noise=0.0, short_term_noise=0.0))
    with aimc.program(net, seed=7).at("1h"):
        assert_close("second pass", net(X), net(X))
    net = make()
    chip = aimc.program(net, seed=7)
    with chip.at("1h"):
        held = chip.weights(compensated=False)
        first, second = net(X), net(X)
        assert_same(chip.weights(compensated=False), held)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_recurrent_use_sees_one_chip():
    """A layer called once a token is one array."""
    cell = aimc.convert(nn.Linear(4, 4), aimc.presets.ideal().replace(cell=PCM()), seed=0).eval()
    with aimc.program(cell, seed=0).at("1d"):
        weight = torch.stack([(cell(torch.eye(4)) - cell.bias).T for _ in range(3)])
    assert_close("three tokens", weight, weight[:1].expand(3, 4, 4))


def test_appended_layer_changes_no_other_chip():
    short, long = aimc.program(make(), seed=7), aimc.program(make(layers=3), seed=7)
    for name, held in short._held.items():
        assert_close(name, long._held[name].cells.conductance, held.cells.conductance)
        assert_close(name, long._held[name].cells.exponent, held.cells.exponent)
    with short.at("1y"), long.at("1y"):
        for name, g in short.conductances().items():
            assert_close(name, long.conductances()[name], g)


def test_layers_have_their_own_devices():
    torch.manual_seed(0)
    one = nn.Linear(8, 8)
    net = aimc.convert(nn.Sequential(one, copy.deepcopy(one)), PLAIN, seed=0).eval()
    chip = aimc.program(net, seed=7)
    first, second = chip._held["0"].cells, chip._held["1"].cells
    assert_close("target", first.target, second.target)
    assert float((first.exponent == second.exponent).double().mean()) < 0.1
    with chip.at("1h"):
        a, b = chip.conductances().values()
    assert float((a / first.conductance == b / second.conductance).double().mean()) < 0.1


def test_compensation_changes_no_device():
    chips = [aimc.program(make(), seed=7, compensation=c) for c in (None, LeastSquares(), MeanAbs())]
    for chip in chips[1:]:
        for time in ("0s", "1y"):
            with chips[0].at(time), chip.at(time):
                assert_same(chip.conductances(), chips[0].conductances())
                assert_same(chip.weights(compensated=False), chips[0].weights())
    with chips[0].at("1y"):
        assert chips[0].compensation_factors() == {}


def test_training_of_the_hardware_changes_no_device():
    """Variants are compared on common chips: the devices depend on seed, name and weights alone."""
    noisy = PLAIN.replace(training=HardwareAware(modifiers=(AddNormal(std=0.1),)))
    assert aimc.program(make(noisy), seed=7).fingerprint() == aimc.program(make(), seed=7).fingerprint()


@pytest.mark.parametrize("scale", ["column", "tile"])
def test_programming_error_without_compensation(scale):
    """Both devices of every pair carry the error of their own target."""
    torch.manual_seed(0)
    digital = nn.Linear(600, 200, bias=False)
    digital.weight.data = torch.where(torch.rand(200, 600) < 0.5, 0.25, -0.25)
    digital.weight.data[:, ::3] = 0.5
    hardware = aimc.presets.ideal().replace(cell=PCM(read_noise_scale=0.0), **{"mapping.scale": scale})
    chip = aimc.program(aimc.convert(digital, hardware).eval(), seed=1, compensation=None)
    weight, (plus, minus) = chip.weights()[""], chip.conductances()[""]
    assert_close("weights", weight, 0.5 * (plus - minus) / 25, atol=1e-7)
    third = slice(None, None, 3)
    assert_moments("full scale", plus[:, third], 25.0, 1.05538)
    rest = torch.tensor([c for c in range(600) if c % 3])
    half = (digital.weight[:, rest] > 0).detach()
    assert_moments("positive half", plus[:, rest][half], 12.5, 0.95271)
    assert_moments("negative half", minus[:, rest][~half], 12.5, 0.95271)
    reset = torch.cat([minus[:, third].flatten(), minus[:, rest][half], plus[:, rest][~half]])
    assert_moments("reset partner", reset, 0.26348 / (2 * torch.pi) ** 0.5)
    assert bool((reset >= 0).all()) and float((reset == 0).double().mean()) == pytest.approx(0.5, abs=0.01)


def test_two_reads_after_programming_differ():
    """Read noise acts without any drift call, also at the very end of programming."""
    net = make()
    chip = aimc.program(net, seed=7, compensation=None)
    held = {n: h.cells.conductance for n, h in chip._held.items()}
    for name, g in chip.conductances().items():
        assert float((g != held[name])[held[name] > 0].double().mean()) > 0.99
    with chip.at("1s"):
        later = chip.conductances()
    assert not torch.equal(later["0"], chip.conductances()["0"])


def test_faults_stay():
    net = make(PLAIN.replace(cell=PCM(faults=Faults(maximum=0.2, random=0.1))))
    chip = aimc.program(net, seed=7)
    stuck = chip._held["0"].cells.stuck
    assert stuck is not None
    fresh = chip.conductances()["0"]
    for time in TIMES:
        with chip.at(time):
            now = chip.conductances()["0"]
        assert_close("stuck", now[stuck], fresh[stuck])
        assert float((now[~stuck] == fresh[~stuck]).double().mean()) < 0.3


LIKE_LINEAR = {  # layer, shape of its inputs, rows of a tile
    "conv1d": (lambda: nn.Conv1d(96, 40, 1), (96, 1), 40),
    "conv2d": (lambda: nn.Conv2d(96, 40, 1), (96, 1, 1), 40),
    "conv3d": (lambda: nn.Conv3d(96, 40, 1), (96, 1, 1, 1), 40),
    "strided": (lambda: nn.Conv2d(96, 40, 1, stride=2), (96, 2, 2), 40),
    "a patch of the whole image": (lambda: nn.Conv2d(24, 40, 2), (24, 2, 2), 512),
    "channels on several tiles": (lambda: nn.Conv3d(3, 40, (4, 2, 4)), (3, 4, 2, 4), 30),
    "transposed": (lambda: nn.ConvTranspose2d(96, 40, 1), (96, 1, 1), 40),
    "without bias": (lambda: nn.Conv2d(96, 40, 1, bias=False), (96, 1, 1), 512),
}


@pytest.mark.parametrize("name", LIKE_LINEAR)
@pytest.mark.parametrize(
    "compensation", [LeastSquares(), MeanAbs(), PerColumn(averages=4)], ids=lambda c: type(c).__name__
)
def test_a_convolution_is_a_linear_layer(name, compensation):
    """Training noise, devices, factors, and what is read after a third of a year."""
    make, shape, rows = LIKE_LINEAR[name]
    torch.manual_seed(0)
    conv = make()
    matrix = conv.weight.data.flatten(1) if name != "transposed" else conv.weight.data.flatten(1).t()
    linear = nn.Linear(96, 40, bias=conv.bias is not None)
    linear.weight.data = matrix.clone()
    if conv.bias is not None:
        linear.bias.data = conv.bias.data.clone()
    hardware = PLAIN.replace(training=HardwareAware(modifiers=(AddNormal(std=0.1),)), **{"tile.rows": rows})
    a, b = (aimc.convert(digital, hardware, seed=3) for digital in (linear, conv))
    images = torch.randn(100, *shape)
    x = images[..., 0, 0] if name == "strided" else images.flatten(1)
    with torch.no_grad():
        y, z = a.train()(x), b.train()(images).flatten(1)
        assert float((z - y).abs().mean()) < 1e-3  # but for a step of the converter here and there
        clean = linear(x)
        assert float((y - clean).std()) == pytest.approx(float((z - clean).std()), rel=1e-3)
        assert float((y - clean).std()) > 0.05
    first, second = (aimc.program(net.eval(), seed=7, compensation=compensation) for net in (a, b))

    def matrix_of(weight):
        return weight.flatten(1).t() if name == "transposed" else weight.flatten(1)

    with first.at(1e7), second.at(1e7), torch.no_grad():
        assert_close("devices", second.conductances()[""], first.conductances()[""])
        assert_close("weights", matrix_of(second.weights()[""]), first.weights()[""], rtol=1e-5, atol=1e-7)
        factors = second.compensation_factors()[""]
        assert_close("factors", factors, first.compensation_factors()[""], rtol=1e-5)
        assert float(factors.min()) > 1.2
        late = [(net(v).flatten(1) - clean + x @ matrix.t()).abs().mean() for net, v in ((a, x), (b, images))]
    with first.at(0), second.at(0), torch.no_grad():
        early = [
            (net(v).flatten(1) - clean + x @ matrix.t()).abs().mean() for net, v in ((a, x), (b, images))
        ]
    for now, before in zip(late, early):
        assert float(now / before) == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- at


@torch.no_grad()
def test_leaving_restores_weights_time_and_numbering():
    net, twin = make(), make()
    chip = aimc.program(net, seed=7)
    before = {n: p.clone() for n, p in net.state_dict().items()}
    assert chip.time == 0
    net(X), twin(X)
    with chip.at("1h") as inside:
        assert inside is chip and chip.time == 3600
        seen = net(X)
        assert not torch.equal(seen, twin(X))
    assert_close("reads before do not matter", seen, outputs(twin, aimc.program(twin, seed=7), ("1h",))["1h"])
    twin = make()
    twin(X)
    assert chip.time == 0
    assert_close("reads go on as if nothing had happened", net(X), twin(X))
    after = net.state_dict()
    for name in before:
        if not name.endswith("analog_state"):
            assert_close(name, after[name], before[name])


@torch.no_grad()
def test_an_exception_restores_too():
    net, twin = make(), make()
    chip = aimc.program(net, seed=7)
    with pytest.raises(KeyError), chip.at("1h"):
        net(X)
        raise KeyError
    assert chip.time == 0
    assert_close("clean again", net(X), twin(X))


@torch.no_grad()
def test_a_network_holds_the_chip_of_one_thread():
    net, x = make(), torch.randn(3, 24)
    first, second = aimc.program(net, seed=1), aimc.program(net, seed=2)
    with torch.no_grad(), concurrent.futures.ThreadPoolExecutor(1) as other:

        def read(chip):
            with torch.no_grad(), chip.at("1y"):
                return net(x)

        expected = other.submit(read, second).result()
        with first.at("1y"):
            y = net(x)
        with first.at("1y"):
            with pytest.raises(AimcError, match="layer '0': another thread has a chip .*copy.deepcopy"):
                other.submit(read, second).result()
            assert torch.equal(net(x), y)
            with pytest.warns(UserWarning, match="does not take along"):
                twin = copy.deepcopy(net)  # a copy is nobody's
            twins = aimc.program(twin, seed=2)

            def read_twin():
                with torch.no_grad(), twins.at("1y"):
                    return twin(x)

            assert torch.equal(other.submit(read_twin).result(), expected)
        assert torch.equal(other.submit(read, second).result(), expected)


def test_nested_times():
    net = make()
    chip, other = aimc.program(net, seed=7), aimc.program(net, seed=8)
    alone = outputs(net, chip, ("1h", "1y")) | {"other": outputs(net, other, ("1h",))["1h"]}
    with chip.at("1h"):
        with chip.at("1y"):
            assert chip.time == 31536000
            assert_close("inner", net(X), alone["1y"])
        assert chip.time == 3600
        with other.at("1h"):
            assert_close("another chip", net(X), alone["other"])
        assert_close("outer again", net(X), alone["1h"])


@torch.no_grad()
def test_training_afterwards_starts_from_the_clean_weights():
    net = make(PLAIN.replace(training=None))
    clean = {n: m.weight.clone() for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    chip = aimc.program(net, seed=7)
    with chip.at("1y"):
        net(X)
    net.train()
    for name, weight in clean.items():
        assert torch.equal(net.get_submodule(name).weight, weight)
    digital = aimc.to_digital(net)
    assert float((net(X) - digital(X)).abs().max()) < 1.0 < float(digital(X).abs().max()) + 1


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["copy", "pickle"]
)
@torch.no_grad()
def test_a_copy_made_inside_is_of_the_network_alone(way):
    net = make()
    clean = net(X)
    chip = aimc.program(net, seed=7)
    with chip.at("1h"), chip.at("1y"):
        aged = net(X)
        net(X)
        with pytest.warns(UserWarning, match="does not take along the chip"):
            twin = way(net)
    assert not torch.equal(aged, clean)
    assert torch.equal(twin(X), net(X))  # its second batch as well
    twin.train()(X)


@torch.no_grad()
def test_another_thread_does_not_compute_with_the_chip():
    net = make()
    chip = aimc.program(net, seed=7)
    with concurrent.futures.ThreadPoolExecutor(1) as other, chip.at("1y"):
        with pytest.raises(AimcError, match="layer '0': another thread has a chip in place"):
            other.submit(lambda: net(X)).result()
        with pytest.warns(UserWarning, match="does not take along"):
            twin = copy.deepcopy(net)
        other.submit(lambda: twin(X)).result()


def test_wrappers_of_torch_change_no_device():
    net = make()
    chip = aimc.program(net, seed=7)
    inner = copy.deepcopy(net)
    inner[0] = torch.compile(inner[0], backend="eager")
    wrapped = [
        torch.compile(net, backend="eager"), nn.DataParallel(net), torch.optim.swa_utils.AveragedModel(net),
        nn.DataParallel(torch.compile(net, backend="eager")), inner,
    ]  # fmt: skip
    for one in wrapped:
        again = aimc.program(one, seed=7)
        assert (
            again.fingerprint() == chip.fingerprint()
            and again.conductances().keys() == chip.conductances().keys()
        )


def test_training_mode_is_refused_while_a_chip_is_in_place():
    net = make()
    with aimc.program(net, seed=7).at("1h"):
        net.train()
        with pytest.raises(AimcError, match="training mode") as caught:
            net(X)
        assert caught.value.layer == "0"
        net.eval()
        net(X)
    net.train()
    net(X)


def test_gradients_pass_the_chip_but_not_into_it():
    net = make()
    x = X.clone().requires_grad_()
    with aimc.program(net, seed=7).at("1h"):
        net(x).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    assert all(m.weight.grad is None for m in net.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("time", [-1, "1 fortnight", float("nan"), float("inf"), None, True])
def test_times_that_are_none(time):
    chip = aimc.program(make(), seed=7)
    with pytest.raises(AimcError) as caught, chip.at(time):
        pass
    assert caught.value.field == "time"


def test_drift_of_cells_without_drift_is_refused_by_name():
    net = make(aimc.presets.ideal())
    chip = aimc.program(net, seed=7)
    with chip.at(0):
        net(X)
    with pytest.raises(AimcError, match="does not drift") as caught, chip.at("1h"):
        pass
    assert (caught.value.layer, caught.value.field) == ("0", "cell")
    with pytest.raises(AimcError, match="layer '0', field 'cell'"):
        aimc.evaluate_over_time(net, lambda n: 1.0, times=("1h",), chips=1)


def test_a_network_that_changed_is_refused():
    net = make()
    chip = aimc.program(net, seed=7)
    net[2] = nn.Linear(16, 4)
    with pytest.raises(AimcError, match="2"), chip.at("1h"):
        pass


def test_what_cannot_be_programmed():
    with pytest.raises(AimcError, match="no analog layer"):
        aimc.program(nn.Linear(2, 2))
    with pytest.raises(AimcError) as caught:
        aimc.program(make(), compensation="gdc")  # type: ignore[arg-type]
    assert caught.value.field == "compensation"
    net = make()
    net[2].weight.data[0, 0] = float("nan")
    with pytest.raises(AimcError) as caught:
        aimc.program(net)
    assert caught.value.layer == "2"


# ---------------------------------------------------------------- files

KINDS = {
    "standard": (PLAIN, LeastSquares()),
    "faults": (PLAIN.replace(cell=PCM(faults=Faults(random=0.1))), MeanAbs(averages=2)),
    "no_compensation": (PLAIN, None),
    "single": (aimc.presets.single_exponent_pcm(), LeastSquares(per="column")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path):
    hardware, compensation = KINDS[kind]
    net = make(hardware)
    chip = aimc.program(net, seed=2**63 + 5, compensation=compensation)
    path = tmp_path / "chip.safetensors"
    chip.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["chip.safetensors"]
    twin = make(hardware)
    loaded = Chip.load(path, twin)
    assert loaded.fingerprint() == chip.fingerprint()
    assert (loaded.seed, loaded.compensation, loaded.time) == (chip.seed, compensation, 0.0)
    assert_same(outputs(twin, loaded), outputs(net, chip))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "chip.safetensors"
    aimc.program(make(), seed=7).save(path)
    return path


def rewrite(path, change_metadata=None, change_tensors=None):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    if change_metadata is not None:
        change_metadata(metadata)
    if change_tensors is not None:
        change_tensors(tensors)
    save_file(tensors, path, metadata)


def refused(path, net=None):
    with pytest.raises(AimcError) as caught:
        Chip.load(path, net if net is not None else make())
    return caught.value


@pytest.mark.parametrize("at", [-1, -1000, -4000])
def test_a_flipped_bit_is_noticed(saved, at):
    data = bytearray(saved.read_bytes())
    data[at] ^= 0x10
    saved.write_bytes(bytes(data))
    error = refused(saved)
    assert "damaged" in str(error) and str(saved) in str(error)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_torn_file_is_refused(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    assert str(saved) in str(refused(saved))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(seed="8"),
        lambda m: m.update(fingerprint="0" * 64),
        lambda m: m.pop("fingerprint"),
        lambda m: m.pop("seed"),
        lambda m: m.update(seed="seven"),
        lambda m: m.update(layers="{"),
        lambda m: m.update(compensation="{}"),
        lambda m: m.update(version="new"),
    ],
)
def test_damaged_metadata_is_refused(saved, change):
    rewrite(saved, change)
    assert str(saved) in str(refused(saved))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("0/conductance"),
        lambda t: t.pop("2/scale"),
        lambda t: t.pop("0/baseline1"),
        lambda t: t["0/exponent"].zero_(),
        lambda t: t.update({"0/conductance": t["0/conductance"][:, :3].contiguous()}),
        lambda t: t.update({"0/exponent": t["0/exponent"][:, :3].contiguous()}),
    ],
)
def test_damaged_tensors_are_refused(saved, change):
    rewrite(saved, None, change)
    error = refused(saved)
    assert str(saved) in str(error) or error.layer == "0"


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    assert str(path) in str(refused(path))
    save_file({"x": torch.ones(2)}, path)
    assert "not a chip" in str(refused(path))
    path.write_text("hello")
    assert str(path) in str(refused(path))


def test_newer_files_are_refused(saved):
    rewrite(saved, lambda m: m.update(version="2"))
    assert "newer" in str(refused(saved))


def test_other_networks_are_refused_by_name(saved):
    assert "4" in str(refused(saved, make(layers=3)))
    error = refused(saved, make(PLAIN.replace(**{"adc.bits": 6, "cell.t0": 30.0})))
    assert error.layer == "0" and "adc.bits: 8 -> 6" in str(error) and "cell.t0: 20.0 -> 30.0" in str(error)
    wide = aimc.convert(nn.Sequential(nn.Linear(24, 17), nn.ReLU(), nn.Linear(17, 4)), PLAIN).eval()
    error = refused(saved, wide)
    assert error.layer == "0" and error.shape == (2, 16, 24)
    assert "call aimc.set_hardware" in str(refused(saved, make(PLAIN.replace(cell=SingleExponentPCM()))))
    Chip.load(saved, make(PLAIN.replace(training=None)))  # training is no part of a chip


def test_a_file_that_cannot_be_written(tmp_path):
    chip = aimc.program(make(), seed=7)
    with pytest.raises(AimcError) as caught:
        chip.save(tmp_path / "no" / "where.safetensors")
    assert caught.value.field == "path"


def test_file_can_be_read_without_pickle(saved):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "aimc-chip" and set(json.loads(metadata["layers"])) == {"0", "2"}


# ---------------------------------------------------------------- calibration


@torch.no_grad()
def test_calibration_measures_what_the_digital_network_sends():
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(input_range=InputRange(mode="static"), **{"tile.rows": 12})
    net = make(hardware)
    with pytest.raises(AimcError) as caught:
        net(X)
    assert caught.value.field == "input_range"
    batches = [torch.randn(500, 24) * k for k in (1.0, 1.5)]
    x = torch.cat(batches)
    hidden = aimc.to_digital(net)[:2](x)

    def expected(measure):
        return [
            torch.stack([measure(v[:, a:b]) for a, b in net[i].layout.splits])
            for i, v in ((0, x), (2, hidden))
        ]

    for method, measure in (
        ("max", lambda v: v.abs().max()),
        ("std", lambda v: 3 * v.std(correction=0)),
        ("quantile", lambda v: torch.quantile(v.abs().flatten(), 0.999)),
        ("moving_std", lambda v: sum(3 * part.std(correction=0) for part in v.chunk(2)) / 2),
        ("moving_quantile", lambda v: sum(p.abs().flatten().quantile(0.999) for p in v.chunk(2)) / 2),
    ):
        aimc.calibrate(net, batches, method=method, **({"quantile": 0.999} if "quantile" in method else {}))
        for i, values in zip((0, 2), expected(measure), strict=True):
            assert_close(
                method, net[i].input_range.detach(), values, rtol=0.01 if "quantile" in method else 1e-4
            )
    assert not net.training
    with pytest.raises(AimcError, match="did you mean 'moving_std'"):
        aimc.calibrate(net, batches, method="moving_sdt")
    for method, field, value in (
        ("quantile", "stds", 2.0),
        ("max", "quantile", 0.9),
        ("std", "quantile", 0.9),
    ):
        for refusing in (lambda **k: aimc.calibrate(net, batches, **k), Calibration):
            with pytest.raises(AimcError, match="does nothing with the method") as caught:
                refusing(**{"method": method, field: value})
            assert caught.value.field == field


def test_chips_read_with_noise_of_their_own():
    """Chips and times differ in their reads even where their cells are perfect."""
    hardware = aimc.presets.ideal().replace(output_noise=0.5)
    net = aimc.convert(nn.Linear(6, 4), hardware, seed=0).eval()
    x, reads = torch.ones(3, 6), []
    for seed in (1, 2, 1):
        with aimc.program(net, seed=seed).at(0.0):
            reads.append(net(x))
    assert torch.equal(reads[0], reads[2]) and not torch.equal(reads[0], reads[1])
    other = aimc.convert(nn.Linear(6, 4), hardware, seed=99).eval()
    other.load_state_dict({n: v for n, v in net.state_dict().items() if n in ("weight", "bias")})
    with aimc.program(other, seed=1).at(0.0):
        assert torch.equal(other(x), reads[0])  # a matter of the chip, not of the network's training noise


def test_a_chip_holds_its_digital_side(tmp_path):
    net = make()
    chip = aimc.program(net, seed=3)
    chip.save(tmp_path / "chip.safetensors")
    with chip.at("1h"):
        before = net(X)
    with torch.no_grad():
        for layer in aimc.analog_layers(net).values():
            layer.bias += 1.0
            layer.weight *= 2.0
            layer.input_range *= 3.0
    for again in (chip, aimc.Chip.load(tmp_path / "chip.safetensors", net)):
        with again.at("1h"):
            assert torch.equal(net(X), before)


def test_a_chip_refuses_other_hardware_and_crossed_contexts():
    net = make()
    one, two = aimc.program(net, seed=1), aimc.program(net, seed=2)
    first, second = one.at("1h"), two.at("1y")
    first.__enter__()
    second.__enter__()
    with pytest.raises(aimc.AimcError, match="another order"):
        first.__exit__(None, None, None)
    net = make()
    chip = aimc.program(net, seed=1)
    aimc.set_hardware(net, aimc.presets.ideal())
    with pytest.raises(aimc.AimcError, match="hardware has changed"), chip.at("1h"):
        pass


def test_calibration_sees_every_feature_whatever_the_batches():
    """Also one whose place is hidden from a regular thinning."""
    x = torch.rand(1000, 1024, generator=torch.Generator().manual_seed(0))
    x[:, 1] *= 10
    expected = float(x.flatten().kthvalue(round(0.99995 * x.numel())).values)
    for size in (1000, 96):
        net = aimc.convert(nn.Linear(1024, 4), aimc.presets.pcm().replace(**{"tile.rows": 1024}), seed=0)
        aimc.calibrate(net, x.split(size))
        assert net.input_range.item() == expected
    with pytest.raises(AimcError, match="moving_quantile"):
        aimc.calibrate(net, x.split(500), quantile=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_chip_computes_in_the_type_of_the_network(dtype):
    digital = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)
    net = aimc.convert(digital, aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0).eval()
    x = torch.randn(2, 8).to(dtype)
    with aimc.program(net, seed=1).at("1h"):
        assert net(x).dtype == dtype and bool(net(x).isfinite().all())


def test_hardware_does_not_change_under_a_chip():
    net = _ranged()
    chip = aimc.program(net, seed=1)
    with torch.no_grad(), chip.at("1d"):
        before = net(X)
        with pytest.raises(AimcError, match="a chip is in place"):
            aimc.set_hardware(net, aimc.presets.pcm())
        assert before.shape == net(X).shape
    aimc.set_hardware(net, aimc.presets.pcm())


@pytest.mark.parametrize("method, stds", [("std", -1.0), ("std", 0.0), ("moving_std", float("nan"))])
def test_calibration_by_no_standard_deviations(method, stds):
    with pytest.raises(AimcError, match="stds.*positive"):
        aimc.calibrate(_ranged(), [X], method=method, stds=stds)


def test_calibration_takes_arguments_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(24, 3)

        def forward(self, *, pixels):
            return self.layer(pixels)

    net = aimc.convert(Named(), aimc.presets.pcm(), seed=0)
    aimc.calibrate(net, [{"pixels": X}], method="max")
    assert net.layer.input_range.item() == float(X.abs().max())


def test_a_chip_from_an_inference_mode_can_be_used_outside():
    net = _ranged()
    with torch.inference_mode():
        chip = aimc.program(net, seed=1)
    x = X.clone().requires_grad_()
    with chip.at("1d"):
        net(x).sum().backward()
    assert x.grad is not None and chip.fingerprint() == aimc.program(net, seed=1).fingerprint()


def _ranged():
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 2.0})
    return aimc.convert(nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)), hardware, seed=0).eval()
