"""The page in a real browser, from typing to patching. `make browser` runs this."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from serve.pages import CONTRAST, Opened, opened
from serve.site import EIFFEL, GALATA, Site, serving
from serve.slow import Slow

from lensbridge.model import LensModel

pytestmark = pytest.mark.browser

pytest.importorskip("playwright.sync_api")

INSECURE = "delete Crypto.prototype.randomUUID; delete Navigator.prototype.clipboard"

TABS = (
    *("predictions", "lens", "attention", "neurons", "attribution"),
    *("edits", "comparison", "steering"),
)


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Opened]:
    with opened(browser, site) as found:
        yield found


def visit(page: Opened, tab: str) -> None:
    """Open a view and wait until it is there."""
    page.open(tab)
    if tab == "comparison":
        page.click("text=Patch >> visible=true >> nth=-1")
        page.see("text=36 of 36 cells")


def test_typing_a_prompt_shows_its_tokens_and_what_comes_next(page: Opened) -> None:
    page.type(GALATA)
    page.see(".bars li:first-child >> text=·Istanbul")
    assert page.texts(".chip") == [
        "<|endoftext|>",
        "The",
        "·Galata",
        "·Tower",
        *["·is", "·in", "·the", "·city", "·of"],
    ]
    page.click(".chip >> text=·Galata")
    page.see("h3 >> text=·Galata")
    page.see(".bars li:first-child >> text=·Tower")


def test_numbers_in_the_page_are_those_of_the_model(page: Opened, model: LensModel) -> None:
    chances = model(EIFFEL)[0, -1].softmax(-1)
    shown = page.texts(".bars .number")
    for text, chance in zip(shown, chances.topk(12).values.tolist(), strict=True):
        assert float(text.strip("<%")) == pytest.approx(100 * chance, abs=0.06)


def test_a_cell_of_the_lens_opens_its_likeliest_tokens(page: Opened, model: LensModel) -> None:
    page.open("lens")
    rows = page.texts(".grid tbody th")
    assert rows == [*(f"before layer {i}" for i in range(4)), "output"]
    page.click(".grid tbody tr:nth-child(4) td:nth-child(10)")
    page.see("h3 >> text=before layer 3, at ·of")
    lens = model.logit_lens(EIFFEL, top_k=5, layers=3, return_type="probs")
    wanted = [text.replace(" ", "·") for text in lens.decode()[0][0]]
    assert page.texts(".beside .bars .name") == wanted


def test_attention_of_any_head(page: Opened, model: LensModel) -> None:
    page.open("attention")
    page.page.select_option("select", label="Layer 2")
    page.click("button:has-text('Head 2')")
    page.see("h3 >> text=Head 2.2")
    _, cache = model.run_with_cache(EIFFEL, "pattern")
    canvas = page.page.locator(".matrix canvas")
    size = page.page.evaluate("document.querySelector('.matrix canvas').width")
    box = canvas.bounding_box()
    cell = 40 * box["width"] / size * page.page.evaluate("devicePixelRatio || 1")
    canvas.hover(position={"x": box["width"] - 2 - 6.5 * cell, "y": box["height"] - 2 - 0.5 * cell})
    weight = float(cache["pattern", 2][0, 2, 8, 2])
    page.see(f".readout >> text=·of attends to ·Eiffel: {100 * weight:.1f}%")
    page.keys(canvas, "ArrowRight")
    page.see(".readout >> text=·of attends to ·Tower")


def test_neurons_on_the_text(page: Opened, model: LensModel) -> None:
    page.open("neurons")
    _, cache = model.run_with_cache(EIFFEL, "post")
    top = int(cache["post", 3][0, -1].abs().argmax())
    page.see(f"h3 >> text=Neuron {top} of 512 in layer 3")
    page.fill("Neuron", "37")
    page.see("h3 >> text=Neuron 37 of 512")
    titles = page.page.eval_on_selector_all(".text > *", "all => all.map(one => one.title)")
    found = [float(title.rsplit(" ", 1)[1].replace("\u2212", "-")) for title in titles]
    assert found == pytest.approx(cache["post", 3][0, :, 37].tolist(), abs=0.006)
    page.click("text=Ablate this neuron")
    page.see(".edits li >> text=neuron 3.37: set to zero")


def test_a_click_on_the_map_ablates_a_head_and_the_logits_move(
    page: Opened, model: LensModel
) -> None:
    page.open("edits")
    page.see("td[aria-label^='MLP 3']")
    page.click("td[aria-label^='head 2.2']")
    page.see(".edits li >> text=head 2.2: set to zero")
    page.see("text=/The logit of ·Paris moves by \u22124.9\\d, from 12.5\\d to 7.5\\d/")
    page.see(".pairs li:first-child >> text=98.6% → 4.4%")
    assert 'Zero(("z", 2), heads=2)' in page.code()
    page.click("[aria-label='Remove: head 2.2: set to zero']")
    page.see("text=No edits yet")


def test_a_patch_is_added_with_the_form_and_a_wrong_one_is_explained(page: Opened) -> None:
    page.click(".chip >> text=·Eiffel")
    page.open("edits")
    page.page.get_by_label("Part").select_option("stream")
    page.page.get_by_label("Layer").select_option("1")
    page.page.get_by_label("Where").select_option("chosen")
    page.page.get_by_label("What to do").select_option("patch")
    page.click("text=Add edit")
    page.see("[role=alert] >> text=A patch needs a second prompt")
    page.click("[aria-label^='Remove:']")
    page.page.get_by_label("Prompt to patch from").fill(GALATA)
    page.click("text=Add edit")
    page.see(f".edits li >> text=stream before layer 1 at ·Eiffel: patch from “{GALATA}”")
    page.click(".chip >> text=·of")
    page.see(".pairs li:first-child >> text=·Istanbul")
    assert "positions=2, source_positions=2" in page.code()


def test_the_comparison_fills_and_its_cells_open_as_edits(page: Opened) -> None:
    page.open("comparison")
    page.click("button >> text=Patch")
    page.see("text=36 of 36 cells")
    values = page.texts(".grid td")
    assert len(values) == 36
    assert values[2] == "1.00"
    assert values[3 * 9 + 8] == "0.99"
    page.click("td[aria-label^='layer 1, at ·Galata']")
    page.see(".edits li >> text=stream before layer 1 at ·Galata: patch from")
    page.see("text=The logit of ·Paris moves by")
    assert page.page.input_value("#prompt") == GALATA


def test_a_comparison_can_be_stopped(browser: Any, site: Site, model: LensModel) -> None:
    slow = Slow(model)
    with opened(browser, site) as page:
        page.open("comparison")
        with slow.paused(0.1):
            page.click("button >> text=Patch")
            page.see("td[aria-label^='layer 0']")
            page.click("button >> text=Stop")
            page.see("text=stopped after")
            done = int(re.findall(r"stopped after (\d+)", page.text("main"))[0])
            assert 0 < done < 36
            page.page.wait_for_timeout(1000)  # a busy machine hears of it later
            runs = slow.runs
            page.page.wait_for_timeout(600)
            assert slow.runs == runs
            assert runs < 36
        page.click("button >> text=Patch")
        page.see("text=36 of 36 cells")


def test_steering_is_shown_side_by_side(page: Opened) -> None:
    page.open("steering")
    page.see(".continued >> nth=1 >> text=·Istanbul")
    page.see(".continued >> nth=0 >> text=·Paris")
    page.fill("Toward", "The Colosseum is in the city of")
    page.see(".continued >> nth=1 >> text=·Rome")


def test_only_the_last_prompt_counts_when_one_types_on(
    browser: Any, site: Site, model: LensModel
) -> None:
    slow = Slow(model)
    with opened(browser, site) as page, slow.paused(0.3):
        for text in ("The", "The Colosseum", "The Colosseum is in the city of"):
            page.page.fill("#prompt", text)
            page.page.press("#prompt", "Enter")
        page.see(".bars li:first-child >> text=·Rome")
        page.page.wait_for_timeout(900)
        assert page.texts(".bars .name")[0] == "·Rome"
        assert page.texts(".chip")[-1] == "·of"


def test_two_tabs_do_not_disturb_each_other(browser: Any, site: Site) -> None:
    with opened(browser, site) as one, opened(browser, site) as two:
        one.open("comparison")
        one.click("button >> text=Patch")
        two.type(GALATA)
        two.see(".bars li:first-child >> text=·Istanbul")
        one.see("text=36 of 36 cells")
        one.open("predictions")
        one.see(".bars li:first-child >> text=·Paris")
        assert two.page.input_value("#prompt") == GALATA


def test_text_is_never_markup(page: Opened) -> None:
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    page.type(evil)
    page.see(".chip >> text=<")
    for tab in TABS[:6]:
        page.open(tab)
    assert page.page.locator("main img, main script").count() == 0
    assert "lensbridge" in page.page.title()
    page.open("comparison")
    page.fill("Corrupted prompt", evil)
    page.click("button >> text=Patch")
    page.see("[role=alert] >> text=Both prompts are the same")


def test_what_is_wrong_is_told_in_the_page(page: Opened) -> None:
    page.type("word " * 200)
    page.see("[role=alert] >> text=the context is 128")
    page.type(EIFFEL)
    page.see(".bars li:first-child >> text=·Paris")
    assert not page.page.locator("[role=alert]").is_visible()


def test_an_address_without_the_token_is_explained(browser: Any, site: Site) -> None:
    page = browser.new_page()
    page.goto(site.url)
    assert "?token=" in page.text_content("body")
    page.close()


def test_everything_can_be_done_with_the_keyboard(page: Opened) -> None:
    tab = page.page.locator("#tab-predictions")
    page.keys(tab, "ArrowRight")
    page.page.keyboard.press("Enter")
    page.see(".grid")
    page.page.locator(".grid td[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.page.keyboard.press(key)
    page.see("h3 >> text=before layer 1, at ·Eiffel")
    page.page.locator(".chip[aria-checked=true]").focus()
    for key in ("Home", "ArrowRight", "Enter"):
        page.page.keyboard.press(key)
    page.see(".chip[aria-checked=true] >> text=The")


def test_controls_have_names(page: Opened) -> None:
    for tab in TABS:
        visit(page, tab)
        nameless = page.page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, canvas, td")]
            .filter(one => one.ariaHidden !== "true" && !one.matches("td.none"))
            .filter(one => one.checkVisibility() && !(one.labels?.length || one.textContent.trim()
              || one.getAttribute("aria-label"))).map(one => one.outerHTML)"""
        )
        assert nameless == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_text_has_contrast_and_fits(browser: Any, site: Site, theme: str, width: int) -> None:
    with opened(browser, site, color_scheme=theme, width=width) as page:
        for tab in TABS:
            visit(page, tab)
            page.page.wait_for_timeout(300)
            measured = page.page.evaluate(CONTRAST)
            assert len(measured) > 20
            weak = [one for one in measured if one["contrast"] < 4.5]
            assert weak == [], f"{tab}: {weak[:3]}"
            whole = page.page.evaluate("document.documentElement.scrollWidth")
            assert whole <= width, f"{tab} is {whole} wide"


def test_the_python_is_copied(page: Opened) -> None:
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("text=Copy")
    page.see("text=Copied")
    assert page.page.evaluate("navigator.clipboard.readText()") == page.code()
    assert page.code().startswith("import lensbridge\n")


def test_a_reload_keeps_what_was_typed(page: Opened) -> None:
    page.type(GALATA)
    page.see(".bars li:first-child >> text=·Istanbul")
    page.open("neurons")
    page.page.reload()
    page.see("#tab-neurons[aria-selected=true]")
    assert page.page.input_value("#prompt") == GALATA


def test_a_model_without_attention_says_so(browser: Any) -> None:
    from serve.test_kinds import tiny

    with serving(tiny("MambaForCausalLM", None)) as site, opened(browser, site) as page:
        page.see("text=because this model has no tokenizer")
        page.see(".chip >> text=id 5")
        page.page.click("#tab-attention")
        page.see("[role=alert] >> text=No layer of this model has attention patterns.")
        page.open("edits")
        page.see("td[aria-label^='mixer 0']")


def test_a_page_that_is_not_a_secure_context_works(browser: Any, site: Site) -> None:
    """As at the address of another machine, where these do not exist."""
    with opened(browser, site, script=INSECURE) as page:
        page.see(".bars li:first-child >> text=·Paris")
        page.click("text=Copy")
        page.see("#status >> text=The Python is selected")
        assert page.page.evaluate("String(getSelection())").strip() == page.code().strip()


def test_nothing_is_fetched_from_elsewhere(page: Opened, site: Site) -> None:
    for tab in TABS:
        visit(page, tab)
    assert page.requests
    assert all(url.startswith(site.url) for url in page.requests)
