"""Both halves in several processes: torchrun --nproc-per-node 2 examples/data_parallel.py

A hardware-aware network, and one whose weights live in cells of 20 states, each trained by all processes on parts of
every batch. They hold the same weights to the bit, and come to what one process comes to. On CPUs with gloo; with GPUs
say "nccl" and move network and batches to ``cuda:{LOCAL_RANK}``. Takes some seconds on the embedded digits.
"""

import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import aimc
from aimc.models import MLP

IN_CELLS = aimc.presets.reram(states=20, algorithm=aimc.algorithms.Residual(tiles=4))


def train(net: torch.nn.Module, data: TensorDataset, epochs: int) -> None:
    """The loop of any data-parallel training; cells need ``aimc.optim.wrap``."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if aimc.pulsed_layers(net):
        optimizer = aimc.optim.wrap(optimizer, net)
    parallel = DistributedDataParallel(net)
    sampler = DistributedSampler(data, seed=0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in DataLoader(data, batch_size=40 // dist.get_world_size(), sampler=sampler, drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(parallel(x), y).backward()
            optimizer.step()


def main(images: int = 800, epochs: int = 4) -> dict[str, float]:
    """Train both and return their test accuracies, the first one's on a chip after a year."""
    train_data = aimc.data.load("mnist_small", "train", limit=images)
    test = aimc.data.load("mnist_small", "test", limit=200)
    accuracy, found = aimc.Accuracy(test.inputs, test.targets), {}
    for name, hardware in (("hardware-aware", aimc.presets.pcm()), ("in cells", IN_CELLS)):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that not every device can hold
            net = aimc.convert(MLP((784, 64, 10)), hardware, seed=0)
        train(net, TensorDataset(train_data.inputs, train_data.targets), epochs)
        net.eval()
        if name == "hardware-aware":
            with aimc.program(net, seed=1).at("1y"):
                found[f"{name}, after a year"] = accuracy(net)
        else:
            found[name] = accuracy(net)
        for value in net.state_dict().values():
            first = value.clone()
            dist.broadcast(first, src=0)
            assert torch.equal(first, value), "the processes hold different networks"
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # torchrun starts as many processes as there are cores
    dist.init_process_group("gloo")
    try:
        accuracies = main()
        dist.barrier()  # gloo may abort a process that leaves while another still works
        if dist.get_rank() == 0:
            for name, value in accuracies.items():
                print(f"{name}, {dist.get_world_size()} processes: {100 * value:.1f} %")
    finally:
        dist.destroy_process_group()
