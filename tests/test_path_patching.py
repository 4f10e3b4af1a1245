"""Path patching against the bare model: streams added up by hand, then plain PyTorch hooks.

The oracle is in `raw_paths.py`.
"""

from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from raw_patching import run_changing
from raw_paths import ByHand
from tiny_models import Shape, build, join_heads, split_heads, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge import patching as P
from lensbridge.errors import AbsentPointError, InputError

pytestmark = pytest.mark.usefixtures("one_thread")
family = partial(of_class, dtype=torch.float64)

FAMILIES = ("gpt2", "llama", "neox", "neox_sequential")
LAYERS = 3


def metric(logits: Tensor) -> Tensor:
    """Reads every position and is not linear."""
    return (logits.softmax(-1)[:, :, 7] * torch.arange(1, logits.shape[1] + 1)).sum(1).mean()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


Case = tuple[LensModel, ByHand]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = Shape(request.param, layers=LAYERS, dtype=torch.float64)
    return lensbridge.load(build(shape)), ByHand(shape, tokens(2, 4), tokens(2, 4, seed=1))


PATHS = [
    (["a0.h1"], ["a2.h3<q>"]),
    (["a0.h1"], ["a1.h0<k>"]),
    (["a0.h3"], ["a2.h1<v>"]),
    (["a0.h1", "a0.h2", "a1.h0"], ["a2.h0<q>", "a2.h1<k>", "a2.h1<v>", "a2.h2<q>"]),
    (["input"], ["a0.h1<q>", "a2.h1<v>"]),
    (["m0", "a1"], ["a2.h0<q>", "m2"]),
    (["a1.h1"], ["m2"]),
    (["a0.h0"], ["logits"]),
    (["m1", "a0.h0", "input"], ["logits"]),
    (["a0.h2", "m0"], ["a1.h1<v>", "m2", "logits"]),
    (["a0.h1@1", "a0.h1@3", "m0@2"], ["a2.h3<q>@3", "a2.h1<k>@2"]),
    (["a0.h1@1", "input@1"], ["m2@1"]),
    (["m0.n5", "m0.n8@2", "a0.h1@0"], ["a2.h0<v>", "logits"]),
]


@pytest.mark.parametrize(("senders", "receivers"), PATHS, ids=str)
def test_direct_paths_are_what_matrix_products_give(
    senders: list[str], receivers: list[str], case: Case
) -> None:
    model, bare = case
    found = P.path_patch(model, bare.clean, bare.corrupted, senders, receivers, lambda x: x)
    wanted = bare.path(senders, receivers)
    close(found, wanted)
    assert (wanted - bare.runs[1].logits).abs().max() > 1e-4


def test_an_mlp_after_attention_hears_it_in_the_same_layer(case: Case) -> None:
    model, bare = case
    inputs = (model, bare.clean, bare.corrupted)
    if bare.parallel:
        with pytest.raises(InputError, match=r"no path .* m1 reads the stream before"):
            P.path_patch(*inputs, "a1.h1", "m1", metric)
        return
    close(P.path_patch(*inputs, "a1.h1", "m1", metric), metric(bare.path(["a1.h1"], ["m1"])))


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_direct_paths_from_one_head_to_all(component: Any, case: Case) -> None:
    model, bare = case
    clean, corrupted = (model.run_with_cache(one)[1] for one in (bare.clean, bare.corrupted))
    given = (model, bare.corrupted, clean, corrupted, metric)
    heads = bare.shape.heads if component == "q" else bare.shape.kv
    for exact in (True, False):
        found = P.get_act_patch_direct_path(*given, 0, 1, component, exact=exact)
        assert type(found) is Tensor
        assert found.shape == (LAYERS, heads)
        assert found[0].isnan().all()
        for layer in (1, 2):
            for head in range(heads):
                logits = bare.path(["a0.h1"], [f"a{layer}.h{head}<{component}>"])
                close(found[layer, head], metric(logits))
    every = P.get_act_patch_direct_path_all_sources(*given, component)
    assert every.shape == (LAYERS, bare.shape.heads, LAYERS, heads)
    close(every[0, 1, 1:], found[1:])
    close(every[1, 2, 2, 1], metric(bare.path(["a1.h2"], [f"a2.h1<{component}>"])))
    assert every[2].isnan().all()
    assert every[1, :, :2].isnan().all()
    metrics = {"largest": torch.max, "own": metric}
    named = P.get_act_patch_direct_path(*given[:4], metrics, 0, 1, component)
    close(named["own"].values[1:], found[1:])
    both = P.get_act_patch_direct_path_all_sources(*given[:4], metrics, component)
    assert both.axis_names == ["src_layer", "src_head", "layer", "head"]
    torch.testing.assert_close(both["own"].values, every, equal_nan=True)
    torch.testing.assert_close(both["largest"][0, 1], named["largest"].values, equal_nan=True)


def test_editing_one_heads_input_is_the_same(case: Case) -> None:
    """The receiver's own copy of the stream, which is a point too, gets the sender's difference."""
    model, bare = case
    told = bare.deltas(["a0.h1"], 2)

    def hear(copies: Tensor, hook: Any) -> None:
        copies[:, :, 1] += told

    for letter in "qkv":
        wanted = model.run_with_hooks(bare.corrupted, [(f"blocks.2.hook_{letter}_input", hear)])
        found = P.path_patch(
            model, bare.clean, bare.corrupted, "a0.h1", f"a2.h1<{letter}>", lambda x: x
        )
        close(found, wanted)


def test_through_mlps(case: Case) -> None:
    """Attention is held and MLPs are not: the model is run by hand, layer by layer."""
    model, bare = case
    corrupted = bare.runs[1]
    held = [
        (bare.layer(i).attn, "output", lambda _, i=i: corrupted.outputs[bare.layer(i).attn])
        for i in range(LAYERS)
    ]
    sent = corrupted.outputs[bare.layer(0).attn] + bare.delta("a0.h1")
    held[0] = (bare.layer(0).attn, "output", lambda _: sent)
    wanted = run_changing(bare.model, held, bare.corrupted)
    inputs = (model, bare.clean, bare.corrupted, "a0.h1")
    close(P.path_patch(*inputs, "logits", lambda x: x, through="mlps"), wanted)
    seen: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    last = bare.layer(2)
    run_changing(bare.model, [*held, (last.qkv["q"], "output", note)], bare.corrupted)
    query = split_heads(seen[0], bare.shape, "q")[:, :, 3]

    def replaced(whole: Tensor) -> Tensor:
        share = split_heads(whole, bare.shape, "q").clone()
        share[:, :, 3] = query
        return join_heads(whole, share, bare.shape, "q")

    wanted = run_changing(bare.model, [(last.qkv["q"], "output", replaced)], bare.corrupted)
    close(P.path_patch(*inputs, "a2.h3<q>", lambda x: x, through="mlps"), wanted)


def test_through_everything_to_the_logits_is_activation_patching(case: Case) -> None:
    model, bare = case

    def one_head(corrupted: Tensor, clean: Tensor) -> None:
        corrupted[:, :, 2] = clean[:, :, 2]

    wanted = bare.patched("z", 1, one_head)
    found = P.path_patch(
        model, bare.clean, bare.corrupted, "a1.h2", "logits", lambda x: x, through="everything"
    )
    close(found, wanted)


# --- families whose stream is not a plain sum ------------------------------------------------


IDS = torch.tensor([[9, 23, 41, 17, 60], [14, 52, 31, 33, 25]])
OTHER = torch.tensor([[9, 8, 41, 44, 12], [71, 52, 30, 33, 66]])


def module_io(model: Any, module: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """First argument and (first) output of a module in a bare run."""
    found: list[Any] = []

    def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        found.append((given, out[0] if isinstance(out, tuple) else out))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    model(input_ids=ids)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "GraniteForCausalLM"])
def test_through_a_norm_or_a_multiplier_behind_attention(name: str) -> None:
    """The norm sees the sum of all heads, one of them clean; a multiplier scales the difference."""
    model = family(name)
    hf: Any = model.hf_model
    first, last = hf.model.layers[0], hf.model.layers[1]
    out = first.self_attn.o_proj
    z, base = module_io(hf, out, OTHER)
    mixed = z.clone()
    d = z.shape[-1] // 4
    mixed[..., d : 2 * d] = module_io(hf, out, IDS)[0][..., d : 2 * d]
    behind = first.post_attention_layernorm if name.startswith("Gemma") else lambda x: x
    factor = 1.0 if name.startswith("Gemma") else hf.config.residual_multiplier
    told = (behind(out(mixed)) - behind(base)) * factor
    stream = module_io(hf, last, OTHER)[0]
    query = last.self_attn.q_proj
    new = query(last.input_layernorm(stream + told))

    def replaced(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[..., 2 * d : 3 * d] = new[..., 2 * d : 3 * d]
        return changed

    wanted = run_changing(hf, [(query, "output", replaced)], OTHER)
    found = P.path_patch(model, IDS, OTHER, "a0.h1", "a1.h2<q>", lambda x: x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    wanted = run_changing(hf, [(last, "output", lambda whole: whole + told)], OTHER)
    found = P.path_patch(model, IDS, OTHER, "a0.h1", "logits", lambda x: x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_a_stream_that_goes_through_norms() -> None:
    """BERT: every sum is normalized on the way, which is part of the path."""
    model = family("BertForMaskedLM")
    hf: Any = model.hf_model
    first, last = hf.bert.encoder.layer
    dense = first.attention.output.dense
    z, _ = module_io(hf, dense, OTHER)
    mixed = z.clone()
    d = z.shape[-1] // 4
    mixed[..., d : 2 * d] = module_io(hf, dense, IDS)[0][..., d : 2 * d]
    stream = module_io(hf, first, OTHER)[0]
    mlp = module_io(hf, first.output.dense, OTHER)[1]
    mid = first.attention.output.LayerNorm(stream + dense(mixed))
    read = first.output.LayerNorm(mid + mlp)
    value = last.attention.self.value
    new = value(read)

    def replaced(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[..., 2 * d : 3 * d] = new[..., 2 * d : 3 * d]
        return changed

    wanted = run_changing(hf, [(value, "output", replaced)], OTHER)
    found = P.path_patch(model, IDS, OTHER, "a0.h1", "a1.h2<v>", lambda x: x)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    with pytest.raises(InputError, match="goes through norms"):
        P.path_patch(model, IDS, OTHER, "a0.h1", ["a1.h2<v>", "logits"], metric)


def test_a_mixture_of_experts_receives_and_is_routed_anew() -> None:
    model = family("MixtralForCausalLM")
    hf: Any = model.hf_model
    first, last = hf.model.layers
    delta = module_io(hf, first.mlp, IDS)[1] - module_io(hf, first.mlp, OTHER)[1]
    stream = module_io(hf, last.post_attention_layernorm, OTHER)[0] + delta
    new = last.mlp(last.post_attention_layernorm(stream))
    wanted = run_changing(hf, [(last.mlp, "output", lambda _: new)], OTHER)
    found = P.path_patch(model, IDS, OTHER, "m0", "m1", lambda x: x)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_latent_attention_receives_at_its_keys_after_rotary() -> None:
    """A key that hears changes one head's scores: those of the head's own queries and that key."""
    model = family("DeepseekV3ForCausalLM")
    hf: Any = model.hf_model
    first, last = hf.model.layers
    delta = module_io(hf, first.mlp, IDS)[1] - module_io(hf, first.mlp, OTHER)[1]
    stream = module_io(hf, last, OTHER)[0] + delta
    names = [(name, 1) for name in ("rot_q", "rot_k", "attn_scores")]
    _, own = model.run_with_cache(OTHER, names_filter=names)
    _, heard = model.run_with_cache(stream, names_filter=names, start_at_layer=1)

    def raw(keys: Tensor) -> Tensor:
        return torch.einsum("bqhd,bkhd->bhqk", own["rot_q", 1], keys)

    scores = own["attn_scores", 1]
    scale = (scores / raw(own["rot_k", 1]))[:, :, -1:, :1]
    told = (raw(heard["rot_k", 1]) * scale).masked_fill(scores == -torch.inf, -torch.inf)

    def put(scores: Tensor, hook: Any) -> None:
        scores[:, 2] = told[:, 2]

    wanted = model.run_with_hooks(OTHER, [("blocks.1.attn.hook_attn_scores", put)])
    found = P.path_patch(model, IDS, OTHER, "m0", "a1.h2<k>", lambda x: x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    assert (wanted - model(OTHER)).abs().max() > 1e-4


EVERYWHERE = [
    "BloomForCausalLM",
    "FalconForCausalLM",
    "MptForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "GptOssForCausalLM",
    "FalconH1ForCausalLM",
    "AlbertForMaskedLM",
]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_nothing_sent_changes_nothing_and_all_heads_sent_are_their_attention(name: str) -> None:
    model = family(name)
    base = model(OTHER)
    same = P.path_patch(model, OTHER, OTHER, ["a0.h1", "m0"], ["a1.h2<q>", "m1"], lambda x: x)
    torch.testing.assert_close(same, base, rtol=1e-6, atol=1e-8)
    heads = [f"a0.h{i}" for i in range(model.cfg.n_heads)]
    each, whole = (
        P.path_patch(model, IDS, OTHER, senders, ["a1.h1<v>", "m1"], lambda x: x)
        for senders in (heads, "a0")
    )
    torch.testing.assert_close(each, whole, rtol=1e-5, atol=1e-6)
    assert (whole - base).abs().max() > 1e-4


# --- what is refused -------------------------------------------------------------------------


def test_refusals(case: Case) -> None:
    model, bare = case
    clean, corrupted = (model.run_with_cache(one)[1] for one in (bare.clean, bare.corrupted))
    inputs = (model, bare.clean, bare.corrupted)
    for senders, receivers, told in (
        ("a0.h9", "logits", "layer 0 has 4 heads"),
        ("a7.h0", "logits", "this model has 3 layers"),
        ("a0.h1", f"a2.h{bare.shape.kv}<k>", "key/value heads"),
        ("head 3", "logits", "is no part of a path"),
        ("a2.h1", "a1.h1<q>", "There is no path from"),
        ("a0.h1<q>", "logits", "receives only"),
        ("a0.h1", "a1.h1", "name one of its inputs"),
        (["a0.h1", "a0"], "logits", "Name one of the two"),
        ([], "logits", "No node was given"),
        ([(0, 1)], "logits", "is no part of a path"),
        ("a0.h1@4", "logits", "a0.h1@4: the input has 4 positions"),
        ("a0.h1", "logits@2", "a metric reads the logits of every position"),
        ("r1", "logits", "receives only"),
        ("a0.h1", "m1.n3", "sends only"),
        (["m0.n3", "m0@1"], "logits", "Name one of the two"),
        ("m0.n4000", "logits", "neurons"),
    ):
        with pytest.raises(InputError, match=told):
            P.path_patch(*inputs, senders, receivers, metric)
    with pytest.raises(InputError, match="through is one of"):
        P.path_patch(*inputs, "a0.h1", "logits", metric, through="heads")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which positions correspond"):
        P.path_patch(model, bare.clean[:, :3], bare.corrupted, "a0.h1", "logits", metric)
    given = (model, bare.corrupted, clean)
    with pytest.raises(InputError, match="not that of a run on corrupted_tokens"):
        P.get_act_patch_direct_path(*given, clean, metric, 0, 1)
    with pytest.raises(InputError, match="component is"):
        P.get_act_patch_direct_path(*given, corrupted, metric, 0, 1, "z")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no later layer has attention"):
        P.get_act_patch_direct_path(*given, corrupted, metric, 2, 1)
    assert model.engine.is_idle


def test_direct_paths_that_are_interrupted_have_their_whole_shape(case: Case) -> None:
    model, bare = case
    clean, corrupted = (model.run_with_cache(one)[1] for one in (bare.clean, bare.corrupted))
    left = [4]

    def stopping(logits: Tensor) -> Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return metric(logits)

    given = (model, bare.corrupted, clean, corrupted)
    whole = P.get_act_patch_direct_path_all_sources(*given, metric, exact=True)
    found = P.get_act_patch_direct_path_all_sources(*given, stopping, exact=True)
    assert found.partial
    assert found.shape == whole.shape
    ran = ~found.values.isnan()
    assert 1 <= int(ran.sum()) < int((~whole.isnan()).sum())
    close(found.values[ran], whole[ran])


@pytest.mark.parametrize("name", ["Qwen3NextForCausalLM", "BitNetForCausalLM"])
def test_a_head_whose_z_is_gated_sends_what_came_through_the_gate(name: str) -> None:
    model = family(name)
    hf: Any = model.hf_model
    layer, last = 1, hf.model.layers[-1]
    out = hf.model.layers[layer].self_attn.o_proj
    read, there = (module_io(hf, out, ids)[0] for ids in (IDS, OTHER))
    d = read.shape[-1] // model.cfg.n_heads
    mixed = there.clone()
    mixed[..., d : 2 * d] = read[..., d : 2 * d]
    delta = out(mixed) - out(there)
    found = P.path_patch(model, IDS, OTHER, f"a{layer}.h1", "logits", lambda x: x)

    changes = [(last, "output", lambda whole: whole + delta)]
    wanted = run_changing(hf, changes, OTHER)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_gated_heads_in_front_of_a_norm_send_together() -> None:
    model = family("AfmoeForCausalLM")
    with pytest.raises(InputError, match="Use 'a0', all heads"):
        P.path_patch(model, IDS, OTHER, "a0.h1", "logits", metric)
    hf: Any = model.hf_model
    behind, last = hf.model.layers[0].post_attention_layernorm, hf.model.layers[-1]
    told = module_io(hf, behind, IDS)[1] - module_io(hf, behind, OTHER)[1]
    found = P.path_patch(model, IDS, OTHER, "a0", "logits", lambda x: x)
    wanted = run_changing(hf, [(last, "output", lambda whole: whole + told)], OTHER)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_direct_paths_of_gated_heads_need_the_usual_caches_only() -> None:
    model = family("BitNetForCausalLM")
    clean, corrupted = (model.run_with_cache(ids)[1] for ids in (IDS, OTHER))
    given = (model, OTHER, clean, corrupted, metric)
    found = P.get_act_patch_direct_path(*given, 0, 1, "v")
    for head in range(model.cfg.n_key_value_heads):
        wanted = P.path_patch(model, IDS, OTHER, "a0.h1", f"a1.h{head}<v>", metric)
        torch.testing.assert_close(found[1, head], wanted, rtol=1e-6, atol=1e-9)
    with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: x + 1)]):
        _, other = model.run_with_cache(IDS)
    with pytest.raises(InputError, match=r"Keep blocks\.0\.attn\.hook_result in it"):
        P.get_act_patch_direct_path(model, OTHER, other, corrupted, metric, 0, 1, "v")


def test_metrics_fail_before_paths_are_patched(case: Case) -> None:
    model, bare = case
    given = (model, bare.clean, bare.corrupted, "a0.h1", "logits")
    with pytest.raises(InputError, match="A metric is a function of logits"):
        P.path_patch(*given, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reads a place that the logits do not have"):
        P.path_patch(*given, lambda logits: logits[:, 99])

    def writing(logits: Tensor) -> Tensor:
        logits -= logits.logsumexp(-1, keepdim=True)
        return logits.mean()

    both = P.path_patch(*given, {"writes": writing, "reads": lambda x: x.log_softmax(-1).mean()})
    torch.testing.assert_close(both["writes"], both["reads"])
    assert model.engine.is_idle


def test_a_layer_without_attention_sends_nothing() -> None:
    model = family("JambaForCausalLM")
    with pytest.raises(AbsentPointError, match="has no attention"):
        P.path_patch(model, IDS, OTHER, "a0.h1", "logits", metric)
    found = P.path_patch(model, IDS, OTHER, "m0", "a1.h1<q>", lambda x: x)
    hf: Any = model.hf_model
    first, last = hf.model.layers
    assert hasattr(last, "self_attn")
    delta = module_io(hf, first.feed_forward, IDS)[1] - module_io(hf, first.feed_forward, OTHER)[1]
    query = last.self_attn.q_proj
    new = query(last.input_layernorm(module_io(hf, last, OTHER)[0] + delta))
    d = new.shape[-1] // 4

    def replaced(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[..., d : 2 * d] = new[..., d : 2 * d]
        return changed

    wanted = run_changing(hf, [(query, "output", replaced)], OTHER)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)

    sent = module_io(hf, first.mamba, IDS)[1] - module_io(hf, first.mamba, OTHER)[1]
    found = P.path_patch(model, IDS, OTHER, "s0", "logits", lambda x: x)
    wanted = run_changing(hf, [(last, "output", lambda whole: whole + sent)], OTHER)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_several_metrics_and_nodes_as_values(case: Case) -> None:
    model, bare = case
    inputs = (model, bare.clean, bare.corrupted)
    node = P.Node("head", 2, 3, "q")
    assert str(node) == "a2.h3<q>"
    assert [str(P.Node.of(one)) for one in ("a1", "m2", "input", "logits", "a0.h1")] == [
        "a1",
        "m2",
        "input",
        "logits",
        "a0.h1",
    ]
    both = P.path_patch(*inputs, "a0.h1", node, {"a": metric, "b": torch.mean})
    one = P.path_patch(*inputs, P.Node("head", 0, 1), "a2.h3<q>", metric)
    assert torch.equal(both["a"], one)
    assert both["b"].ndim == 0
