"""Which columns and axes interventions act on, where a model has more than one text or stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from described import of_class
from tiny_models import Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import InputError
from lensbridge.interventions import Add, Replace, Swap, Zero, causal_trace, steering_vector

# --- encoder-decoders: two texts -----------------------------------------------------------------

ENCODED, DECODED = tokens(2, 5), tokens(2, 7, seed=1)
PADDED = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
CALL: dict[str, Any] = {"decoder_input_ids": DECODED, "attention_mask": PADDED}


def zeroed(*columns: int) -> Callable[[Tensor], None]:
    """Sets one column of each row, or the same one of all, to zero."""

    def write(value: Tensor) -> None:
        for row in range(len(value)):
            value[row, columns[row % len(columns)]] = 0

    return write


def told(value: Tensor) -> None:
    value[:, :, 2, 4] = 0.3


def told_each(value: Tensor) -> None:
    value[0, :, 2, 2] = 0.3
    value[1, :, 2, 4] = 0.3


TEXTS: list[tuple[Any, Callable[[Tensor], None]]] = [
    (Zero("hook_embed", positions=6), zeroed(6)),
    (Zero("hook_logits", positions=-1), zeroed(6)),
    (Zero("decoder.0.hook_resid_pre", positions="last"), zeroed(6)),
    (Zero("encoder.0.hook_resid_post", positions="last"), zeroed(2, 4)),
    (Zero("decoder.0.cross_attn.hook_k", positions="last"), zeroed(2, 4)),
    (Replace("decoder.0.cross_attn.hook_pattern", 0.3, positions=2, keys=-1), told_each),
    (
        Replace("decoder.0.cross_attn.hook_pattern", 0.3, positions=2, keys=-1, count="columns"),
        told,
    ),
]


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_columns_are_those_of_the_text_that_a_point_reads(number: int) -> None:
    model, (one, write) = of_class("BartForConditionalGeneration"), TEXTS[number]

    def edit(value: Tensor, hook: Any) -> None:
        write(value)

    with torch.no_grad():
        wanted: Any = model.run_with_hooks(ENCODED, [(one.site, edit)], **CALL)
        found = model.run_with_interventions(ENCODED, one, **CALL)
        plain: Any = model(ENCODED, **CALL)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(wanted, plain)

    def metric(logits: Tensor) -> Tensor:
        return logits.square().mean(dim=(1, 2))

    swept = model.sweep({"input_ids": ENCODED, **CALL}, [one], metric, reduce="none")
    torch.testing.assert_close(swept.values[0], metric(wanted))


def test_columns_of_the_other_text_are_refused() -> None:
    model = of_class("BartForConditionalGeneration")
    keys = Zero("decoder.0.cross_attn.hook_pattern", positions=2, keys=6)
    with pytest.raises(InputError, match="key 6 is out of range: example 0 has 3 tokens"):
        model.run_with_interventions(ENCODED, keys, **CALL)
    with pytest.raises(InputError, match="key 6 is out of range; there are 5"):
        model.run_with_interventions(ENCODED, keys.at(count="columns"), **CALL)
    with pytest.raises(InputError, match="position 6 is out of range; there are 5"):
        model.run_with_interventions(ENCODED, Zero("encoder.0.hook_resid_post", positions=6))


# --- streams of several rows, embeddings of another width ----------------------------------------


def test_a_stream_of_several_rows() -> None:
    """Gemma 3n: the batch axis comes second."""
    model, ids = of_class("Gemma3nForCausalLM"), tokens(2, 5)
    site = "blocks.0.hook_resid_post"
    with torch.no_grad():
        _, cache = model.run_with_cache(ids, names_filter=site)
        value = torch.randn(cache[site].shape[-1])

        def add(rows: Tensor, hook: Any) -> None:
            rows[:, 0, 2] += value
            rows[:, 1, 3] += value

        def swap(rows: Tensor, hook: Any) -> None:
            rows[:, :, 3] = cache[site].flip(1)[:, :, 3]

        for one, edit in ((Add(site, value, positions=[[2], [3]]), add), (Swap(site), None)):
            hooks = [(site, edit or (lambda rows, hook: rows.flip(1)))]
            wanted: Any = model.run_with_hooks(ids, hooks)
            torch.testing.assert_close(model.run_with_interventions(ids, one), wanted)
        wanted = model.run_with_hooks(ids, [(site, swap)])
        found = model.run_with_interventions(ids, Swap(site, positions=3))
    torch.testing.assert_close(found, wanted)
    steer = steering_vector(model, ids[:1], ids[1:], site)
    torch.testing.assert_close(steer.vector, cache[site][:, 0, -1] - cache[site][:, 1, -1])
    generated = [
        model.generate(
            ids,
            max_new_tokens=4,
            do_sample=False,
            verbose=False,
            stop_at_eos=False,
            interventions=[Zero(site, positions="last", when="decode")],
            use_past_kv_cache=kept,
        )
        for kept in (True, False)
    ]
    assert torch.equal(*generated)
    trace = causal_trace(model, ids[:1], [1, 2], samples=2)
    assert not any(values.isnan().any() for values in trace.samples.values())


def test_embeddings_that_are_narrower_than_the_stream() -> None:
    model, ids = of_class("AlbertForMaskedLM"), tokens(2, 5)
    width = model.hf_model.config.embedding_size
    assert width != model.cfg.d_model
    value = torch.randn(width)
    with torch.no_grad():
        found = model.run_with_interventions(ids, Add("hook_embed", value))
        wanted: Any = model.run_with_hooks(ids, [("hook_embed", lambda x, hook: x + value)])
    torch.testing.assert_close(found, wanted)


# --- sweeps --------------------------------------------------------------------------------------


@contextmanager
def counting(modules: list[nn.Module]) -> Iterator[list[int]]:
    """How many positions of how many rows some modules are called with."""
    counted: list[int] = []

    def count(module: nn.Module, args: Any) -> None:
        counted.append(args[0].shape[0] * args[0].shape[1])

    handles = [module.register_forward_pre_hook(count) for module in modules]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def test_a_sweep_starts_where_an_intervention_does() -> None:
    hf = build(Shape("llama", layers=3))
    model, ids = lensbridge.load(hf), tokens(2, 9)
    work = {}
    for positions in (None, [[7], [5]], 8):
        one = Zero(("resid_post", 0), positions=positions)
        with counting([layer.mlp for layer in hf.model.layers]) as counted:
            found = model.sweep(ids, [one], lambda logits: logits[:, -1].square().mean())
        with torch.no_grad():
            alone: Any = model.run_with_interventions(ids, one)
        torch.testing.assert_close(found.values[0], alone[:, -1].square().mean())
        work[str(positions)] = sum(counted)
    assert work["8"] < work["[[7], [5]]"] < work["None"]
