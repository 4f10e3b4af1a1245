"""The demo's analyses against plain PyTorch hooks on a second, bare model."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbridge
from lensbridge.demo import FOLDER, text, workflows
from lensbridge.demo.report import snippets
from lensbridge.demo.workflows import attribution as attributing

PROMPTS = [text.john_and_mary(), *text.held_out_handovers(7)]


@pytest.fixture(scope="module")
def model() -> lensbridge.LensModel:
    return lensbridge.load("demo")


@pytest.fixture(scope="module")
def patching(model: lensbridge.LensModel) -> workflows.Patching:
    return workflows.patch_positions(model, text.eiffel_tower())


@pytest.fixture(scope="module")
def attribution(model: lensbridge.LensModel) -> workflows.Attribution:
    return workflows.attribute_heads(model, PROMPTS)


@pytest.fixture(scope="module")
def induction(model: lensbridge.LensModel) -> workflows.Induction:
    return workflows.score_induction(model)


# --- the oracle: no lensbridge in it -------------------------------------------------------


class Bare:
    """A model of its own, with PyTorch's hooks."""

    def __init__(self) -> None:
        self.hf: Any = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
        self.blocks = self.hf.transformer.h
        self.n_heads, self.d_head = self.hf.config.n_head, self.hf.config.n_embd // 4
        assert self.hf.config.n_head == 4

    def ids(self, words: str) -> Tensor:
        return torch.tensor([[self.tokenizer.bos_token_id, *self.tokenizer.encode(words)]])

    def token(self, answer: str) -> int:
        (only,) = self.tokenizer.encode(answer)
        return int(only)

    def logits(self, ids: Tensor, **how: Any) -> Tensor:
        with torch.no_grad():
            return self.hf(ids, attention_mask=torch.ones_like(ids), **how).logits

    def difference(self, prompt: text.Prompt, ids: Tensor) -> float:
        last = self.logits(ids)[0, -1].double()
        return float(last[self.token(prompt.answer)] - last[self.token(prompt.rival)])

    def place(self, point: str, layer: int) -> tuple[nn.Module, bool]:
        """The module of a point, and whether the point is its input."""
        block = self.blocks[layer]
        return {
            "resid_pre": (block, True),
            "attn_out": (block.attn.c_proj, False),
            "mlp_out": (block.mlp.c_proj, False),
            "z": (block.attn.c_proj, True),
            "ln_final": (self.hf.transformer.ln_f, True),
        }[point]

    @contextlib.contextmanager
    def edited(self, point: str, layer: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Run with the value at a point replaced."""
        module, is_input = self.place(point, layer)

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return edit(args[0]), *args[1:]

        def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return edit(out)

        if is_input:
            handle = module.register_forward_pre_hook(before)
        else:
            handle = module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    def value(self, point: str, layer: int, ids: Tensor) -> Tensor:
        """The value at a point."""
        seen: list[Tensor] = []

        def note(value: Tensor) -> Tensor:
            seen.append(value.clone())
            return value

        with self.edited(point, layer, note):
            self.logits(ids)
        return seen[0]


@pytest.fixture(scope="module")
def bare() -> Bare:
    return Bare()


def patched(position: int, donor: Tensor) -> Callable[[Tensor], Tensor]:
    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, position] = donor[:, position]
        return value

    return edit


def silenced(head: int, width: int) -> Callable[[Tensor], Tensor]:
    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        value[..., head * width : (head + 1) * width] = 0
        return value

    return edit


# --- activation patching -------------------------------------------------------------------


def test_the_runs_are_the_bare_models_runs(bare: Bare, patching: workflows.Patching) -> None:
    prompt = text.eiffel_tower()
    for run, words in ((patching.clean, prompt.text), (patching.corrupted, prompt.corrupted)):
        ids = bare.ids(words)
        last = bare.logits(ids)[0, -1].softmax(-1)
        assert run.difference == pytest.approx(bare.difference(prompt, ids), abs=1e-5)
        assert run.next == bare.tokenizer.decode([int(last.argmax())])
        assert run.probability == pytest.approx(float(last.max()), abs=1e-5)
        assert list(run.tokens) == [bare.tokenizer.decode([one]) for one in ids[0].tolist()]


@pytest.mark.parametrize("point", workflows.PATCHED)
def test_each_patch_does_what_a_raw_hook_does(
    bare: Bare, patching: workflows.Patching, point: str
) -> None:
    prompt = text.eiffel_tower()
    clean, corrupted = bare.ids(prompt.text), bare.ids(prompt.corrupted)
    top, floor = (bare.difference(prompt, ids) for ids in (clean, corrupted))
    expected = torch.zeros(len(bare.blocks), clean.shape[1])
    for layer in range(len(bare.blocks)):
        donor = bare.value(point, layer, clean)
        for position in range(clean.shape[1]):
            with bare.edited(point, layer, patched(position, donor)):
                restored = bare.difference(prompt, corrupted)
            expected[layer, position] = (restored - floor) / (top - floor)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(patching.grids[point], expected, atol=1e-5, rtol=0)


def test_the_city_is_decided_at_the_landmark_and_moves_on(patching: workflows.Patching) -> None:
    assert patching.clean.next == " Paris"
    assert patching.corrupted.next == " Rome"
    grid = patching.grids["resid_pre"]
    assert grid[patching.best("resid_pre")] == grid.max()
    enters = int(grid[0].argmax())
    assert grid[0, enters] > 0.5
    assert patching.clean.tokens[enters] in (" Eiffel", " Tower")
    last = grid[:, -1]
    assert last[0] == pytest.approx(0, abs=1e-5)
    assert patching.arrival == next((i for i, value in enumerate(last) if value >= 0.5), None)


def test_texts_of_different_length_are_refused(model: lensbridge.LensModel) -> None:
    prompt = text.Prompt("The Louvre Museum is in", " Paris", "The Colosseum", " Rome")
    with pytest.raises(lensbridge.LensbridgeError, match="texts of one length"):
        workflows.patch_positions(model, prompt)


def test_texts_that_the_model_does_not_tell_apart_are_refused(model: lensbridge.LensModel) -> None:
    same = text.eiffel_tower().text
    with pytest.raises(lensbridge.LensbridgeError, match="nothing to restore"):
        workflows.patch_positions(model, text.Prompt(same, " Paris", same, " Rome"))


# --- direct logit attribution --------------------------------------------------------------


def test_the_terms_sum_to_the_bare_models_logit_difference(
    bare: Bare, attribution: workflows.Attribution
) -> None:
    expected = torch.tensor([bare.difference(one, bare.ids(one.text)) for one in PROMPTS])
    torch.testing.assert_close(attribution.before, expected, atol=1e-4, rtol=0)
    parts = (attribution.heads, attribution.mlps, attribution.attention_biases)
    named = [*attribution.embeddings.values(), *attribution.constants.values()]
    total = sum(float(part.sum()) for part in parts) + sum(named)
    assert total == pytest.approx(float(expected.mean()), abs=1e-4)
    assert attribution.error <= attributing.EXACT


def test_each_heads_contribution_is_what_its_weights_write(
    bare: Bare, attribution: workflows.Attribution
) -> None:
    expected = torch.zeros(len(bare.blocks), bare.n_heads)
    for prompt in PROMPTS:
        ids = bare.ids(prompt.text)
        final = bare.value("ln_final", 0, ids)[0, -1]
        norm = bare.hf.transformer.ln_f
        scale = (final.var(unbiased=False) + norm.eps).sqrt()
        rows = bare.hf.lm_head.weight
        towards = rows[bare.token(prompt.answer)] - rows[bare.token(prompt.rival)]
        for layer, block in enumerate(bare.blocks):
            z = bare.value("z", layer, ids)[0, -1].view(bare.n_heads, -1)
            out = block.attn.c_proj.weight.view(bare.n_heads, bare.d_head, -1)
            for head in range(bare.n_heads):
                write = z[head] @ out[head]
                logits = ((write - write.mean()) / scale * norm.weight) @ towards
                expected[layer, head] += logits.detach() / len(PROMPTS)
    torch.testing.assert_close(attribution.heads, expected, atol=1e-4, rtol=0)


def test_each_ablation_does_what_a_raw_hook_does(
    bare: Bare, attribution: workflows.Attribution
) -> None:
    some = PROMPTS[:3]
    for layer in range(len(bare.blocks)):
        for head in range(bare.n_heads):
            with bare.edited("z", layer, silenced(head, bare.d_head)):
                values = [bare.difference(one, bare.ids(one.text)) for one in some]
            got = attribution.ablated[layer, head, : len(some)]
            torch.testing.assert_close(got, torch.tensor(values), atol=1e-4, rtol=0)


def test_the_top_heads_ablation_confirms_its_attribution(
    attribution: workflows.Attribution,
) -> None:
    written, lost = attribution.heads[attribution.top], attribution.drops[attribution.top]
    assert written == attribution.heads.max()
    assert attribution.confirmed == bool(lost >= written / 2)
    assert attribution.confirmed
    torch.testing.assert_close(
        attribution.drops, (attribution.before - attribution.ablated).mean(-1)
    )


def test_the_attention_shown_is_the_bare_models(
    bare: Bare, attribution: workflows.Attribution
) -> None:
    layer, head = attribution.top
    ids = bare.ids(PROMPTS[0].text)
    with torch.no_grad():
        maps = bare.hf(ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions
    torch.testing.assert_close(attribution.attention, maps[layer][0, head, -1], atol=1e-5, rtol=0)
    assert list(attribution.tokens) == [bare.tokenizer.decode([one]) for one in ids[0].tolist()]


def test_a_forgotten_term_is_an_error(
    model: lensbridge.LensModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = attributing._terms

    def incomplete(*given: Any) -> dict[str, Tensor]:
        return {name: value for name, value in complete(*given).items() if name != "mlps"}

    monkeypatch.setattr(attributing, "_terms", incomplete)
    with pytest.raises(lensbridge.LensbridgeError, match="differs from the logit difference"):
        workflows.attribute_heads(model, PROMPTS[:2])


# --- induction -----------------------------------------------------------------------------


def eager_scores(bare: Bare, tokens: Tensor, period: int) -> Tensor:
    """Mean attention from each token's second copy to what followed its first, counted out."""
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        maps = bare.hf(tokens, attention_mask=mask, output_attentions=True).attentions
    seconds = range(period + 1, 2 * period + 1)
    return torch.stack(
        [
            torch.stack([layer[:, :, at, at - period + 1] for at in seconds]).mean((0, 1))
            for layer in maps
        ]
    )


def test_repeated_words_repeat(model: lensbridge.LensModel) -> None:
    tokens = workflows.repeated_words(model, rows=3, period=7, seed=1)
    assert tokens.shape == (3, 15)
    assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    assert torch.equal(tokens[:, 1:8], tokens[:, 8:])
    assert all(len(set(row.tolist())) == 7 for row in tokens[:, 1:8])


def test_the_scores_are_those_of_eager_attention(
    bare: Bare, model: lensbridge.LensModel, induction: workflows.Induction
) -> None:
    tokens = workflows.repeated_words(model, rows=16, period=20, seed=0)
    expected = eager_scores(bare, tokens, 20)
    torch.testing.assert_close(induction.scores, expected, atol=1e-5, rtol=0)
    assert induction.scores[induction.top] == pytest.approx(float(expected.max()), abs=1e-5)


def test_the_losses_are_those_of_the_bare_model(
    bare: Bare, model: lensbridge.LensModel, induction: workflows.Induction
) -> None:
    tokens = workflows.repeated_words(model, rows=16, period=20, seed=0)
    logits = bare.logits(tokens)[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    expected = each.view(16, 40).mean(0)
    torch.testing.assert_close(induction.loss, expected, atol=1e-4, rtol=0)
    first, second = induction.halves
    assert first == pytest.approx(float(expected[:20].mean()), abs=1e-4)
    assert second == pytest.approx(float(expected[20:].mean()), abs=1e-4)


def test_some_head_does_induction_and_the_second_copy_is_foreseen(
    induction: workflows.Induction,
) -> None:
    first, second = induction.halves
    assert induction.scores.max() > 0.6
    assert second < first / 2


# --- the code that the page shows ----------------------------------------------------------


def executed(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names


def test_the_patching_code_gives_the_grid(patching: workflows.Patching) -> None:
    restored = executed(snippets.PATCHING)["restored"]
    for point, grid in patching.grids.items():
        for layer, position in ((0, 2), (2, 3), (3, grid.shape[1] - 1)):
            expected = float(grid[layer, position])
            assert restored(point, layer, position) == pytest.approx(expected, abs=1e-5)


def test_the_attribution_code_gives_the_heads(model: lensbridge.LensModel) -> None:
    names = executed(snippets.ATTRIBUTION)
    one = workflows.attribute_heads(model, [text.john_and_mary()])
    layer, head = one.top
    got = names["contribution"](layer, head)
    assert got == pytest.approx(float(one.heads[layer, head]), abs=1e-4)
    got = names["ablated"](layer, head)
    assert got == pytest.approx(float(one.ablated[layer, head]), abs=1e-4)


def test_the_induction_code_gives_the_scores(bare: Bare) -> None:
    names = executed(snippets.INDUCTION)
    expected = eager_scores(bare, names["tokens"], names["period"])
    got = [[names["score"](layer, head) for head in range(4)] for layer in range(4)]
    torch.testing.assert_close(torch.tensor(got), expected, atol=1e-5, rtol=0)
