"""Embeddings, norms and heads that derivation finds where a row has more positions than ids."""

from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import torch
import transformers
from raw import record

import lensbridge
from lensbridge.analysis import direct_logit_attribution
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.tiny import tiny_from
from lensbridge.derive import derive
from lensbridge.spec import Architecture
from lensbridge.testing import conformance

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 9, 7, 11, 6], [8, 12, 14, 10, 13]])
HELD = (
    "the head makes logits",
    "embeddings make the stream",
    "embeddings are rows of W_E",
    "positions are rows of W_pos",
    "nothing is left out",
)


def tiny(name: str, **sizes: Any) -> Any:
    return tiny_from(getattr(transformers, name), sizes, torch.float32, None, seed=0)


def derived(model: Any) -> Architecture:
    found = derive(model).architecture
    assert found is not None
    return found


Described: TypeAlias = tuple[Any, Architecture]
"""A model and its derived description."""


@pytest.fixture(scope="module")
def prompted() -> Described:
    model = tiny("CpmAntForCausalLM", prompt_length=3, prompt_types=3)
    return model, derived(model)


def read(model: Any, architecture: Architecture, names: list[str], **more: Any) -> Any:
    lens = lensbridge.load(model, architecture=architecture)
    return lens.run_with_cache(IDS, **more, names_filter=names)[1]


def complaints(model: Any, architecture: Architecture) -> list[str]:
    checks = [check for check in CHECKS if check.name in HELD]
    report = conformance(model, architecture=architecture, checks=checks)
    return [f"{row.check}: {row.detail}" for row in report.failures]


def test_a_prompt_before_the_tokens_leaves_them_their_embeddings_and_logits(
    prompted: Described,
) -> None:
    model, architecture = prompted
    assert architecture.pos_embed is None  # the segments of prompt and text are no positions
    names = ["hook_embed", "ln_final.hook_out", "hook_logits"]
    cache = read(model, architecture, names)
    raw = record(model, input_ids=IDS)
    inner = model.cpmant
    assert torch.equal(cache["hook_embed"], raw.outputs[inner.input_embedding])
    assert torch.equal(cache["hook_embed"][:, 3:], inner.input_embedding.weight[IDS])
    assert torch.equal(cache["ln_final.hook_out"], raw.outputs[inner.encoder.output_layernorm])
    assert torch.equal(cache["hook_logits"], raw.logits)
    assert cache["hook_logits"].shape[1] == IDS.shape[1]
    assert not complaints(model, architecture)


def test_rows_that_are_filled_up_to_a_window_have_embeddings_and_positions() -> None:
    model = tiny("LongformerForMaskedLM")
    architecture = derived(model)
    names = ["hook_embed", "hook_pos_embed", "ln_embed.hook_out", "hook_logits"]
    cache = read(model, architecture, names)
    raw = record(model, input_ids=IDS)
    inner = model.longformer.embeddings
    assert torch.equal(cache["hook_embed"], raw.outputs[inner.word_embeddings])
    assert torch.equal(cache["hook_pos_embed"], raw.outputs[inner.position_embeddings])
    assert torch.equal(cache["ln_embed.hook_out"], raw.outputs[inner.LayerNorm])
    assert torch.equal(cache["hook_logits"], raw.logits)
    assert cache["hook_embed"].shape[1] > IDS.shape[1]
    assert not complaints(model, architecture)


@pytest.mark.parametrize("name", ["LayoutLMForMaskedLM", "TapasForMaskedLM"])
def test_positions_are_found_among_tables_with_one_row_for_all_positions(name: str) -> None:
    model = tiny(name)
    architecture = derived(model)
    cache = read(model, architecture, ["hook_embed", "hook_pos_embed", "ln_embed.hook_out"])
    raw = record(model, input_ids=IDS)
    inner = model.base_model.embeddings
    assert torch.equal(cache["hook_embed"], raw.outputs[inner.word_embeddings])
    positions = raw.outputs[inner.position_embeddings].expand_as(cache["hook_pos_embed"])
    assert torch.equal(cache["hook_pos_embed"], positions)
    assert torch.equal(cache["ln_embed.hook_out"], raw.outputs[inner.LayerNorm])
    assert not complaints(model, architecture)


def test_ends_of_a_stack_are_found_where_positions_fill_a_window_inside_it() -> None:
    model = tiny("PegasusXForConditionalGeneration")
    architecture = derived(model)
    target = IDS[:, :3]
    ends = ["encoder.ln_final.hook_out", "encoder.1.hook_resid_post", "ln_final.hook_out"]
    names = [*ends, "encoder.hook_embed", "encoder.hook_pos_embed", "hook_pos_embed"]
    cache = read(model, architecture, names, decoder_input_ids=target)
    raw = record(model, input_ids=IDS, decoder_input_ids=target)
    encoder = model.model.encoder
    assert torch.equal(cache["encoder.ln_final.hook_out"], raw.outputs[encoder.layer_norm])
    assert torch.equal(cache["ln_final.hook_out"], raw.outputs[model.model.decoder.layer_norm])
    end = cache["encoder.1.hook_resid_post"]
    assert end.shape[1] > IDS.shape[1]
    assert torch.equal(end[:, : IDS.shape[1]], raw.inputs[encoder.layer_norm])
    assert torch.equal(cache["encoder.hook_embed"], raw.outputs[encoder.embed_tokens])
    for at, stack in (("encoder.", encoder), ("", model.model.decoder)):
        positions = raw.outputs[stack.embed_positions].expand_as(cache[f"{at}hook_pos_embed"])
        assert torch.equal(cache[f"{at}hook_pos_embed"], positions)


def test_a_logit_is_split_where_a_prompt_is_before_the_tokens(prompted: Described) -> None:
    model, architecture = prompted
    lens = lensbridge.load(model, architecture=architecture)
    split = direct_logit_attribution(lens, IDS, 3)
    with torch.no_grad():
        wanted = model(IDS).logits[:, -1, 3]
    torch.testing.assert_close(split.attribution.sum(0), wanted)


def test_a_wrong_table_is_refused_at_the_tokens_of_a_longer_row(prompted: Described) -> None:
    model = tiny("CpmAntForCausalLM", prompt_length=3, prompt_types=3, segment_types=97)
    wrong = replace(prompted[1], embed="cpmant.segment_embedding")  # a row for each token too
    told = complaints(model, wrong)
    assert any("embeddings are rows" in one or "make the stream" in one for one in told), told


def test_a_norm_before_the_layers_is_found_although_more_than_a_sum_is_before_it() -> None:
    model = tiny("NeoMMEForMaskedLM")  # the embeddings are projected, and then normed
    architecture = derived(model)
    cache = read(model, architecture, ["ln_embed.hook_out", "ln_embed.hook_normalized"])
    raw = record(model, input_ids=IDS)
    assert torch.equal(cache["ln_embed.hook_out"], raw.outputs[model.model.embedding_norm])
    x = raw.inputs[model.model.embedding_norm]
    wanted = x * (x.pow(2).mean(-1, keepdim=True) + model.config.norm_eps).rsqrt()
    torch.testing.assert_close(cache["ln_embed.hook_normalized"], wanted)


def test_a_table_of_positions_that_is_given_ids_for_their_shape_is_no_embedding() -> None:
    model = tiny("BigBirdPegasusForConditionalGeneration")
    architecture = derived(model)
    cache = read(model, architecture, ["hook_embed", "hook_pos_embed"], decoder_input_ids=IDS)
    raw = record(model, input_ids=IDS, decoder_input_ids=IDS)
    decoder = model.model.decoder
    assert torch.equal(cache["hook_embed"], raw.outputs[decoder.embed_tokens])
    positions = raw.outputs[decoder.embed_positions].expand_as(cache["hook_pos_embed"])
    assert torch.equal(cache["hook_pos_embed"], positions)


def test_a_table_with_fewer_rows_than_positions_is_refused_without_an_error_of_torch() -> None:
    model = tiny("LongformerForMaskedLM")
    types = "longformer.embeddings.token_type_embeddings"
    told = complaints(model, replace(derived(model), pos_embed=types))
    assert told
    assert not any("RuntimeError" in one for one in told), told
