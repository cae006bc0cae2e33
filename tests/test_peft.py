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


def test_adapters_learn_above_frozen_noisy_weights(case):
    net, adapted = case
    analog = adapted(aimc.convert(net, PCM, seed=0)).train()
    before = {n: p.detach().clone() for n, p in analog.named_parameters()}
    optimizer, losses = torch.optim.AdamW(analog.parameters(), lr=0.03), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = analog(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
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
    cells = aimc.presets.reram(1000, w_max_dtod=0.0, w_min_dtod=0.0)
    analog = aimc.convert(digital, cells, seed=0)
    assert_close("logits", analog(TOKENS).logits, digital(TOKENS).logits, atol=1e-5)
    assert not any("lora" in name for name in aimc.pulsed_layers(analog))
    optimizer = torch.optim.SGD([p for p in analog.parameters() if p.requires_grad], lr=0.1)
    before = {n: m.weight.detach().clone() for n, m in aimc.pulsed_layers(analog).items()}
    analog(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()  # no pulses: the cells are frozen
    assert all(
        torch.equal(m.weight, before[n]) for n, m in aimc.pulsed_layers(analog).items() if "base_layer" in n
    )
