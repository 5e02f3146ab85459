"""The update of benchmarks/convolutions.py in PyTorch, channels last, on one thread: the same network, loss and Adam.

    build/torch/bin/python benchmarks/peers/impala_torch.py --batch 16

Reads from its input how many updates to run, line by line, and answers with their seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

SIDE, INPUTS, NUM_ACTIONS = 84, 4, 18
SECTIONS, BLOCKS, DENSE = (16, 32, 32), 2, 256


class Block(nn.Module):
    """x + convolution(relu(convolution(relu(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


class Network(nn.Module):
    """Sections, a layer of 256, and one layer for policy and value."""

    def __init__(self):
        super().__init__()
        layers, inputs, side = [], INPUTS, SIDE
        for channels in SECTIONS:
            # TensorFlow's SAME at stride 2: an even side is padded behind alone, an odd one on both sides.
            pool = nn.MaxPool2d(3, 2, padding=side % 2, ceil_mode=side % 2 == 0)
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), pool, *(Block(channels) for _ in range(BLOCKS))]
            inputs, side = channels, -(-side // 2)
        self.sections = nn.Sequential(*layers)
        self.dense = nn.Linear(side * side * inputs, DENSE)
        self.last = nn.Linear(DENSE, NUM_ACTIONS + 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.sections(images.float() / 255)).flatten(1)
        return self.last(functional.relu(self.dense(x)))


def main() -> None:
    """Serve updates until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = Network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)
    images = torch.randint(0, 256, (options.batch, INPUTS, SIDE, SIDE), dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    actions, goals = torch.randint(0, NUM_ACTIONS, (options.batch,)), torch.randn(options.batch)
    for line in sys.stdin:
        wall, processor, loss = [], [], torch.zeros(())
        for _ in range(int(line)):
            began, used = time.perf_counter(), time.process_time()
            out = network(images)
            loss = functional.cross_entropy(out[:, :-1], actions) + (out[:, -1] - goals).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            wall.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
        print(json.dumps({"wall": wall, "processor": processor, "loss": loss.item()}), flush=True)


if __name__ == "__main__":
    main()
