"""Adapters of Hugging Face PEFT: digital and trained, over weights that are frozen on tiles."""

from __future__ import annotations

import copy

import pytest
import torch

import aimc
from tests.helpers import assert_close

peft = pytest.importorskip("peft", reason="needs peft: pip install 'aimc[language]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'aimc[language]'")
transformers.logging.set_verbosity_error()

IDEAL = aimc.presets.ideal()
PCM = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
CELLS = aimc.presets.reram(1000, w_max_dtod=0.0, w_min_dtod=0.0)
TOKENS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2,
            initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.2,
        )
    )  # fmt: skip


NETS = {"GPT-2": (gpt2, ["c_attn", "c_proj"], True), "Llama": (llama, ["q_proj", "down_proj"], False)}


@pytest.fixture(params=NETS, ids=str)
def case(request):
    make, targets, lies_so = NETS[request.param]
    torch.manual_seed(0)
    net = make().eval()

    def adapted(module):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=lies_so)
        return peft.get_peft_model(module, config).eval()

    return net, adapted


def test_before_or_after_the_conversion(case):
    net, adapted = case
    digital = adapted(copy.deepcopy(net))
    expected = digital(TOKENS).logits
    assert float((expected - net(TOKENS).logits).detach().abs().max()) > 0.1
    for analog in (aimc.convert(digital, IDEAL), adapted(aimc.convert(net, IDEAL))):
        assert_close("logits", analog(TOKENS).logits, expected, atol=1e-5)
        assert_close("digital", aimc.to_digital(analog)(TOKENS).logits, expected, atol=1e-5)
        rows = aimc.coverage(analog).rows
        adapters = [row for row in rows if "lora" in row.name]
        assert len(adapters) in (8, 12) and {row.where for row in adapters} == {"excluded"}
        assert all(row.where == "analog" for row in rows if row.multiplies and row not in adapters)
        assert not any("lora" in name for name in aimc.analog_layers(analog))
        merged = analog.merge_and_unload()
        assert_close("merged onto the tiles", merged(TOKENS).logits, expected, atol=1e-5)
        assert aimc.coverage(merged).analog_share == 1.0


def losses_of(net, lr, steps):
    """What a training on the tokens comes by."""
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("first", ["conversion", "adapters"])
def test_adapters_learn_above_frozen_noisy_weights(case, first):
    net, adapted = case
    if first == "conversion":
        analog = adapted(aimc.convert(net, PCM, seed=0)).train()
    else:
        analog = aimc.convert(adapted(net), PCM, seed=0).train()
    assert all(p.requires_grad == ("lora" in n) for n, p in analog.named_parameters())
    before = {n: p.detach().clone() for n, p in analog.named_parameters()}
    losses = losses_of(analog, lr=0.03, steps=40)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name, parameter in analog.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora" in name), name
    with torch.no_grad(), aimc.program(analog.eval(), seed=0).at("1d"):
        assert analog(TOKENS, labels=TOKENS).loss.item() < 0.9 * sum(losses[:5]) / 5


def test_above_weights_in_cells():
    torch.manual_seed(0)
    net = llama().eval()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    digital = peft.get_peft_model(copy.deepcopy(net), config).eval()
    analog = aimc.convert(digital, CELLS, seed=0)
    assert_close("logits", analog(TOKENS).logits, digital(TOKENS).logits, atol=1e-5)
    assert not any("lora" in name for name in aimc.pulsed_layers(analog))
    optimizer = torch.optim.SGD([p for p in analog.parameters() if p.requires_grad], lr=0.1)
    before = {n: m.weight.detach().clone() for n, m in aimc.pulsed_layers(analog).items()}
    analog(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()  # no pulses: the cells are frozen
    assert all(
        torch.equal(m.weight, before[n]) for n, m in aimc.pulsed_layers(analog).items() if "base_layer" in n
    )


VARIANTS = {
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "all of it": {"use_dora": True, "modules_to_save": ["lm_head"], "lora_bias": False, "lora_dropout": 0.0},
}


def varied(name, settings, net):
    _, targets, lies_so = NETS[name]
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=lies_so, **settings
    )
    model = peft.get_peft_model(net, config).eval()
    with torch.no_grad():  # magnitudes and heads begin as what they replace
        for parameter, value in model.named_parameters():
            if "magnitude" in parameter or "modules_to_save" in parameter:
                value.mul_(1.2)
    return model


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("name", NETS)
def test_variants_of_adapters(name, settings):
    torch.manual_seed(0)
    net = NETS[name][0]().eval()
    digital = varied(name, settings, copy.deepcopy(net))
    expected = digital(TOKENS).logits
    assert float((expected - net(TOKENS).logits).detach().abs().max()) > 0.1
    for analog in (aimc.convert(digital, IDEAL), varied(name, settings, aimc.convert(net, IDEAL))):
        assert_close("logits", analog(TOKENS).logits, expected, atol=1e-5)
        assert_close("digital", aimc.to_digital(analog)(TOKENS).logits, expected, atol=1e-5)
        rows = [row for row in aimc.coverage(analog).rows if row.multiplies]
        assert all(row.where == ("excluded" if "lora" in row.name else "analog") for row in rows)
        heads = [n for n in aimc.analog_layers(analog) if "modules_to_save" in n]
        assert len(heads) == ("modules_to_save" in settings)
        merged = analog.merge_and_unload()
        assert_close("merged onto the tiles", merged(TOKENS).logits, expected, atol=1e-5)
        assert aimc.coverage(merged).analog_share == 1.0


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("first", ["conversion", "adapters"])
def test_variants_learn_above_noisy_weights_and_meet_drift(name, first):
    torch.manual_seed(0)
    net = NETS[name][0]()
    if first == "conversion":
        analog = varied(name, VARIANTS["all of it"], aimc.convert(net, PCM, seed=0)).train()
    else:
        analog = aimc.convert(varied(name, VARIANTS["all of it"], net), PCM, seed=0).train()
    before = {n: p.detach().clone() for n, p in analog.named_parameters()}
    losses = losses_of(analog, lr=0.02, steps=30)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for parameter, value in analog.named_parameters():
        learns = "lora" in parameter or "modules_to_save.default.weight" in parameter
        if learns or "modules_to_save" not in parameter:  # ranges and gains of the new head may learn
            assert torch.equal(value, before[parameter]) != learns, parameter
    chip, logits = aimc.program(analog.eval(), seed=0, compensation=None), []
    for time in ("1s", "1y"):
        with torch.no_grad(), chip.at(time):
            logits.append(analog(TOKENS).logits)
    assert float((logits[1] - logits[0]).abs().max()) > 0.05


def test_an_adapter_that_multiplies_by_the_base_weight_is_an_error():
    """DoRA with dropout makes the product of the base weight a second time, digitally."""
    torch.manual_seed(0)
    analog = varied("Llama", {"use_dora": True, "lora_dropout": 0.5}, aimc.convert(llama(), PCM, seed=0))
    with torch.no_grad():
        analog(TOKENS)  # evaluation drops nothing, and needs no second product
    with pytest.raises(
        aimc.AimcError, match=r"linear by .*q_proj.base_layer.weight in .*lora_magnitude_vector"
    ):
        analog.train()(TOKENS)


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("hardware", [IDEAL, CELLS], ids=["inference", "in memory"])
def test_convolutions_before_or_after_the_conversion(hardware):
    torch.manual_seed(0)
    net, x = Convolutions(), torch.randn(2, 3, 8, 8)

    def adapted(module):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False)
        return peft.get_peft_model(module, config)

    digital = adapted(copy.deepcopy(net))
    for analog in (aimc.convert(digital, hardware), adapted(aimc.convert(net, hardware))):
        assert_close("output", analog(x), digital(x), atol=1e-5)
        assert {row.where for row in aimc.coverage(analog).rows if "lora" in row.name} == {"excluded"}
        assert_close("copy", copy.deepcopy(analog)(x), digital(x), atol=1e-5)
        assert_close("digital", aimc.to_digital(analog)(x), digital(x), atol=1e-5)
    analog(x).sum().backward()
    assert {n.split(".")[-3] for n, p in analog.named_parameters() if p.grad is not None} == {
        "lora_A",
        "lora_B",
    }
    if hardware is IDEAL:
        assert_close("merged onto the tiles", analog.merge_and_unload()(x), digital(x), atol=1e-5)


class Attending(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.head = torch.nn.MultiheadAttention(8, 2), torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.attend(x, x, x)[0])


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=4, max_position_embeddings=32,
        )
    )  # fmt: skip


IN_WEIGHTS = {
    "attention": (Attending, {"target_modules": ["attend"]}, "*attend", lambda: torch.randn(5, 2, 8)),
    "experts": (
        mixtral, {"target_modules": [], "target_parameters": ["experts.down_proj"]}, "*experts", lambda: TOKENS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_WEIGHTS)
def test_adapters_that_add_to_weights_are_refused_with_a_way_out(name):
    torch.manual_seed(0)
    make, settings, pattern, inputs = IN_WEIGHTS[name]
    net, x = make().eval(), inputs()

    def adapted(module):
        return peft.get_peft_model(module, peft.LoraConfig(r=2, init_lora_weights=False, **settings)).eval()

    digital = adapted(copy.deepcopy(net))
    with pytest.raises(aimc.AimcError, match=rf"layer '.*{pattern[1:]}': an adapter of PEFT .*digital=\('"):
        aimc.convert(digital, IDEAL)
    with pytest.raises(aimc.AimcError, match=r"With an adapter of PEFT.* choose other target_modules"):
        adapted(aimc.convert(net, IDEAL))(x)
    analog = aimc.convert(digital, IDEAL, digital=(pattern,))
    found, expected = (module(x) for module in (analog, digital))
    assert_close(
        "kept digital", getattr(found, "logits", found), getattr(expected, "logits", expected), atol=1e-5
    )


def test_adapters_in_buffers_come_after_passes_without_a_word():
    torch.manual_seed(0)
    analog = aimc.convert(llama(), PCM, seed=0)
    analog(TOKENS)
    adapted = peft.get_peft_model(analog, peft.VeraConfig(r=2, target_modules=["q_proj"]))
    adapted.train()(TOKENS)
    adapted.eval()(TOKENS)
    aimc.program(adapted, seed=0)
    rows = {row.where for row in aimc.coverage(analog).rows if "vera_A" in row.name or "vera_B" in row.name}
    assert rows == {"excluded"}
