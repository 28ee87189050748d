"""The study's page and Snakemake's report in a real browser: quiet, whole, sortable, readable everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from browser_room import DESKTOP, PHONE, TEXTS, chromium, contrast, opened
from playwright.sync_api import Browser, Locator, Page

from tests.conftest import TEST_CONFIG, command

OPEN_ALL = "document.querySelectorAll('details').forEach((details) => { details.open = true; })"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module", params=["small", pytest.param("demo", marks=pytest.mark.demo)])
def results(request: pytest.FixtureRequest) -> Path:
    """A results tree with both pages: of the small study, and of the demo."""
    if request.param == "demo":
        return request.getfixturevalue("demo")
    root = request.getfixturevalue("finished_study")
    settings = ["--config", f"results_dir={root}", "--nolock"]
    done = command("snakemake", *TEST_CONFIG, *settings, "--report", f"{root}/report.html")
    assert done.returncode == 0, done.stdout
    return root


def numbers(cells: list[str]) -> list[float | None]:
    """Return the leading number of each cell, as a reader takes it; None for a dash."""
    found = [re.match(r"[-−]?[\d,]*\.?\d+(e-?\d+)?", cell.strip()) for cell in cells]
    return [float(match[0].replace(",", "").replace("−", "-")) if match else None for match in found]


def column(table: Locator, index: int) -> list[str]:
    return table.locator(f"tbody tr > :nth-child({index + 1})").all_inner_texts()


def headings(table: Locator) -> list[str]:
    return [text.strip() for text in table.locator("thead th").all_inner_texts()]


@pytest.mark.parametrize("name", ["index.html", "report.html"])
def test_a_page_loads_without_an_error_and_asks_for_nothing(browser: Browser, results: Path, name: str) -> None:
    with opened(browser, results / name) as loaded:
        loaded.page.wait_for_load_state("networkidle")
        assert loaded.page.title()
        assert loaded.errors == []
        assert [url for url in loaded.requests if not url.startswith(("file:", "data:"))] == []
        assert [url for url in loaded.requests if url.startswith("file:")] == [(results / name).resolve().as_uri()]


def test_every_link_of_the_page_resolves(browser: Browser, results: Path) -> None:
    with opened(browser, results / "index.html") as loaded:
        links = loaded.page.eval_on_selector_all("a[href]", "links => links.map(a => a.href)")
        ids = set(loaded.page.eval_on_selector_all("[id]", "all => all.map(element => element.id)"))
    assert len(links) > 50
    for link in links:
        address = urlsplit(link)
        file = Path(unquote(address.path))
        assert address.scheme == "file" and file.is_file() and file.is_relative_to(results.resolve()), link
        if address.fragment:
            assert file.name == "index.html" and unquote(address.fragment) in ids, link
    files = {Path(unquote(urlsplit(link).path)).name for link in links}
    assert {file.name for pattern in ("*.csv", "*.md", "*.tex", "*.pdf") for file in results.glob(pattern)} <= files


def test_the_report_shows_each_of_its_results(browser: Browser, results: Path) -> None:
    """Each category is opened, and in it each entry's button pressed: it shows a picture, a page or offers a file."""
    with opened(browser, results / "report.html") as loaded:
        page = loaded.page
        for name in ("Workflow", "Statistics", "About"):
            page.get_by_text(name, exact=True).first.click()
            page.reload()
        tables = [file for file in results.glob("*.tex") if file.stem != "claims"]
        claims, figures, runs = map(results.glob, ("claims.tex", "*.pdf", "runs/*/seed*/run.json"))
        shown = {"Tables": tables, "Claims": claims, "Figures": figures, "Runs": runs}
        for category, files in shown.items():
            page.get_by_text(category, exact=True).first.click()
            entries = page.locator("tbody tr")
            assert entries.count() == len(list(files)), category
            entries.first.locator("a").last.click()  # what it is: the caption
            assert page.locator("body").inner_text()
            page.reload()
        assert loaded.errors == []
        assert {urlsplit(url).scheme for url in loaded.requests} <= {"file", "data", "blob"}


def test_a_heading_sorts_its_table_by_mouse_and_keyboard(browser: Browser, results: Path) -> None:
    """Table 1 against its csv: up, down and as it was."""
    expected = pd.read_csv(results / "table1.csv")
    with opened(browser, results / "index.html") as loaded:
        table = loaded.page.locator("[id='artifact/table1'] table").first
        shown_columns = headings(table)
        for name in expected.columns:
            place = shown_columns.index(name)
            heading = table.locator("thead th").nth(place)
            button, numeric = heading.get_by_role("button"), pd.api.types.is_numeric_dtype(expected[name])
            shown = []
            for press in (button.click, lambda button=button: button.press("Enter"), lambda b=button: b.press("Space")):
                press()
                cells = column(table, place)
                shown.append((heading.get_attribute("aria-sort"), numbers(cells) if numeric else cells))
            values = expected[name].tolist()
            up, down = sorted(values), sorted(values, reverse=True)
            assert [order for order, _ in shown] == ["ascending", "descending", None]
            if numeric:
                assert [cells for _, cells in shown] == [up, down, values]
            else:
                assert sorted(shown[0][1]) == up and shown[2][1] == values
        assert column(table, 0)[-1] != "n"  # the row of counts is a foot, which is never sorted
        assert loaded.page.evaluate("document.activeElement.tagName") == "BUTTON"


def test_every_sortable_column_of_numbers_comes_out_in_order(browser: Browser, results: Path) -> None:
    with opened(browser, results / "index.html") as loaded:
        found = loaded.page.evaluate("""() => [...document.querySelectorAll("table.sortable")].flatMap((table) =>
          [...table.querySelectorAll("th button")].map((button) => {
            const column = button.parentElement.cellIndex;
            button.click();
            const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]);
            const texts = cells.map((cell) => cell.dataset.value ?? cell.textContent);
            return [button.parentElement.className.includes("number"), texts];
          }))""")
    columns = [numbers(cells) for numeric, cells in found if numeric]
    assert len(columns) >= 10
    for cells in columns:
        there = [number for number in cells if number is not None]
        assert cells == sorted(there) + [None] * (len(cells) - len(there))  # dashes come last


def test_the_filter_leaves_the_runs_that_have_all_words(browser: Browser, results: Path) -> None:
    lineages = [folder.parent.name for folder in results.glob("runs/*/seed1")]
    wanted = {name for name in lineages if "sft" in name and "dpo" in name}
    with opened(browser, results / "index.html") as loaded:
        page = loaded.page
        page.get_by_label("Filter runs").fill("dpo SFT")
        visible = page.locator("#runs details.run:visible > summary code").all_inner_texts()
        assert set(visible) == wanted and wanted
        assert page.locator("tr[data-run]:visible").count() == len(wanted)
        assert page.get_by_role("status").inner_text() == f"{len(wanted)} of {len(lineages)} runs"
        page.evaluate("location.hash = '#run/mistral+sft/seed1'")  # a link to a run that is filtered out shows it
        page.locator("details[open][id='run/mistral+sft/seed1']").wait_for()
        assert page.locator("tr[data-run]:visible").count() == len(lineages)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_readers_scheme_and_contrast(browser: Browser, results: Path, scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for every piece of text."""
    with opened(browser, results / "index.html", color_scheme=scheme) as loaded:
        loaded.page.evaluate(OPEN_ALL)
        texts = loaded.page.evaluate(TEXTS)
        paper = loaded.page.evaluate("getComputedStyle(document.body).backgroundColor")
        plate = loaded.page.evaluate("getComputedStyle(document.querySelector('.plate img')).backgroundColor")
    assert (contrast(paper, "rgb(0, 0, 0)") < 2) == (scheme == "dark")
    assert plate == "rgb(255, 255, 255)"  # figures are drawn for white
    assert len(texts) > 200
    assert [text for text in texts if contrast(text[1], text[2]) < 4.5] == []


def test_print_is_on_white_without_what_only_a_screen_can_use(browser: Browser, results: Path) -> None:
    with opened(browser, results / "index.html", color_scheme="dark") as loaded:
        page = loaded.page
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible() and not page.get_by_label("Filter runs").is_visible()
        assert page.locator("h1").is_visible() and page.locator(".plate img").first.is_visible()
        texts = page.evaluate(TEXTS)
        assert [text for text in texts if contrast(text[1], text[2]) < 4.5] == []
        assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_window(browser: Browser, results: Path, size: tuple[int, int]) -> None:
    with opened(browser, results / "index.html", size) as loaded:
        loaded.page.evaluate(OPEN_ALL)
        assert loaded.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert loaded.page.locator("nav").bounding_box()["y"] == 0
        loaded.page.mouse.wheel(0, 3000)
        loaded.page.wait_for_function("window.scrollY > 1000")
        assert loaded.page.locator("nav").bounding_box()["y"] == 0  # the contents stay in sight


def test_the_keyboard_reaches_the_contents_first(browser: Browser, results: Path) -> None:
    with opened(browser, results / "index.html") as loaded:
        page: Page = loaded.page
        page.keyboard.press("Tab")
        skip = page.locator(":focus")
        assert skip.get_attribute("class") == "skip" and skip.bounding_box()["x"] >= 0
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "report"])
def test_screenshots_for_those_who_look(browser: Browser, results: Path, name: str, scheme: str) -> None:
    """Whole pages at both widths, in `screenshots/` of the results tree: files to look at, of the right width."""
    for device, size in (("phone", PHONE), ("desktop", DESKTOP)):
        file = results / "screenshots" / f"{name}-{device}-{scheme}.png"
        with opened(browser, results / f"{name}.html", size, color_scheme=scheme) as loaded:
            loaded.page.wait_for_load_state("networkidle")
            loaded.page.screenshot(path=file, full_page=True)
        header = file.read_bytes()[:24]
        assert header.startswith(b"\x89PNG") and int.from_bytes(header[16:20]) == size[0]
