"""A plain training loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lensbridge.compat.transformer_lens.opening import default_device
from lensbridge.errors import InputError


@dataclass
class HookedTransformerTrainConfig:
    """Options of `train`.

    Args:
        num_epochs: passes over the data.
        batch_size: rows in a step.
        lr: learning rate.
        seed: seed for the order of the rows.
        momentum: momentum of SGD.
        max_grad_norm: gradients are clipped to this norm; None does not clip.
        weight_decay: weight decay of AdamW and SGD.
        optimizer_name: "Adam", "AdamW" or "SGD".
        device: where to train; None means a GPU if there is one.
        warmup_steps: number of steps over which the learning rate rises.
        save_every: save the weights every so many steps.
        save_dir: where to save them.
        wandb: refused; write your own loop to log what you need.
        wandb_project_name: as `wandb`.
        print_every: print the loss every so many steps; None prints nothing.
        max_steps: end an epoch after so many steps.
    """

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"
    device: Any = None
    warmup_steps: int = 0
    save_every: int | None = None
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50
    max_steps: int | None = None

    def optimizer(self, model: nn.Module) -> optim.Optimizer:
        """The optimizer that was named.

        Raises:
            InputError: an unknown name.
        """
        decay = self.weight_decay or 0.0
        if self.optimizer_name in ("Adam", "AdamW"):
            kind = optim.Adam if self.weight_decay is None else optim.AdamW
            return kind(model.parameters(), lr=self.lr, weight_decay=decay)
        if self.optimizer_name == "SGD":
            return optim.SGD(
                model.parameters(), lr=self.lr, weight_decay=decay, momentum=self.momentum
            )
        raise InputError(
            f"optimizer_name is 'Adam', 'AdamW' or 'SGD', not {self.optimizer_name!r}."
        )


def train(model: Any, config: HookedTransformerTrainConfig, dataset: Any) -> Any:
    """Train a model on rows of ids, `{"tokens": [pos]}` each.

    Args:
        model: a model of this package.
        config: the options.
        dataset: the rows.

    Returns:
        The model.

    Raises:
        InputError: `wandb`, or an unknown optimizer.
    """
    if config.wandb:
        raise InputError("wandb=True: training here does not log; write your own loop for that.")
    torch.manual_seed(config.seed)
    model.to(config.device or default_device()).train()
    optimizer = config.optimizer(model)
    rise = optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    )
    loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    for epoch in tqdm(range(1, config.num_epochs + 1)):
        for step, batch in enumerate(loader):
            loss = _step(model, batch["tokens"], optimizer, config.max_grad_norm)
            rise.step()
            _report(model, config, epoch, step, float(loss))
            if config.max_steps is not None and step >= config.max_steps:
                break
    return model


def _step(model: Any, tokens: Any, optimizer: optim.Optimizer, max_norm: float | None) -> Any:
    loss = model(tokens.to(model.lens.device), return_type="loss")
    loss.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _report(
    model: Any, config: HookedTransformerTrainConfig, epoch: int, step: int, loss: float
) -> None:
    if config.print_every is not None and step % config.print_every == 0:
        print(f"Epoch {epoch} step {step} loss {loss:.4f}")
    if config.save_every is None or config.save_dir is None:
        return
    if step % config.save_every == 0:
        torch.save(model.state_dict(), Path(config.save_dir) / f"model_{epoch}_{step}.pt")
