"""Modules of plain PyTorch that are no language models: a ResNet, recurrent and toy models, a UNet.

The ResNet is written as torchvision writes it: ReLUs in place, one of them called twice in a block,
and a sum in place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.downsample = None
        if stride != 1 or given != made:
            skip = nn.Conv2d(given, made, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Images to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 8, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Recurrent(nn.Module):
    """A language model without layers: ids to scores."""

    def __init__(self, ids: int = 20) -> None:
        super().__init__()
        self.table = nn.Embedding(ids, 6)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True)
        self.head = nn.Linear(8, ids)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(ids))[0])


class Noise(NamedTuple):
    """What a `UNet` returns."""

    sample: Tensor
    scale: float


class UNet(nn.Module):
    """A denoiser with two inputs, called as those of diffusers are."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 4)
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.mid = nn.ModuleDict({"resnet": nn.Conv2d(4, 4, 3, 1, 1)})
        self.up = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, sample: Tensor, timestep: Tensor, scale: float = 1.0) -> Noise:
        step = self.time(timestep.float()[:, None])[:, :, None, None]
        down = torch.relu(self.down(sample))
        mid = self.mid["resnet"](input=down + step) if scale < 0 else None
        mid = self.mid["resnet"](down + step) if mid is None else mid
        return Noise(self.up(torch.cat([mid, down], 1)) * scale, scale)


class Superposition(nn.Module):
    """The toy model of superposition: features through a bottleneck, by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(2, 5))
        self.hidden, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.hidden(x @ self.W.T) @ self.W)


class Encoder(nn.Module):
    """PyTorch's own transformer layers on vectors; the output is a mapping."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.note = nn.Linear(8, 3), Note()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"scores": self.head(self.layers(x)), "note": self.note("seen")}


class Note(nn.Module):
    """A module without tensors."""

    def forward(self, text: str) -> str:
        return text


def made(model: nn.Module) -> Any:
    """The same model with weights from a seed, running statistics included, in eval mode."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, held in model.state_dict().items():
            if held.is_floating_point():
                noise = torch.randn(held.shape, generator=generator) * 0.4
                held.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
    return model.eval()
