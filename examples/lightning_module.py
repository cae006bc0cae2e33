"""Both halves in Lightning: a hardware-aware network, and one whose weights live in cells of 20 states.

Needs ``pip install lightning``; takes some seconds on the embedded digits.
"""

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import aimc
from aimc.models import MLP

IN_CELLS = aimc.presets.reram(states=20, algorithm=aimc.algorithms.Residual(tiles=4))


class Digits(lightning.LightningModule):
    """An analog network, trained as any other."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        return aimc.optim.wrap(optimizer, self.net) if aimc.pulsed_layers(self.net) else optimizer


def main(images: int = 1000, epochs: int = 3) -> dict[str, float]:
    """Train both and return their test accuracies, the first one's on a chip after a year."""
    train = aimc.data.load("mnist_small", "train", limit=images)
    test = aimc.data.load("mnist_small", "test", limit=200)
    accuracy = aimc.Accuracy(test.inputs, test.targets)
    found = {}
    for name, hardware in (("hardware-aware", aimc.presets.pcm()), ("in cells", IN_CELLS)):
        lightning.seed_everything(0, verbose=False)
        net = aimc.convert(MLP((784, 64, 10)), hardware, seed=0)
        module = Digits(net)
        loader = DataLoader(TensorDataset(train.inputs, train.targets), batch_size=20, shuffle=True)
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        net.eval()
        if name == "hardware-aware":
            with aimc.program(net, seed=1).at("1y"):
                found[f"{name}, after a year"] = accuracy(net)
        else:
            found[name] = accuracy(net)
    return found


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {100 * value:.1f} %")
