"""Weights of a model that vLLM runs: fetched by name, or all at once for what reads the modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lensbridge.engines.vllm.workers import Workers
from lensbridge.hooked_model import HookedModel
from lensbridge.tensors.layer_stack import LayerStack
from lensbridge.weights.components import Components


class FetchedWeights(HookedModel):
    """Weights by name are fetched one by one. Views of parts (`blocks[0].attn`, `unembed`) and what
    computes with them fetch all weights once, into the HuggingFace model in this process.
    """

    llm: Any
    _workers: Workers
    _filled = False

    def weight(self, name: str) -> Tensor:
        """A weight by its name, from vLLM's worker: a copy.

        Raises:
            WeightError: the model has no such weight.
        """
        self._require(name)
        return self._workers.ask("weight", name=name)[1]["weight"]

    def _require(self, name: str) -> None:
        if name not in self._components.weights:
            self._known(name)  # it raises

    def weight_stack(self, name: str) -> LayerStack:
        """One weight of every layer, by its name in a block; each is fetched when it is read.

        Raises:
            WeightError: not every layer has it.
        """
        prefix, count = self.native.main.prefix, self.native.sizes.n_layers
        names = [f"{prefix}.{i}.{name}" for i in range(count)]
        for one in names:
            self._require(one)
        return LayerStack.of([partial(self.weight, one) for one in names])

    @property
    def weight_names(self) -> list[str]:
        """The names of all weights."""
        return list(self._components.weights)

    @property
    def W_E(self) -> Tensor:
        """Shapes: `[d_vocab, d_model]`"""
        return self.weight("embed.W_E")

    @property
    def W_pos(self) -> Tensor:
        """Shapes: `[n_ctx, d_model]`"""
        return self.weight("pos_embed.W_pos")

    @property
    def W_U(self) -> Tensor:
        """Shapes: `[d_model, d_vocab]`"""
        return self.weight("unembed.W_U")

    @property
    def b_U(self) -> Tensor:
        """Shapes: `[d_vocab]`"""
        return self.weight("unembed.b_U")

    @property
    def components(self) -> Components:
        """Every part under the field's names, with all weights fetched."""
        self.fetch_weights()
        return self._components

    @torch.no_grad()
    def fetch_weights(self) -> None:
        """Copy all weights from vLLM into the HuggingFace model in this process, once.

        Views of parts and the logit lens read them there. They take as much memory as in vLLM.
        """
        if self._filled:
            return
        found = {name: self.weight(name) for name in self._components.weights}
        self.hf_model.to_empty(device="cpu")
        for parameter in self.hf_model.parameters():
            parameter.zero_()  # reading one proves what its module computes: it takes real numbers
        self._filled = True
        for name, value in found.items():
            own = self._components.weights[name].read()
            if own.shape == value.shape and not _is_absent_bias(name, value):
                own.copy_(value)


def _is_absent_bias(name: str, value: Tensor) -> bool:
    """Whether it may be a bias that the model does not have, which reads as zeros."""
    return name.rpartition(".")[2].startswith("b") and not bool(value.any())
