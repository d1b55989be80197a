"""The report in a real Chromium: it loads, sorts, filters, opens provenance, by mouse and by keyboard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.paper import protocol
from harness.paper.figures.data import FOLDER
from harness.report import page
from harness.storage.store import Store
from tests.helpers.fabricated import features, fill, gallery

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
if CHROMIUM is None:
    pytest.skip("no chromium here: apt-get install chromium", allow_module_level=True)
WIDTHS = (1280, 768, 360)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    names = ("table1", "table3", "table4", "table6", "table7", "figure4", "figure5", "figure6")
    made = fill(folder, [protocol.load(name) for name in names], protocol.profile("smoke"))
    gallery(folder, made)
    for name in ("figure4", "figure5"):
        Store(folder).write_json(FOLDER, name, features())
    return page.write(folder, None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; fails where it logs anything or asks for anything from outside."""
    complaints: list[str] = []
    contexts = []

    def open_(width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else complaints.append(request.url)
            ),
        )
        page.goto(page_file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints


def column(page: Any, number: int) -> list[str]:
    """The text of one column of the records, as it stands."""
    cells = page.locator(f"#all-records tbody tr:visible > :nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_it_loads_without_errors_and_without_the_network(opened: Callable[..., Any]) -> None:
    page = opened()
    assert "Robustness report" in page.title()
    assert page.locator("#overview .tile").count() == 4
    broken = page.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0


def test_columns_sort_both_ways(opened: Callable[..., Any]) -> None:
    page = opened()
    head = page.locator("#all-records thead th").nth(8)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    numbers = [float(text.split()[0]) for text in column(page, 9)]
    assert numbers == sorted(numbers) and len(set(numbers)) > 3
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column(page, 9)] == sorted(numbers, reverse=True)


def test_words_and_flags_filter(opened: Callable[..., Any]) -> None:
    page = opened()
    everything = len(column(page, 2))
    page.get_by_label("Filter").fill("menet bpda")
    shown = column(page, 2)
    assert 0 < len(shown) < everything and all("menet" in text for text in shown)
    assert page.locator("#all-records-count").inner_text() == f"{len(shown)} of {everything}"
    page.get_by_label("Filter").fill("")
    page.get_by_label("Flag").select_option("not-converged")
    assert 0 < len(column(page, 2)) < everything
    assert all("not-converged" in text for text in column(page, 11))
    page.get_by_label("Show").select_option("fell")
    assert page.locator("#claims tbody tr:visible").count() == 1


def test_provenance_is_one_click_away(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("#part-table4 a.number").first.click()
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    text = dialog.inner_text()
    for word in ("key", "commit", "seed", "95 % Wilson", "scoring draws", "0123456789ab"):
        assert word in text
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    link = page.locator("#part-table4 a.number").first
    link.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.get_by_role("button", name="Close").press("Enter")
    assert page.evaluate("document.activeElement.matches('#part-table4 a.number')")
    flag = page.locator("#part-table4 details.flag summary").first
    flag.focus()
    page.keyboard.press("Enter")
    assert page.locator("#part-table4 details.flag p").first.is_visible()


def test_every_seed_of_a_number_is_reached_by_keyboard(
    opened: Callable[..., Any], tmp_path: Path
) -> None:
    profile = msgspec.structs.replace(protocol.profile("smoke"), seeds=[0, 3])
    fill(tmp_path, [protocol.load("table4")], profile)
    page = opened(360)
    page.goto(page.write(tmp_path, None).as_uri())
    number = page.locator("#part-table4 summary.number").first
    number.focus()
    page.keyboard.press("Enter")
    for seed in (0, 3):
        page.keyboard.press("Tab")
        link = page.locator("#part-table4 details[open] a.number", has_text=f"seed {seed}:")
        assert link.evaluate("link => link === document.activeElement")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        assert f"seed {seed}" in dialog.locator("h3").inner_text()
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CONTRAST) == []


def test_without_scripts_every_number_still_leads_to_its_record(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    link = page.locator("#part-table4 a.number").first
    target = link.get_attribute("href")
    assert page.locator(f"{target}").count() == 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(
    opened: Callable[..., Any], tmp_path: Path, width: int, scheme: str
) -> None:
    page = opened(width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
    return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126*r + .7152*g + .0722*b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const poor = new Set();
  const all = "h1, h2, p, a, td, th, summary, small, dt, dd, button, .chip, strong";
  for (const e of document.querySelectorAll(all)) {
    if (!e.checkVisibility() || !e.textContent.trim()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.add(e.tagName + "." + e.className);
  }
  return [...poor];
}"""
"""Elements whose text has less than the contrast of WCAG 2.1 AA."""
