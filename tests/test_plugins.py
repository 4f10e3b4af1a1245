"""Plugins: found through entry points, kept apart when broken, chosen visibly.

`tests/plugins` holds two packages that are really installed, into a folder of their own: a toy
architecture with its model, and one that cannot be imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.gpt_neox import GPT_NEOX
from tiny_models import SPECIAL, Shape, build, tokens
from transformers import GPT2LMHeadModel, PreTrainedModel, YosoConfig, YosoForMaskedLM

import lensbridge
from lensbridge import plugins
from lensbridge.cli import main
from lensbridge.errors import (
    ArchitectureMismatchError,
    PluginError,
    UnsupportedArchitectureError,
)
from lensbridge.hookspecs import hookimpl
from lensbridge.spec import Architecture

PACKAGES = Path(__file__).parent / "plugins"
TOY = PACKAGES / "lensbridge-toy"
BROKEN = PACKAGES / "lensbridge-broken"


class Brings:
    """A plugin that answers the hook with what it was made with."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)

    @hookimpl
    def lensbridge_architectures(self) -> list[Any]:
        return self.items


class Misspelt:
    """A plugin whose hook lensbridge does not know."""

    @hookimpl
    def lensbridge_architecture(self) -> list[Architecture]:
        return []


@pytest.fixture
def fresh() -> Iterator[plugins.Registry]:
    """The registry of this process, made anew before and after."""
    plugins.registry.cache_clear()
    yield plugins.registry()
    plugins.registry.cache_clear()


# --- really installed ------------------------------------------------------------------------


def run(*command: str, **env: str) -> str:
    """Run Python without input or network; what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages installed by pip, from source and offline."""
    target = tmp_path_factory.mktemp("site")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run("-m", "pip", "install", "-q", *offline, "--target", str(target), str(TOY), str(BROKEN))
    return target


@pytest.fixture(scope="module")
def answers(site: Path) -> dict[str, Any]:
    """What a user of the installed packages sees, in a process of their own."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    printed = run("-W", "error", str(TOY / "read_every_point.py"), PYTHONPATH=path)
    return json.loads(printed.splitlines()[-1])


def test_an_installed_architecture_is_found_through_its_entry_point(answers: dict) -> None:
    toy = answers["toy"]
    assert "read as 'toy' from toy = lensbridge_toy" in toy["repr"]
    assert "ToyForCausalLM" in toy["repr"]


def test_every_point_of_the_installed_architecture_is_what_the_bare_model_has(
    answers: dict,
) -> None:
    toy = answers["toy"]
    assert toy["logits_equal"]
    assert toy["generates_the_same"]
    assert toy["n_native"] > 20
    for name in ("not_covered", "not_cached", "native_differ", "computed_differ"):
        assert toy[name] == [], name


def test_a_broken_plugin_leaves_other_models_alone(answers: dict) -> None:
    assert answers["gpt2"]["logits_equal"]
    assert answers["gpt2"]["cached"] > 20


def test_a_broken_plugin_is_named_when_a_class_is_not_described(answers: dict) -> None:
    message = answers["unsupported"]
    assert "No architecture describes YosoForMaskedLM" in message
    assert "'broken = lensbridge_broken' is broken" in message
    assert "left behind by an update" in message
    assert "ToyForCausalLM" in message


# --- entry points, in this process -------------------------------------------------------------


def entry(name: str, module: str) -> EntryPoint:
    return EntryPoint(name=name, value=module, group="lensbridge")


def test_one_failing_entry_point_does_not_keep_out_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(TOY)
    registry = plugins.Registry()
    registry.discover([entry("gone", "lensbridge_no_such_module"), entry("toy", "lensbridge_toy")])
    assert [claim.architecture.name for claim in registry.claims] == ["toy"]
    assert list(registry.broken) == ["gone = lensbridge_no_such_module"]
    with pytest.raises(UnsupportedArchitectureError, match="lensbridge_no_such_module"):
        registry.select(["Nothing"], {})


def test_built_in_architectures_come_first(fresh: plugins.Registry) -> None:
    assert fresh.claims[0].plugin == "lensbridge_adapters"
    assert {"gpt2", "llama", "gpt_neox"} <= {one.architecture.name for one in fresh.claims}


# --- overriding and conflicts -----------------------------------------------------------------


def test_an_override_is_explicit_and_visible(fresh: plugins.Registry) -> None:
    mine = replace(GPT2, name="my_gpt2", overrides="gpt2")
    lensbridge.register(Brings(mine), "my-plugin")
    model = lensbridge.load(build(Shape("gpt2")))
    assert model.architecture is mine
    assert "read as 'my_gpt2' from my-plugin, overriding 'gpt2'" in repr(model)
    assert model.cfg.plugin == "my-plugin"


def test_without_an_override_nothing_is_said_to_be_overridden(fresh: plugins.Registry) -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    assert "read as 'gpt2' from lensbridge_adapters)" in repr(model)


def test_a_strangers_claim_leaves_the_built_in_in_use_and_is_shown(
    fresh: plugins.Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    rival = replace(GPT2, name="rival_gpt2", final_norm="transformer.wpe")
    lensbridge.register(Brings(rival), "rival-plugin")
    bare, ids = build(Shape("gpt2")), tokens()
    model = lensbridge.load(bare)
    assert model.architecture is GPT2
    with torch.no_grad():
        assert torch.equal(model(ids), bare(ids).logits)
    assert "also claimed by 'rival_gpt2' (from rival-plugin), not in use" in repr(model)
    line = "'rival_gpt2' (from rival-plugin) also claims GPT2"
    assert line in str(fresh)
    assert main(["doctor"]) == 0
    assert line in capsys.readouterr().out
    assert main(["doctor", "demo"]) == 0
    shown = capsys.readouterr().out
    assert line in shown
    assert "also claimed by 'rival_gpt2' (from rival-plugin), not in use" in shown


def test_a_strangers_claim_leaves_an_explicit_override_in_use(fresh: plugins.Registry) -> None:
    mine = replace(GPT2, name="my_gpt2", overrides="gpt2")
    lensbridge.register(Brings(replace(GPT2, name="rival_gpt2")), "rival-plugin")
    lensbridge.register(Brings(mine), "my-plugin")
    model = lensbridge.load(build(Shape("gpt2")))
    assert model.architecture is mine
    assert "overriding 'gpt2'; also claimed by 'rival_gpt2' (from rival-plugin)" in repr(model)
    mine_too = replace(GPT2, name="again", overrides="my_gpt2")
    lensbridge.register(Brings(mine_too), "my-second-plugin")
    assert lensbridge.load(build(Shape("gpt2"))).architecture is mine_too


@pytest.mark.parametrize("overrides", [None, "gpt2"])
def test_two_plugins_that_claim_one_class_are_both_named(
    fresh: plugins.Registry, overrides: str | None
) -> None:
    """A class that nobody else describes, or two overrides of one built-in description."""
    name = "Stranger" if overrides is None else "GPT2LMHeadModel"
    one = replace(GPT2, name="one", classes=(name,), overrides=overrides)
    lensbridge.register(Brings(one), "first-plugin")
    lensbridge.register(Brings(replace(one, name="other")), "second-plugin")
    with pytest.raises(PluginError) as raised:
        fresh.select([name], {})
    for part in (name, "'one' (from first-plugin)", "'other' (from second-plugin)", "overrides="):
        assert part in str(raised.value)
    assert lensbridge.load(build(Shape("llama"))).architecture.name == "llama"


def test_an_override_of_another_name_settles_nothing(fresh: plugins.Registry) -> None:
    lensbridge.register(Brings(replace(GPT2, name="mine", overrides="llama")), "my-plugin")
    model = lensbridge.load(build(Shape("gpt2")))
    assert model.architecture is GPT2
    assert "also claimed by 'mine' (from my-plugin)" in repr(model)


def test_a_plugin_serves_the_variant_that_no_built_in_description_fits(
    fresh: plugins.Registry,
) -> None:
    config = build(Shape("gpt2")).config.to_dict()
    wanted = {"GPT2LMHeadModel": config}
    twisted = replace(GPT2, name="twisted", requires={"twist": 1})
    lensbridge.register(Brings(twisted), "my-plugin")
    for name, fields in wanted.items():
        assert fresh.select([name], {**fields, "twist": 1}).architecture is GPT2
        assert fresh.select([name], fields).rivals == ()


# --- plugins that are refused -------------------------------------------------------------------

REFUSED = {
    "misspelt hook": (Misspelt(), "lensbridge_architecture"),
    "not an architecture": (Brings("gpt2"), "returned 'gpt2', not an Architecture"),
    "taken name": (Brings(replace(GPT2, classes=("Other",))), r"'gpt2' \(from lensbridge_adapters"),
}


@pytest.mark.parametrize(("plugin", "message"), REFUSED.values(), ids=REFUSED)
def test_a_plugin_that_cannot_be_used_is_refused_by_name(
    fresh: plugins.Registry, plugin: object, message: str
) -> None:
    before = list(fresh.claims)
    with pytest.raises(PluginError, match=message) as raised:
        lensbridge.register(plugin, "faulty")
    assert "'faulty'" in str(raised.value)
    assert fresh.claims == before
    lensbridge.register(Brings(replace(GPT2, name="later", classes=("Later",))), "faulty")
    assert fresh.select(["Later"], {}).architecture.name == "later"


def test_a_plugin_without_a_name_is_called_after_its_class(fresh: plugins.Registry) -> None:
    with pytest.raises(PluginError, match="'Misspelt'"):
        lensbridge.register(Misspelt())


# --- choosing among descriptions ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "has_mid"),
    [("neox", "gpt_neox", False), ("neox_sequential", "gpt_neox_sequential", True)],
)
def test_the_config_chooses_between_variants(family: str, name: str, has_mid: bool) -> None:
    model = lensbridge.load(build(Shape(family)))
    assert model.architecture.name == name
    assert ("blocks.0.hook_resid_mid" in model.hook_names) is has_mid


def test_a_config_that_no_variant_fits_is_refused_with_what_they_need() -> None:
    registry = plugins.Registry()
    registry.register(Brings(GPT_NEOX), "one-variant")
    with pytest.raises(UnsupportedArchitectureError) as raised:
        registry.select(["GPTNeoXForCausalLM"], {"use_parallel_residual": False})
    for part in ("GPTNeoXForCausalLM is known", "needs {'use_parallel_residual': True}", "False}"):
        assert part in str(raised.value)


def test_a_subclass_is_read_as_the_nearest_class_that_is_described(
    fresh: plugins.Registry,
) -> None:
    class Described(GPT2LMHeadModel):
        pass

    class Nearer(Described):
        pass

    assert lensbridge.load(Nearer(build(Shape("gpt2")).config)).architecture.name == "gpt2"
    nearer = replace(GPT2, name="nearer", classes=("Described",))
    lensbridge.register(Brings(nearer), "my-plugin")
    assert lensbridge.load(Nearer(build(Shape("gpt2")).config)).architecture is nearer


# --- classes that nobody describes ----------------------------------------------------------------


def undescribed() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return YosoForMaskedLM(YosoConfig(vocab_size=61, **sizes, **SPECIAL)).eval()


def test_an_undescribed_class_is_refused_with_what_there_is_and_what_to_do() -> None:
    with pytest.raises(UnsupportedArchitectureError) as raised:
        lensbridge.load(undescribed(), derive=False)
    message = str(raised.value)
    for part in (
        "YosoForMaskedLM",
        "'yoso'",
        "docs/coverage.md",
        "architecture=MY_ARCHITECTURE",
    ):
        assert part in message
    assert len(message.splitlines()) <= 15
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("wrong", "meant"), [("GPT2LMHeadModle", "GPT2LMHeadModel"), ("LLamaModel", "LlamaModel")]
)
def test_a_near_miss_is_told_what_was_probably_meant(
    fresh: plugins.Registry, wrong: str, meant: str
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"Did you mean '{meant}'"):
        fresh.select([wrong], {})


def test_a_name_like_no_other_gets_no_suggestion(fresh: plugins.Registry) -> None:
    with pytest.raises(UnsupportedArchitectureError) as raised:
        fresh.select(["Zzyzx"], {})
    assert "Did you mean" not in str(raised.value)


# --- load(architecture=...) -----------------------------------------------------------------------


def test_a_given_architecture_is_used_instead_of_the_registered_ones() -> None:
    mine = replace(GPT2, name="mine", overrides=None)
    bare, ids = build(Shape("gpt2")), tokens()
    model = lensbridge.load(bare, architecture=mine)
    assert model.architecture is mine
    assert "read as 'mine' from load(architecture=...)" in repr(model)
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, names_filter=model.hook_names)
        assert torch.equal(logits, bare(ids).logits)
    assert set(cache) == set(model.hook_names)


def test_a_given_architecture_serves_a_class_that_nobody_describes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(TOY)
    from lensbridge_toy import TOY as DESCRIPTION
    from lensbridge_toy.model import ToyConfig, ToyForCausalLM

    bare, ids = ToyForCausalLM(ToyConfig(**SPECIAL)).eval(), tokens() % 37
    with pytest.raises(UnsupportedArchitectureError, match="ToyForCausalLM"):
        lensbridge.load(bare, derive=False)
    model = lensbridge.load(bare, architecture=DESCRIPTION)
    with torch.no_grad():
        assert torch.equal(model(ids), bare(ids).logits)


def test_a_given_architecture_that_does_not_fit_says_what_is_missing() -> None:
    wrong = replace(GPT2, name="mine", final_norm="transformer.ln_final")
    with pytest.raises(ArchitectureMismatchError) as raised:
        lensbridge.load(build(Shape("gpt2")), architecture=wrong)
    for part in ("'mine' (from load(architecture=...))", "ln_final", "Did you mean 'ln_f'"):
        assert part in str(raised.value)
