"""Random configs on random inputs: whatever a family's sizes and input are, the lens agrees with
the bare model under plain PyTorch hooks.

A few draws of a few families run in `make test`; `make conformance` runs every family.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import HookError, InputError, LoadError
from lensbridge.inputs.random import inputs_for
from lensbridge.native.calling import Calling
from lensbridge.spec import Architecture

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
HEADS += ("encoder_attention_heads",)
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_DIM = ("head_dim", "kv_channels", "d_kv")
WIDTH = ("hidden_size", "d_model", "n_embd", "word_embed_proj_dim")
NEURONS = ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")
LAYERS += ("encoder_layers", "num_decoder_layers")

FEW = [
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "GPTNeoXForCausalLM",
    "FalconForCausalLM",
    "BloomForCausalLM",
    "OPTForCausalLM",
    "PhiForCausalLM",
    "MixtralForCausalLM",
    "BertForMaskedLM",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "MambaForCausalLM",
]
"""The families of `make test`."""

DRAWS, MANY = 2, 8


def every_class() -> dict[str, Architecture]:
    """The classes with a head of every built-in description, by name."""
    found: dict[str, Architecture] = {}
    for description in lensbridge_architectures():
        for name in description.classes:
            headless = name.endswith("Model") and not name.endswith("LMHeadModel")
            if not headless:
                found.setdefault(name, description)
    return found


@dataclass(frozen=True)
class Draw:
    """One random config of a class and one random input.

    Args:
        name: the class.
        description: what describes it.
        seed: what everything is drawn from.
    """

    name: str
    description: Architecture
    seed: int

    @cached_property
    def dice(self) -> random.Random:
        return random.Random(f"{self.name} {self.seed}")

    def sizes(self) -> dict[str, int]:
        """Heads, widths and layers, under every name that a config may have for them."""
        dice = self.dice
        heads = dice.choice([1, 2, 3, 4, 6])
        kv_heads = dice.choice([n for n in range(1, heads + 1) if heads % n == 0])
        head_dim = dice.choice([4, 6, 8, 10])
        width = heads * (head_dim + dice.choice([0, 0, 2]))
        neurons, layers = dice.choice([7, 20, 33, 48]), dice.choice([1, 2, 3])
        drawn = ((HEADS, heads), (KV_HEADS, kv_heads), (HEAD_DIM, head_dim))
        drawn += ((WIDTH, width), (NEURONS, neurons), (LAYERS, layers))
        return {name: value for names, value in drawn for name in names}

    @cached_property
    def hf(self) -> Any:
        """The bare model; with the usual sizes where its class does not allow the drawn ones."""
        sizes, kernel = self.sizes(), self.dice.choice([None, "eager", "sdpa"])
        odd = ("layer_types", "layers_block_type")
        if self.description.name == "gemma3n":
            pytest.importorskip("timm")  # has its tower
        plain = tiny_model(self.description, self.name).config.to_dict()
        own = {name: value for name, value in sizes.items() if name in plain}
        if any(name in plain for name in odd):
            own = {name: value for name, value in own.items() if name not in LAYERS}
        if "attn_config" in plain:  # which has heads of its own
            own = {name: value for name, value in own.items() if name in (*NEURONS, *LAYERS)}
        fewer = {name: value for name, value in own.items() if name in (*NEURONS, *KV_HEADS)}
        for fields in (own, fewer, {}):
            for implementation in dict.fromkeys([kernel, None]):
                try:
                    return tiny_model(
                        self.description, self.name, kernel=implementation, seed=self.seed, **fields
                    )
                except Exception:  # whatever a config or a bare model makes of odd sizes
                    continue
        pytest.skip(f"no tiny {self.name}")

    @cached_property
    def training(self) -> bool:
        return self.dice.random() < 0.3

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Keywords of the bare forward: ids or embeddings, with or without padding, and others."""
        hf, dice = self.hf, self.dice
        accepted = Calling.of(hf).accepted
        length = dice.choice(LENGTHS)
        length = (
            max(length, 3) if hf.config.is_encoder_decoder else length
        )  # its decoder has two less
        given: dict[str, Any] = dict(inputs_for(hf, dice.choice([1, 2, 3]), length))
        takes = signature(hf.forward).parameters
        if set(given) <= {"input_ids", "decoder_input_ids"} and "input_ids" in given:
            self._pad(given, accepted)
            if dice.random() < 0.25 and "inputs_embeds" in takes:
                with torch.no_grad():
                    given["inputs_embeds"] = hf.get_input_embeddings()(given.pop("input_ids"))
        if "use_cache" in accepted and length > 1 and dice.random() < 0.5:
            given["use_cache"] = dice.random() < 0.5
        return given

    def _pad(self, given: dict[str, Any], accepted: frozenset[str]) -> None:
        rows, length = given["input_ids"].shape
        side = self.dice.choice(["none", "left", "right"])
        if "attention_mask" not in accepted or side == "none" or length < 3:
            return
        mask = torch.ones(rows, length, dtype=torch.long)
        for row in range(rows):
            count = self.dice.randrange(0, length - 1)
            mask[row, slice(0, count) if side == "left" else slice(length - count, None)] = 0
        given["attention_mask"] = mask
        if "position_ids" in accepted:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)

    def __str__(self) -> str:
        return f"{self.name} {self.seed}"


LENGTHS = [1, 2, 3, 5, 7, 9]


def own(value: Any) -> Any:
    """A copy, because some models write into the embeddings that they are given."""
    return value.clone() if isinstance(value, Tensor) else value


class Fuzz:
    """One draw behind the lens, and its bare runs."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.hf, self.inputs = draw, draw.hf, draw.inputs
        self.model = lensbridge.load(self.hf, architecture=draw.description)
        self.hf.train(draw.training)
        for module in self.hf.modules():
            if hasattr(module, "layerdrop"):
                module.layerdrop = 0.0  # whole layers that are not run
        main = next(n for n in ("input_ids", "inputs_embeds", *self.inputs) if n in self.inputs)
        self.first = self.inputs[main]
        self.more = {name: value for name, value in self.inputs.items() if name != main}

    def bare(self, **options: Any) -> Any:
        torch.manual_seed(5)
        with torch.no_grad():
            return self.hf(**{k: own(v) for k, v in self.inputs.items()}, **options)

    def run(self, *args: Any, **options: Any) -> Any:
        """A method of the lens on the same input and with the same seed."""
        method, *rest = args
        torch.manual_seed(5)
        with torch.no_grad():
            return method(own(self.first), *rest, **self.more, **options)

    @cached_property
    def logits(self) -> Tensor:
        output = self.bare()
        if "start_logits" in output:
            return torch.stack([output.start_logits, output.end_logits], dim=-1)
        return output["prediction_logits" if "prediction_logits" in output else "logits"]

    @property
    def simple(self) -> bool:
        """One stack of layers, each a module of its own that reads one stream."""
        native = self.model.native
        alone = not native.towers and native.main.residual_axes == "b p m"
        return alone and all(b.repeat is None and b.residual is not None for b in native.blocks)

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The layers, by the path that the description has."""
        count = len(self.model.native.blocks)
        return [self.hf.get_submodule(f"{self.draw.description.blocks}.{i}") for i in range(count)]

    @contextmanager
    def noting(self, kept: dict[str, Tensor]) -> Iterator[None]:
        """Plain hooks that note the stream before and after each layer."""

        def note(i: int) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                kept[f"{i} pre"] = args[0] if args else kwargs["hidden_states"]
                kept[f"{i} post"] = output if isinstance(output, Tensor) else output[0]

            return hook

        handles = [
            layer.register_forward_hook(note(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # --- what is held ------------------------------------------------------------------------

    def check(self) -> None:
        """Everything that holds for every model and input."""
        if self.model.native.unembed is None:
            pytest.skip("no head that is described")
        try:
            assert torch.equal(self.bare()[0], self.bare()[0])
        except (RuntimeError, ValueError, AssertionError):
            pytest.skip("the bare model does not run on this input, or not twice alike")
        before, hooks = self.hf.training, self.hooks_on()
        self.check_reading()
        self.check_edits()
        if self.simple:
            self.check_stream()
            self.check_replacing()
            self.check_spans()
            self.check_gradients()
        self.check_loss()
        assert self.hf.training == before
        assert self.hooks_on() == hooks

    def hooks_on(self) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.hf.modules())

    def check_reading(self) -> None:
        assert torch.equal(self.run(self.model), self.logits)
        names = self.readable()
        logits, cache = self.run(self.model.run_with_cache, names)
        assert torch.equal(logits, self.logits)
        self.cache = cache
        for at in self.prefixes():
            self.check_sums(at)
            if not self.hf.training:
                self.check_pattern(at)

    def readable(self) -> list[str]:
        """The points; in training mode without those that lie inside what is dropped out."""
        passed = self.model.hook_names
        if "inputs_embeds" in self.inputs:
            passed = [name for name in passed if "hook_embed" not in name]
        if "pixel_values" not in self.inputs:
            passed = [name for name in passed if not name.startswith(("vision.", "projector."))]
        if not self.hf.training:
            return passed
        added = [n for n in passed if n.endswith(("attn_out", "mlp_out"))]
        try:
            self.run(self.model.run_with_cache, added)
        except HookError:  # which says to call eval()
            return [n for n in passed if n not in added]
        return passed

    def prefixes(self) -> list[str]:
        blocks = enumerate(self.model.native.blocks)
        prefix = self.model.native.main.prefix
        return [f"{prefix}.{i}." for i, b in blocks if b.residual == "sequential"]

    def check_sums(self, at: str) -> None:
        """What branches add is what the stream grows by."""
        block = self.model.native.blocks[int(at.split(".")[-2])]
        if block.out_scale is not None or block.skip_norm:
            return  # the stream is no plain sum
        stream = self.cache[f"{at}hook_resid_pre"]
        steps = (("hook_attn_out", "hook_mixer_out"), "hook_resid_mid")
        more = (("hook_cross_attn_out",), "hook_resid_mid_cross")
        for outs, after in (steps, more, (("hook_mlp_out",), "hook_resid_post")):
            added = [self.cache[f"{at}{out}"] for out in outs if f"{at}{out}" in self.cache]
            if added and f"{at}{after}" in self.cache:
                torch.testing.assert_close(
                    stream + sum(added), self.cache[f"{at}{after}"], rtol=1e-4, atol=1e-4
                )
                stream = self.cache[f"{at}{after}"]

    def check_pattern(self, at: str) -> None:
        """Patterns mix values into z; rows sum to one."""
        attn = self.model.native.blocks[int(at.split(".")[-2])].attn
        names = [f"{at}attn.hook_{one}" for one in ("pattern", "v", "z")]
        if attn is None or attn.gated or attn.latent or any(n not in self.cache for n in names):
            return
        pattern, v, z = (self.cache[name] for name in names)
        if attn.sinks is None:
            sums = pattern.sum(-1)
            assert bool(((sums - 1).abs().lt(1e-4) | sums.eq(0)).all())
        if "past_key_values" not in self.inputs and v.shape[1] == pattern.shape[-1]:
            v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
            mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
            torch.testing.assert_close(mixed, z, rtol=1e-4, atol=1e-4)

    def check_stream(self) -> None:
        """The stream at each layer is what plain hooks see."""
        kept: dict[str, Tensor] = {}
        with self.noting(kept):
            self.bare()
        prefix = self.model.native.main.prefix
        for i in range(len(self.layers)):
            for side in ("pre", "post"):
                name = f"{prefix}.{i}.hook_resid_{side}"
                if name in self.cache:
                    assert torch.equal(self.cache[name], kept[f"{i} {side}"]), name

    def check_edits(self) -> None:
        """Writing back what was read changes nothing."""
        names = self.draw.dice.sample(self.readable(), min(4, len(self.readable())))
        sites = self.model.engine.sites
        hooks = [(name, lambda value, hook: value) for name in names if sites[name].editable]
        assert torch.equal(self.run(self.model.run_with_hooks, hooks), self.logits), names

    def check_replacing(self) -> None:
        """A layer's result replaced by a hook of the lens, and by a plain hook."""
        i = self.draw.dice.randrange(len(self.layers))
        noise = torch.randn(self.cache[self.cache_name(i)].shape)

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            return noise if isinstance(output, Tensor) else (noise, *output[1:])

        handle = self.layers[i].register_forward_hook(replace)
        try:
            wanted = self.bare()
        finally:
            handle.remove()
        found = self.run(self.model.run_with_hooks, [(self.cache_name(i), lambda v, hook: noise)])
        key = "prediction_logits" if "prediction_logits" in wanted else "logits"
        if key in wanted:
            torch.testing.assert_close(found, wanted[key], rtol=1e-5, atol=1e-5)

    def cache_name(self, i: int) -> str:
        return f"{self.model.native.main.prefix}.{i}.hook_resid_post"

    def check_spans(self) -> None:
        """A run that stops before a layer, and one that starts there."""
        if self.hf.training:
            return
        i = self.draw.dice.randrange(len(self.layers))
        name = f"{self.model.native.main.prefix}.{i}.hook_resid_pre"
        with torch.no_grad():
            try:
                stream = self.model(self.first, stop_at_layer=i, **self.more)
                assert torch.equal(stream, self.cache[name])
                logits = self.model(stream, start_at_layer=i, **self.more)
            except InputError:
                return  # layers that cannot be skipped, or that read more than the stream
        torch.testing.assert_close(logits, self.logits, rtol=1e-4, atol=1e-4)

    def check_gradients(self) -> None:
        """Gradients in the stream are those of autograd under plain hooks."""
        if self.hf.training or self.logits.ndim != 3 or "input_ids" not in self.inputs:
            return
        kept: dict[str, Tensor] = {}
        i = self.draw.dice.randrange(len(self.layers))
        with self.noting(kept):
            output = self.hf(**self.inputs)
        key = "prediction_logits" if "prediction_logits" in output else "logits"
        if key not in output or not kept[f"{i} post"].requires_grad:
            return
        (wanted,) = torch.autograd.grad(output[key].pow(2).mean(), kept[f"{i} post"])
        name = self.cache_name(i)
        _, found = self.model.gradients(
            self.first, name, of=lambda logits: logits.pow(2).mean(), **self.more
        )
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-5)

    def check_loss(self) -> None:
        """The loss of labels is the bare model's."""
        native = self.model.native
        if native.label_kind != "position" or "inputs_embeds" in self.inputs:
            return
        assert native.unembed is not None
        shape = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids")).shape
        if self.logits.shape[:2] != shape:
            return
        labels = torch.randint(0, native.unembed.n_out, shape)
        labels[torch.rand(shape) < 0.2] = -100
        bare = self.bare(labels=labels).loss
        if bare is not None:
            found = self.run(self.model, return_type="loss", labels=labels)
            torch.testing.assert_close(found, bare, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("name", FEW)
def test_a_random_model_agrees_with_the_bare_one(name: str, seed: int) -> None:
    Fuzz(Draw(name, every_class()[name], seed)).check()


@pytest.mark.matrix
@pytest.mark.parametrize("seed", range(MANY))
@pytest.mark.parametrize("name", every_class())
def test_every_family_agrees_with_the_bare_one(name: str, seed: int) -> None:
    try:
        draw = Draw(name, every_class()[name], seed)
        _ = draw.hf
    except LoadError as error:
        pytest.skip(str(error))
    Fuzz(draw).check()
