"""What a notebook completes: asked of a real IPython shell with its default settings (jedi)."""

import inspect
from collections.abc import Callable

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import lensbridge
from lensbridge.model import LensModel

SETUP = """
import lensbridge
model = lensbridge.load("demo")
logits, cache = model.run_with_cache("The Eiffel Tower is in the city of")
attn = model.blocks[1].attn
mlp = model.blocks[1].mlp
hooks = []
_ = model.run_with_hooks("a", fwd_hooks=[("hook_embed", lambda value, hook: hooks.append(hook))])
hook = hooks[0]
cfg = model.cfg
"""

Complete = Callable[[str], set[str]]


@pytest.fixture(scope="module")
def complete() -> Complete:
    """What the shell offers for a line, at its end."""
    shell = InteractiveShell()
    assert shell.Completer.use_jedi
    done = shell.run_cell(SETUP)
    done.raise_error()

    def asked(line: str) -> set[str]:
        with provisionalcompleter():
            return {one.text for one in shell.Completer.completions(line, len(line))}

    return asked


def test_the_methods_of_a_model(complete: Complete) -> None:
    offered = complete("model.")
    assert {"run_with_cache", "run_with_hooks", "generate", "blocks", "W_Q", "hf_model"} <= offered
    assert complete("model.run_with_c") == {"run_with_cache", "run_with_cache_with_saes"}


def test_the_weights_of_a_layer(complete: Complete) -> None:
    assert {"attn", "mlp", "ln1", "ln2"} <= complete("model.blocks[1].")
    assert {"W_Q", "W_K", "W_V", "W_O", "b_Q", "QK", "OV"} <= complete("model.blocks[1].attn.")
    assert {"W_in", "W_out", "b_in"} <= complete("model.blocks[1].mlp.")
    assert complete("model.unembed.W") == {"W_U"}


def test_only_the_weights_that_this_model_has(complete: Complete) -> None:
    assert {"W_Q", "W_O"} <= complete("attn.")
    offered = complete("mlp.")
    assert {"W_in", "W_out"} <= offered
    assert not {"W_gate", "b_gate", "at"} & offered  # a GPT-2 has no gate


@pytest.mark.parametrize("quote", ['"', "'"])
def test_the_names_in_a_cache(complete: Complete, quote: str) -> None:
    offered = complete(f"cache[{quote}")
    assert {"hook_embed", "blocks.3.attn.hook_pattern", "pattern", "resid_post"} <= offered
    inside = {"q", "k", "v", "z", "pattern", "attn_scores"}
    wanted = {f"blocks.2.attn.hook_{one}" for one in inside}
    assert complete(f"cache[{quote}blocks.2.attn.") == wanted
    assert complete(f"cache[{quote}patt") == {"pattern"}


def test_the_layers_of_a_short_name(complete: Complete) -> None:
    assert {"0", "1", "2", "3"} <= complete('cache["pattern", ')


def test_what_a_run_returns(complete: Complete) -> None:
    assert {"decompose_resid", "logit_attrs", "save"} <= complete("cache.")
    assert {"decompose_resid", "logit_attrs"} <= complete('model.run_with_cache("a")[1].')
    assert {"mean", "shape"} <= complete('cache["q", 1].')
    assert {"n_layers", "d_model"} <= complete("cfg.")
    assert {"name", "layer", "tokens", "phase", "step"} <= complete("hook.")
    assert {"shape", "dtype"} <= complete("model.W_Q.")


def test_what_a_module_offers(complete: Complete) -> None:
    assert {"load", "LensModel", "ActivationCache", "patching", "viz"} <= complete("lensbridge.")


@pytest.mark.parametrize("name", ["run_with_cache", "run_with_hooks", "hooks", "generate"])
def test_a_signature_shows_the_names_of_types(name: str) -> None:
    """`model.run_with_cache?` prints NamesFilter, not the union that it stands for."""
    signature = str(inspect.signature(getattr(LensModel, name)))
    assert "collections.abc" not in signature
    assert len(signature) < 760


def test_a_part_of_a_layer_lists_its_points_and_they_say_what_they_are(complete: Complete) -> None:
    model = lensbridge.load("demo")
    found = complete("attn.")
    assert {"hook_q", "hook_pattern", "hook_z", "W_Q"} <= found
    assert "hook_rot_q" not in found  # the demo model has no rotary positions
    layer = model.blocks[1]
    for view, where in (
        (layer, ""),
        (layer.attn, "attn."),
        (layer.mlp, "mlp."),
        (layer.ln1, "ln1."),
    ):
        names = {f"blocks.1.{where}{one}" for one in dir(view) if one.startswith("hook_")}
        known = [one for one in model.hook_names if one.startswith(f"blocks.1.{where}")]
        assert names == {one for one in known if one.count(".") == 2 + where.count(".")}
    assert layer.attn.hook_q.where == model.explain("blocks.1.attn.hook_q").where
