"""A BERT trained hardware-aware by the Trainer of transformers, saved, loaded, and read from a chip after a year.

Needs ``pip install 'aimc[language]' accelerate``. The model is small and begins at random, the sentences are made here;
exchange ``model`` and ``sentences`` for your own.
"""

import tempfile

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import aimc


def sentences(count: int, seed: int) -> Dataset:
    """Eight words of 50; what counts is whether the first half of the vocabulary has the majority."""
    words = torch.randint(2, 50, (count, 9), generator=torch.Generator().manual_seed(seed))
    labels = ((words < 26).sum(1) >= 5).long()
    return Dataset.from_dict({"input_ids": words.tolist(), "labels": labels.tolist()})


def accuracy(prediction) -> dict[str, float]:
    """For the Trainer."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(count: int = 600, epochs: int = 8) -> dict[str, float]:
    """Train, save, load, and return test accuracies."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
    )
    analog = aimc.convert(model, aimc.presets.pcm(), seed=0)  # refuses to leave a matrix digital
    test = sentences(200, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=analog,
            args=TrainingArguments(
                folder, num_train_epochs=epochs, per_device_train_batch_size=20, learning_rate=3e-3, use_cpu=True,
                report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
            ),
            train_dataset=sentences(count, seed=0),
            eval_dataset=test,
            compute_metrics=accuracy,
        )  # fmt: skip
        trainer.train()
        found = {"in training": trainer.evaluate()["eval_accuracy"]}
        trainer.save_model(folder)  # a file of safetensors, hardware and all
        digital = BertForSequenceClassification.from_pretrained(folder)
        found["its digital weights"] = Trainer(
            model=digital, args=trainer.args, eval_dataset=test, compute_metrics=accuracy
        ).evaluate()["eval_accuracy"]
        with aimc.program(analog, seed=1).at("1y"):
            found["on a chip, after a year"] = trainer.evaluate()["eval_accuracy"]
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {100 * value:.1f} %")
