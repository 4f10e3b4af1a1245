"""Names that newcomers type: each works, or the error says what to write, which is then run."""

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import lensbridge
from lensbridge import LensModel
from lensbridge.elsewhere.cache import CACHE
from lensbridge.elsewhere.hinted import Hinted, instead
from lensbridge.elsewhere.model import MODEL, OPENING
from lensbridge.elsewhere.picture import PICTURE, RESULT
from lensbridge.elsewhere.top import TOP
from lensbridge.elsewhere.view import VIEW
from lensbridge.errors import WeightError

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "The Eiffel Tower is in the city of"
OTHER = "The Galata Tower is in the city of"


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


def swept() -> Any:
    _, cache = demo().run_with_cache(TEXT)
    cells = [(("resid_pre", layer), (0, 2), cache) for layer in range(4)]
    return demo().sweep(
        "The Galata Tower is in the city of", cells, lambda logits: logits[0, -1, 3]
    )


def known(tmp_path: Path) -> dict[str, Any]:
    """What the code in the tables may use."""
    model = copy.deepcopy(demo())
    _, cache = model.run_with_cache(TEXT)
    result = swept()
    return {
        "lensbridge": lensbridge,
        "torch": torch,
        "name": "demo",
        "model": model,
        "cache": cache,
        "input": TEXT,
        "tokens": model.to_tokens(OTHER),
        "texts": ["The Eiffel Tower"],
        "others": ["The Galata Tower"],
        "metric": lambda logits: logits[0, -1, 3],
        "fn": lambda value, hook: value,
        "result": result,
        "picture": result.plot(),
        "path": tmp_path / "picture.svg",
    }


TABLES = (TOP, MODEL, CACHE, RESULT, PICTURE, VIEW)
ENTRIES = sorted({tuple(code for code, _ in said) for t in TABLES for said in t.values()})


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[0])
def test_what_is_said_to_write_runs(entry: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    about = known(tmp_path)
    for code in entry:
        exec(code, about)


@pytest.mark.parametrize("table", TABLES)
def test_sentences_are_whole(table: Any) -> None:
    for name in table:
        found = instead(name, table)
        assert found.startswith(" ")
        assert found.endswith(".")
        assert ".." not in found.replace("...", "")
    assert instead("nothing", table) == ""


@pytest.mark.parametrize("name", TOP)
def test_names_at_the_top_lead_somewhere(name: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(lensbridge, name)
    assert "lensbridge." in str(caught.value).partition("has no attribute")[2]


@pytest.mark.parametrize("name", MODEL)
def test_names_on_a_model_lead_somewhere(name: str) -> None:
    assert not hasattr(demo(), name), f"{name} works now: take it out of the table"
    with pytest.raises(AttributeError) as caught:
        getattr(demo(), name)
    assert MODEL[name][0][0] in str(caught.value)
    there = hasattr(demo().hf_model, name) and name not in ("config", *OPENING)
    assert (f"model.hf_model.{name}" in str(caught.value)) >= there


@pytest.mark.parametrize("name", CACHE)
def test_names_on_a_cache_lead_somewhere(name: str) -> None:
    _, cache = demo().run_with_cache(TEXT, "resid_post")
    with pytest.raises(AttributeError) as caught:
        getattr(cache, name)
    assert CACHE[name][0][0] in str(caught.value)


@pytest.mark.parametrize("name", VIEW)
def test_names_on_a_part_lead_somewhere(name: str) -> None:
    for part in (demo().blocks[1], demo().blocks[1].attn, demo().blocks[1].mlp):
        with pytest.raises(WeightError) as caught:
            getattr(part, name)
        assert VIEW[name][0][0] in str(caught.value)


def test_names_on_results_and_pictures_lead_somewhere() -> None:
    result = swept()
    for owner, table in ((result, RESULT), (result.plot(), PICTURE)):
        for name in table:
            if name == "html" and owner is not result:
                continue
            with pytest.raises(AttributeError) as caught:
                getattr(owner, name)
            assert table[name][0][0] in str(caught.value)
    assert result.shape == result.values.shape  # attributes of a tensor are those of the values
    with pytest.raises(AttributeError, match="PatchingResult has no attribute 'shpe'"):
        _ = result.shpe


def test_what_newcomers_type_and_works() -> None:
    from lensbridge import viz

    assert lensbridge.plot is viz.plot
    _, cache = demo().run_with_cache(TEXT)
    assert list(cache.keys()) == list(cache)
    assert cache.logit_lens(targets=" Paris").labels[-1] == "final_post"
    assert cache["blocks.0.hook_resid_pre"].shape == (1, 9, 128)
    plain = demo()(TEXT)
    with demo().hooks([("blocks.1.hook_resid_post", lambda value, hook: value * 0)]):
        assert not torch.equal(demo()(TEXT), plain)


def test_names_of_subpackages_and_sizes_and_points() -> None:
    for name, hint in {
        "logit_lens": "lensbridge.analysis.logit_lens",
        "IOIDataset": "lensbridge.evals.IOIDataset",
        "Steer": "lensbridge.interventions.Steer",
        "path_patch": "lensbridge.patching.path_patch",
        "Heatmap": "lensbridge.viz.Heatmap",
        "fit_probe": "lensbridge.analysis.fit_probe",
        "compar": "'compare'",
    }.items():
        with pytest.raises(AttributeError) as caught:
            getattr(lensbridge, name)
        assert hint in str(caught.value)
    with pytest.raises(AttributeError, match=r"model\.cfg\.n_layers"):
        _ = demo().n_layers
    _, cache = demo().run_with_cache(TEXT)
    with pytest.raises(AttributeError, match=r"cache\['resid_post', 1\]"):
        _ = cache.resid_post
    with pytest.raises(AttributeError, match=r"cache\['z', 1\]"):
        _ = cache.hook_z
    with pytest.raises(AttributeError, match="'last_token'"):
        _ = cache.last_tokens


def test_every_name_of_a_subpackage_is_found_without_importing_it() -> None:
    for room in lensbridge._ROOMS:
        exported = set(getattr(lensbridge.__getattr__(room), "__all__", ()))
        assert lensbridge._exported(room) == exported


def test_properties_that_raise_keep_their_own_message() -> None:
    class Broken(Hinted):
        @property
        def value(self) -> int:
            return self.nothing  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = Broken().value
    assert not hasattr(Broken(), "__deepcopy__")


def test_caches_and_results_are_still_copied_and_pickled() -> None:
    _, cache = demo().run_with_cache(TEXT, "resid_post")
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again["resid_post", 1], cache["resid_post", 1])
    assert torch.equal(copy.deepcopy(cache)["resid_post", 1], cache["resid_post", 1])
    result = pickle.loads(pickle.dumps(swept()))
    assert torch.equal(copy.deepcopy(result).values, result.values)
