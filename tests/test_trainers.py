"""The training loops of other libraries stop, resume and keep their best as with a torch network, in both halves."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc

HALVES = {
    "hardware-aware": aimc.presets.pcm(),
    "ttv2": aimc.presets.reram(states=20, algorithm=aimc.algorithms.TikiTakaV2()),
    "residual": aimc.presets.reram(states=20, algorithm=aimc.algorithms.Residual(tiles=3)),
}
halves = pytest.mark.parametrize("half", HALVES)


def same_state(one: nn.Module, other: nn.Module) -> list[str]:
    """Names whose values differ."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys() and any("analog" in name for name in a)
    return [name for name in a if not torch.equal(a[name], b[name])]


def optimizer_of(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5 * (not aimc.pulsed_layers(net)))
    return aimc.optim.wrap(optimizer, net) if aimc.pulsed_layers(net) else optimizer


@pytest.fixture
def trainer_of(tmp_path):
    """``make(half, folder, steps, **settings)``: the Trainer of transformers with a small BERT."""
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install 'aimc[language]'"
    )
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'aimc[language]'")
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")

    def sentences(count: int, seed: int):
        words = torch.randint(2, 50, (count, 9), generator=torch.Generator().manual_seed(seed))
        labels = ((words < 26).sum(1) >= 5).long()
        return datasets.Dataset.from_dict({"input_ids": words.tolist(), "labels": labels.tolist()})

    def make(half: str, folder: str, steps: int, **settings):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                initializer_range=0.2,
            )
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights beyond the bounds of some devices
            net = aimc.convert(model, HALVES[half], seed=0)
        return transformers.Trainer(
            model=net,
            args=transformers.TrainingArguments(
                str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=8, use_cpu=True,
                report_to="none", disable_tqdm=True, logging_strategy="no", save_steps=4, save_strategy="steps",
                **settings,
            ),
            train_dataset=sentences(80, 0),
            eval_dataset=sentences(40, 1),
            optimizers=(optimizer_of(net, 0.1), None),
        )  # fmt: skip

    return make


@halves
@pytest.mark.filterwarnings("ignore:.*pin_memory", "ignore:the learning rate has changed")
def test_the_trainer_of_transformers_resumes_to_the_bit(half, trainer_of, tmp_path):
    whole = trainer_of(half, "whole", 8)
    whole.train()
    again = trainer_of(half, "again", 8)
    with torch.no_grad():
        for p in again.model.parameters():
            if not isinstance(p, aimc.nn.CellWeight):
                p.mul_(0.5)  # nothing of it may be left
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert same_state(whole.model, again.model) == []


@halves
@pytest.mark.filterwarnings("ignore:.*pin_memory", "ignore:the learning rate has changed")
def test_the_trainer_of_transformers_ends_with_its_best(half, trainer_of, tmp_path):
    trainer = trainer_of(
        half, "best", 8, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True,
        metric_for_best_model="eval_score", greater_is_better=False,
    )  # fmt: skip
    scores, kept = iter([0.0, 1.0]), {}

    def score(_prediction):
        if not kept:
            kept.update({n: v.clone() for n, v in trainer.model.state_dict().items()})
        return {"score": next(scores)}  # the first one is the best

    trainer.compute_metrics = score
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "best" / "checkpoint-4")
    found = trainer.model.state_dict()
    assert [n for n in kept if not torch.equal(kept[n], found[n])] == []


@halves
@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_to_the_bit(half, tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = aimc.convert(
                nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), HALVES[half], seed=0
            )

        def training_step(self, batch, index):
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return optimizer_of(self.net, 0.1)

    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(24, 6, generator=generator), torch.randn(24, 2, generator=generator)
    )

    def trained(epochs: int, resume: str | None = None) -> nn.Module:
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    whole = trained(4)
    trained(2)
    assert same_state(whole, trained(4, str(tmp_path / "2.ckpt"))) == []
