"""Stages of `torch.distributed.pipelining`: their points are those of the whole model."""

import gc
import weakref
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.models import double, ids, whole
from distributed.ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    SplitPoint,
    pipeline,
)

import lensbridge
from lensbridge.errors import AbsentPointError, HookError, LoadError, WeightError
from lensbridge.pipelines import StageModel

pytestmark = pytest.mark.ranks

LAYERS = 3
SCHEDULES = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}


class Llama(nn.Module):
    """The layers of a rank, run as the model runs them: the first of three, then two."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        base = self.model.model
        x = x if base.embed_tokens is None else base.embed_tokens(x)
        positions = torch.arange(x.shape[1])[None]
        rotary = base.rotary_emb(x, positions)
        for layer in base.layers:
            x = layer(x, position_embeddings=rotary, position_ids=positions)
        return x if base.norm is None else self.model.lm_head(base.norm(x))


def llama(rank: int) -> nn.Module:
    """Modules are None or deleted."""
    model = whole("llama", layers=LAYERS)
    if rank == 0:
        model.model.norm = model.lm_head = None
        model.model.layers = model.model.layers[:1]
    else:
        model.model.embed_tokens = None
        del model.model.layers[0]
    return Llama(model)


class GPT2(nn.Module):
    """The same of a model with learned positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.part = model

    def forward(self, x: Tensor) -> Tensor:
        base = self.part.transformer
        if not x.is_floating_point():
            x = base.wte(x) + base.wpe(torch.arange(x.shape[1]))[None]
        for layer in base.h:
            x = layer(x)
        return self.part.lm_head(base.ln_f(x))


def gpt2(rank: int) -> nn.Module:
    """Modules have an Identity in their places."""
    model = whole("gpt2", layers=LAYERS)
    model.lm_head = model.lm_head if rank else nn.Identity()
    base = model.transformer
    if rank == 0:
        base.ln_f = base.h[1] = base.h[2] = nn.Identity()
    else:
        base.wte = base.wpe = base.h[0] = nn.Identity()
    return GPT2(model)


def direct(rank: int) -> nn.Module:
    """The model itself is the stage's module: its forward runs what is left in it."""
    model = whole("llama", layers=LAYERS)
    model.config.use_cache = False
    if rank == 0:
        model.model.norm, model.lm_head = nn.Identity(), nn.Identity()
        model.model.layers = model.model.layers[:1]
    else:
        model.model.embed_tokens = nn.Identity()
        model.model.layers = model.model.layers[1:]
    return model


PARTS = {"llama": llama, "gpt2": gpt2, "direct": direct}
FAMILIES = {"direct": "llama"}


def stage_of(family: str) -> PipelineStage:
    rank = distributed.get_rank()
    return PipelineStage(PARTS[family](rank), rank, 2, torch.device("cpu"))


def loss_of(logits: Any, target: Tensor) -> Tensor:
    logits = logits[0] if isinstance(logits, tuple) else logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def batch() -> Tensor:
    return torch.cat([ids(0), ids(1), ids(2), ids(3)])


def step(schedule: Any, tokens: Tensor, **options: Any) -> Any:
    """One step of a schedule; the logits on the last rank."""
    if distributed.get_rank() == 0:
        return schedule.step(tokens, **options)
    return schedule.step(target=tokens, **options)


def mine(names: list[str]) -> list[str]:
    """The names of the whole model that are this rank's."""
    first = ("blocks.0.", "hook_embed", "hook_pos_embed", "embed.", "pos_embed.")
    return [name for name in names if name.startswith(first) == (distributed.get_rank() == 0)]


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("order", SCHEDULES)
@on_ranks(2)
def test_activations_of_all_microbatches(family: str, order: str) -> None:
    wanted = lensbridge.load(whole(FAMILIES.get(family, family), layers=LAYERS))
    stage = stage_of(family)
    model = lensbridge.load(stage)
    assert isinstance(model, StageModel)
    assert model.hook_names == mine(wanted.hook_names)
    tokens = batch()
    schedule = SCHEDULES[order](stage, n_microbatches=4, loss_fn=loss_of)
    for _ in range(2):  # the first step looks for shapes before it runs
        with model.caching(model.hook_names) as cache:
            step(schedule, tokens, **({"return_dict": False} if family == "direct" else {}))
        _, others = wanted.run_with_cache(tokens, names_filter=model.hook_names)
        assert set(cache) == set(others)
        for name in others:
            torch.testing.assert_close(cache[name], others[name], msg=name)
    last = 0 if distributed.get_rank() == 0 else -1
    assert torch.equal(cache["resid_post", last], cache[f"blocks.{last % 3}.hook_resid_post"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("order", SCHEDULES)
@on_ranks(2)
def test_edits_gradients_and_the_microbatch(family: str, order: str) -> None:
    """Hooks act in the microbatches alone, and never where shapes are looked for."""
    reference = whole(FAMILIES.get(family, family), layers=LAYERS)
    wanted = lensbridge.load(reference)
    stage = stage_of(family)
    model = lensbridge.load(stage)
    tokens = batch()
    seen: list[int | None] = []
    back: list[tuple[int | None, Tensor]] = []

    def edit(value: Tensor, hook: Any) -> Tensor:
        seen.append(hook.microbatch)
        return value * (2 + hook.microbatch)

    def note(grad: Tensor, hook: Any) -> None:
        back.append((hook.microbatch, grad.clone()))

    def all_at_once(value: Tensor, hook: Any) -> Tensor:
        assert hook.microbatch is None
        return value * torch.arange(2, 6).repeat_interleave(2)[:, None, None]

    schedule = SCHEDULES[order](stage, n_microbatches=4, loss_fn=loss_of)
    point = "blocks.0.hook_mlp_out" if distributed.get_rank() == 0 else "blocks.2.hook_attn_out"
    whole_grads: dict[str, Tensor] = {}

    def note_whole(grad: Tensor, hook: Any) -> None:
        whole_grads[hook.name] = grad.clone()

    hooked = ["blocks.0.hook_mlp_out", "blocks.2.hook_attn_out"]
    with wanted.hooks([(n, all_at_once) for n in hooked], [(n, note_whole) for n in hooked]):
        chunks = wanted(tokens).chunk(4)
        losses = [loss_of(one, t) for one, t in zip(chunks, tokens.chunk(4), strict=True)]
        (sum(losses) / 4).backward()
    for kind in ("context", "permanent"):
        seen.clear()
        back.clear()
        stage.submod.zero_grad()
        if kind == "context":
            with model.hooks([(point, edit)], [(point, note)]):
                logits = step(schedule, tokens)
        else:
            model.add_hook(point, edit)
            model.add_hook(point, note, dir="bwd")
            logits = step(schedule, tokens)
            model.reset_hooks()
        assert seen == [0, 1, 2, 3]
        assert [number for number, _ in sorted(back, key=lambda one: one[0])] == [0, 1, 2, 3]
        found = torch.cat([grad for _, grad in sorted(back, key=lambda one: one[0])])
        torch.testing.assert_close(found / 4, whole_grads[point])
        if distributed.get_rank() == 1:
            torch.testing.assert_close(logits, torch.cat(chunks))
    expected = {name: p.grad for name, p in reference.named_parameters()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert len([one for one in grads.values() if one is not None]) > 5
    layers = {"llama": ("model.model.layers.", "model.layers."), "gpt2": ("part.", "")}
    start, there = layers[family]
    for name, grad in grads.items():
        if family == "llama" and ".layers." in name:
            at = name.removeprefix(start).split(".", 1)
            number = int(at[0]) + (distributed.get_rank() == 1)
            torch.testing.assert_close(grad, expected[f"{there}{number}.{at[1]}"], msg=name)
        if family == "gpt2" and ".h." in name:
            torch.testing.assert_close(grad, expected[name.removeprefix(start)], msg=name)


@pytest.mark.parametrize("family", PARTS)
@on_ranks(2)
def test_weights_and_what_other_stages_have(family: str) -> None:
    wanted = lensbridge.load(whole(FAMILIES.get(family, family), layers=LAYERS))
    model = lensbridge.load(stage_of(family))
    distributed.barrier()
    assert model.cfg.n_layers == LAYERS
    assert vars(model.cfg).keys() == vars(wanted.cfg).keys()
    assert model.weight_names == mine(wanted.weight_names)
    for name, value in model.named_weights():
        assert torch.equal(value, wanted.weight(name)), name
    rank = distributed.get_rank()
    lacks, here = (2, 0) if rank == 0 else (0, 2)
    assert torch.equal(model.W_Q[here], wanted.W_Q[here])
    said = rf"stage {1 - rank} \(rank {1 - rank}\) has layer {lacks}.*this is stage {rank}"
    for read in (
        lambda: model.W_Q[lacks],
        lambda: model.blocks[lacks].mlp.W_in,
        lambda: model.weight(f"blocks.{lacks}.attn.W_O"),
    ):
        with pytest.raises(WeightError, match=said):
            read()
    with pytest.raises(AbsentPointError, match=said):
        model.add_hook(f"blocks.{lacks}.hook_resid_post", double)
    with pytest.raises(AbsentPointError, match=said):
        model.hooks([(("z", lacks), double)]).__enter__()
    with pytest.raises(AbsentPointError, match=r"the head" if rank == 0 else r"the embedding"):
        model.explain("hook_logits" if rank == 0 else "hook_embed")
    said = str(model.describe_weights())
    assert f"stage {1 - rank} (rank {1 - rank}) has layer {lacks}" in said
    for run in (model, model.run_with_cache, model.generate, model.run_with_hooks):
        with pytest.raises(HookError, match=r"schedule\.step"):
            run(batch())


@on_ranks(2)
def test_two_stages_on_each_rank() -> None:
    """Stages 0 and 2 on the first rank, 1 and 3 on the other: each has a lens of its own."""
    wanted = lensbridge.load(whole("llama", layers=4))
    stages, parts, rank = [], [], distributed.get_rank()
    for index in (rank, rank + 2):
        model: Any = whole("llama", layers=4)
        model.model.layers = model.model.layers[index : index + 1]
        if index > 0:
            model.model.embed_tokens = None
        if index < 3:
            model.model.norm = model.lm_head = None
        stages.append(PipelineStage(Llama(model), index, 4, torch.device("cpu")))
        parts.append(lensbridge.load(stages[-1]))
    distributed.barrier()
    schedule = ScheduleInterleaved1F1B(stages, n_microbatches=4, loss_fn=loss_of)
    seen: list[tuple[str, int]] = []

    def edit(value: Tensor, hook: Any) -> Tensor:
        seen.append((hook.name, hook.microbatch))
        return value + hook.microbatch

    def all_at_once(value: Tensor, hook: Any) -> Tensor:
        return value + torch.arange(4).repeat_interleave(2)[:, None, None]

    point = "blocks.{}.hook_resid_post"
    with ExitStack() as stack:
        for index, part in zip((rank, rank + 2), parts, strict=True):
            stack.enter_context(part.hooks([(point.format(index), edit)]))
        caches = [stack.enter_context(part.caching("attn_out")) for part in parts]
        step(schedule, batch()) if rank == 0 else schedule.step(target=batch())
    assert sorted(seen) == [(point.format(i), n) for i in (rank, rank + 2) for n in range(4)]
    with wanted.hooks([(point.format(i), all_at_once) for i in range(4)]):
        _, others = wanted.run_with_cache(batch(), "attn_out")
    for index, cache in zip((rank, rank + 2), caches, strict=True):
        torch.testing.assert_close(cache["attn_out", index], others["attn_out", index])
    with pytest.raises(
        WeightError, match=rf"stage {1 - rank} \(rank {1 - rank}\) has layer {1 - rank}"
    ):
        parts[0].W_Q[1 - rank]


class Plain(nn.Module):
    """Layers without the model that they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = whole("llama", layers=LAYERS).model.layers[:1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


@on_ranks(1)
def test_a_lens_that_is_dropped_is_gone() -> None:
    stage = PipelineStage(llama(0), 0, 2, torch.device("cpu"))
    model = lensbridge.load(stage)
    absent = weakref.ref(model.native.blocks[2].module)
    lens = weakref.ref(model)
    assert absent() is not None
    del model
    gc.collect()
    assert lens() is None
    assert absent() is None
    assert not any(one._forward_hooks for one in stage.submod.modules())


@on_ranks(1)
def test_stages_that_cannot_be_read() -> None:
    tower = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    traced = pipeline(tower, (torch.ones(2, 4),), split_spec={"1": SplitPoint.BEGINNING})
    with pytest.raises(LoadError, match=r"traced.*torch\.fx.*PipelineStage"):
        lensbridge.load(traced.build_stage(0, torch.device("cpu")))
    with pytest.raises(LoadError, match="no transformers model"):
        lensbridge.load(PipelineStage(Plain(), 0, 2, torch.device("cpu")))
    anonymous = llama(1)
    for one in anonymous.modules():
        one.__dict__.pop("layer_idx", None)
    with pytest.raises(LoadError, match="layer_idx"):
        lensbridge.load(PipelineStage(anonymous, 1, 2, torch.device("cpu")))
    short = llama(1)
    short.model.config.num_hidden_layers = 2
    with pytest.raises(LoadError, match=r"2 in all.*config of the whole model"):
        lensbridge.load(PipelineStage(short, 1, 2, torch.device("cpu")))
