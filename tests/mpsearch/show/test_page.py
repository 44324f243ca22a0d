"""The page in a real browser: keys, limits, comparisons, saved bits, phones; skipped where there is no Chromium."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exploring import explored_run, record

from hwmodel import Precision
from mpsearch.request.assignment import Assignment, read_assignment
from mpsearch.show.boxes import draw_boxes
from mpsearch.show.explorer import ExploredRun, frame, page

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
Page = Any
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def run() -> ExploredRun:
    return explored_run("size_bytes", names={1: "10", 2: "2", 3: "</script><b onclick=alert()>"})


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a text as a page. No page may log anything, fail at anything, or ask for another file."""
    faults: list[str] = []
    contexts = []

    def see(text: str, **options: Any) -> Page:
        path = tmp_path / "front.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: faults.append(message.text))
        shown.on("pageerror", lambda error: faults.append(str(error)))
        own = path.as_uri()
        foreign = lambda url: url != own and not url.startswith("blob:")  # noqa: E731
        shown.on("request", lambda request: faults.append(request.url) if foreign(request.url) else None)
        shown.goto(own)
        shown.wait_for_selector("#plot[aria-valuetext], iframe")  # drawn, once all is unpacked
        return shown

    yield see
    for context in contexts:
        context.close()
    assert faults == []


def chosen(shown: Page) -> int:
    """The number of the configuration that the page shows."""
    return int(shown.text_content("#chosen-title").removeprefix("Configuration "))


def by_size(run: ExploredRun) -> list[int]:
    return np.lexsort((-run.front.objectives[:, 0], run.front.objectives[:, 1])).tolist()


def test_it_starts_with_the_point_at_the_budget(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]))
    best = run.front.best()
    assert chosen(shown) == best
    size = run.front.objectives[best, 1]
    assert f"{size:,.0f} bytes" in shown.text_content("#figures")
    assert f"{size:,.0f} bytes" in shown.get_attribute("#plot", "aria-valuetext")
    assert [cell.text_content() for cell in shown.query_selector_all("#measured tbody tr:first-child > *")] == [
        "top-1", "77.00 %", "12.00 %", "75.00 %",
    ]  # fmt: skip


def test_a_finished_detector_shows_its_boxes(run: ExploredRun, opened: Callable[..., Page]) -> None:
    plain = opened(page([run]))
    assert not plain.is_visible("#boxes")
    image = np.zeros((1, 32, 48, 3), np.uint8)
    seen = {"boxes": [(2, 3, 20, 30)], "scores": [0.9], "labels": [1]}
    picture = draw_boxes(image, {"float": [seen], "finished": [seen]}, "net")
    shown = opened(page([replace(run, boxes={"budget": picture})]))
    assert shown.is_visible("#boxes")
    shown.wait_for_function("document.querySelector('#boxes img').naturalWidth > 100")
    shown.locator("#plot").focus()
    shown.keyboard.press("Home")
    assert not shown.is_visible("#boxes")


def test_keys_go_through_the_front(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown, order = opened(page([run])), by_size(run)
    plot = shown.locator("#plot")
    plot.focus()
    at = order.index(run.front.best())
    far = max(1, round(len(order) / 20))
    for key, move in (("ArrowRight", 1), ("ArrowLeft", -1), ("PageDown", -far), ("PageUp", far), ("ArrowUp", 1)):
        plot.press(key)
        at = min(max(at + move, 0), len(order) - 1)
        assert chosen(shown) == order[at], key
        assert plot.get_attribute("aria-valuenow") == str(at)
    for key, end in (("Home", 0), ("End", -1), ("ArrowRight", -1)):
        plot.press(key)
        assert chosen(shown) == order[end]
    plot.press("b")
    assert chosen(shown) == run.front.best()


def test_the_budget_box_gives_the_best_within(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown, sizes = opened(page([run])), run.front.objectives[:, 1]
    box = shown.get_by_label("size at most")
    assert float(box.input_value()) * 1e6 == dict(run.front.budgets)["size_bytes"]
    for limit in np.linspace(sizes.min(), sizes.max(), 7):
        box.fill(f"{limit / 1e6:.9f}")
        assert chosen(shown) == run.front.best({"size_bytes": round(float(limit), 3)})
        assert shown.text_content("#within") == ""
        assert f"{run.front.objectives[chosen(shown), 1]:,.0f} bytes" in shown.text_content(
            "#said"
        )  # for screen readers
    last = chosen(shown)
    box.fill("0.0001")
    assert f"size is at least {sizes.min():,.0f} bytes" in shown.text_content("#within")
    assert box.get_attribute("aria-invalid") == "true"
    assert chosen(shown) == last
    box.fill("")
    assert chosen(shown) == int(run.front.objectives[:, 0].argmin())


def test_saved_bits_are_those_of_the_front(run: ExploredRun, opened: Callable[..., Page], tmp_path: Path) -> None:
    shown = opened(page([run]), accept_downloads=True)
    shown.locator("#plot").press("Home")
    for press in (lambda: shown.click("#save"), lambda: shown.locator("#plot").press("s")):
        with shown.expect_download() as download:
            press()
        name = download.value.suggested_filename
        assert name == f"run-point-{chosen(shown)}.json"
        download.value.save_as(tmp_path / name)
        config = run.front.config(chosen(shown))
        assert (tmp_path / name).read_text() == config.dumps() + "\n"  # layers whose names are numbers in place
        assert read_assignment(tmp_path / name, run.table.names) == Assignment(config, "")
        shown.locator("#plot").press("ArrowRight")


def test_two_configurations_side_by_side(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown, front = opened(page([run])), run.front
    shown.click("#pin")
    shown.locator("#plot").press("End")
    one, other = front.config(chosen(shown)), front.config(front.best())
    differ = sum(a != b for a, b in zip(one.precisions, other.precisions, strict=True))
    assert f"in {differ} of {len(one.layers)} layers" in shown.text_content("#figures")
    assert shown.locator("#bars rect.before").count() == differ
    size = [cell.text_content() for cell in shown.query_selector_all("#figures tbody tr:first-child td")]
    now, before = front.objectives[chosen(shown), 1], front.objectives[front.best(), 1]
    assert size[:2] == [f"{now:,.0f} bytesover the limit", f"{before:,.0f} bytes"]
    assert float(size[2].replace("%", "").replace("−", "-")) == pytest.approx(100 * (now / before - 1), abs=0.51)
    shown.click("#pin")
    assert shown.locator("#bars rect.before").count() == 0


def test_layers_in_the_table_and_under_the_keys(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]))
    shown.click("#layers summary")
    shown.wait_for_selector("#table tbody tr")
    rows = [
        [cell.text_content() for cell in row.query_selector_all("th, td")]
        for row in shown.query_selector_all("#table tbody tr")
    ]
    config = run.front.config(run.front.best())
    assert [row[0] for row in rows] == list(run.table.names)
    assert [row[3] for row in rows] == [str(precision) for precision in config.precisions]
    sizes = [int(row[4].replace(",", "")) for row in rows]
    assert sum(sizes) + run.costs.fixed_bytes == run.front.objectives[run.front.best(), 1]
    bars = shown.locator("#bars")
    bars.press("End")
    bars.press("ArrowLeft")
    assert bars.get_attribute("aria-valuetext").startswith("l10: conv 1→")
    assert shown.text_content("#one").startswith("l10: conv 1→")
    assert shown.locator("#table b").count() == 0  # a name is text, whatever it holds


def test_bars_by_bytes_and_by_loss(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]))
    choice = run.front.choices[run.front.best()]
    at = np.arange(len(choice))
    heights = (
        "[...document.querySelectorAll('#bars rect[class^=bits]')].map((bar) => Number(bar.getAttribute('height')))"
    )
    widths = [precision.w for precision in run.front.config(run.front.best()).precisions]
    for name, values in (
        ("bits", np.array(widths)),
        ("size_bytes", run.costs.weight_bytes[at, choice]),
        ("alone", run.alone[at, choice]),
    ):
        shown.select_option("#measure", name)
        drawn = np.array(shown.evaluate(heights))
        assert np.allclose(drawn / drawn.max(), values / values.max(), atol=1e-4), name


def test_entropy_coded_weights_have_rates(opened: Callable[..., Page], tmp_path: Path) -> None:
    some = explored_run("size_bytes", finished=[])
    rates = tuple(Precision(8, 8, rate) for rate in (0.5, 1.5, 2.5, 4.0, 8.0))
    coded = replace(
        some, front=replace(some.front, precisions=rates), costs=replace(some.costs, precisions=rates), answers=()
    )
    shown = opened(page([coded]), accept_downloads=True)
    shown.locator("#plot").press("End")
    config = coded.front.config(chosen(shown))
    assert f"weights at {config.precisions[0].rate:g} bits each, entropy-coded" in shown.text_content("#one")
    for precision in set(config.precisions):
        assert f"{precision.rate:g} bits:" in shown.text_content("#shares")
    with shown.expect_download() as download:
        shown.click("#save")
    assert Path(download.value.path()).read_text() == config.dumps() + "\n"


def test_a_front_of_one_point_and_a_model_that_gives_nan(opened: Callable[..., Page]) -> None:
    some = explored_run("size_bytes")
    front = some.front
    one = replace(front, choices=front.choices[:1], objectives=np.array([[0.0, front.objectives[0, 1]]]), budgets=())
    broken = record(front.config(0).to_json(), 3)
    broken["metrics"]["finished"] = {"top1": math.nan, "kl": math.inf}
    shown = opened(page([replace(some, front=one, finished=[("broken", broken)])]))
    assert chosen(shown) == 0
    shown.locator("#plot").press("ArrowRight")
    assert shown.locator("#plot path.finished").count() == 0
    assert "NaN" not in shown.inner_html("#plot")
    assert "inf nats" in shown.text_content("#measured")
    shown.get_by_label("size at most").fill("")
    assert chosen(shown) == 0


def test_a_click_takes_the_nearest_point(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]))
    plot = shown.locator("#plot")
    plot.press("Home")
    box = shown.locator("#plot .chosen").bounding_box()
    smallest = chosen(shown)
    plot.press("End")
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.wait_for_selector("#hint:not([hidden])")
    assert f"{run.front.objectives[smallest, 1] / 1e6:.4g}"[:5] in shown.text_content("#hint")
    shown.mouse.down()
    shown.mouse.up()
    assert chosen(shown) == smallest


def test_what_is_finished_beside_the_front(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]))
    assert shown.locator("#plot path.finished").count() == 2
    shown.click("#finished button:has-text('mine')")
    assert shown.text_content("#chosen-title") == "Configuration mine"
    with shown.expect_download() as download:
        shown.click("#save")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved == dict(run.finished)["mine"]["config"]
    shown.click("#finished button:has-text('budget')")
    assert chosen(shown) == run.front.best()


def test_several_runs_in_one_page(run: ExploredRun, opened: Callable[..., Page]) -> None:
    other = explored_run("size_bytes", "bops", name="other", seed=1, finished=[])
    shown = opened(page([run, other]))
    shown.get_by_label("other").check()
    assert chosen(shown) == other.front.best(dict(run.front.budgets))  # limits stay
    assert "of " + f"{len(other.front):,} in other" in shown.text_content("#named")
    assert shown.text_content("#command") == f"finish other {chosen(shown)}"
    shown.get_by_label("bit operations at most").fill(str(float(other.front.objectives[:, 2].min()) * 1e-9))
    limits = {**dict(run.front.budgets), "bops": float(other.front.objectives[:, 2].min())}
    assert chosen(shown) == other.front.best(limits)
    shown.select_option("#across", "mean_bits")
    shown.get_by_label("run", exact=True).check()
    assert "in run" in shown.text_content("#named")
    shown.locator("#plot").press("c")
    shown.get_by_label("other").check()
    assert f"point {run.front.best()} in run" in shown.text_content("#figures")


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_colours_follow_the_system_and_the_button(run: ExploredRun, opened: Callable[..., Page], scheme: str) -> None:
    shown = opened(page([run]), color_scheme=scheme)
    background = "getComputedStyle(document.body).backgroundColor"
    first = shown.evaluate(background)
    shown.click("#theme")
    second = shown.evaluate(background)
    light, dark = (first, second) if scheme == "light" else (second, first)
    assert sum(map(int, light[4:-1].split(","))) > 600 > 150 > sum(map(int, dark[4:-1].split(",")))


CONTRAST = """(selector) => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).slice(0, 3)
      .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].filter((e) => e.offsetParent && e.textContent.trim()).map((e) => {
    let behind = e;
    while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    const pair = [getComputedStyle(e).color, getComputedStyle(behind).backgroundColor].map(luminance).sort();
    return [(pair[1] + 0.05) / (pair[0] + 0.05), e.textContent];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_words_stand_out_from_what_is_behind_them(run: ExploredRun, opened: Callable[..., Page], scheme: str) -> None:
    """Contrast of 4.5 at least: WCAG 2.2, success criterion 1.4.3."""
    shown = opened(page([run, explored_run("size_bytes", name="b", finished=[])]), color_scheme=scheme)
    shown.click("#pin")
    shown.locator("#plot").press("End")
    found = shown.evaluate(
        CONTRAST, "h1, h2, h3, p, th, td, button, label, legend, summary, small, code, kbd, .tag, footer"
    )
    assert len(found) > 40
    assert [(ratio, text) for ratio, text in found if ratio < 4.5] == []


def test_controls_have_names_and_keys(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]))
    tree = shown.locator("body").aria_snapshot()
    for line in (
        'slider "Configurations of the front"',
        'slider "Layers in network order"',
        'spinbutton "size at most, MB"',
    ):
        assert line in tree
    for button in ("Save its bits as JSON", "Compare with this one", "Use dark colours"):
        assert f'button "{button}"' in tree
    reached = set()
    for _ in range(14):
        shown.keyboard.press("Tab")
        reached.add(shown.evaluate("document.activeElement.id"))
    assert {"theme", "across", "at-most-size_bytes", "plot", "save", "pin", "bars"} <= reached


def test_it_fits_a_phone(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened(page([run]), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    plot = shown.locator("#plot")
    plot.scroll_into_view_if_needed()
    before = chosen(shown)
    box = plot.bounding_box()
    shown.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.8 * box["height"])
    assert chosen(shown) != before
    shown.click("#pin")
    plot.press("End")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360


def test_in_a_notebook_it_is_a_frame_that_works(run: ExploredRun, opened: Callable[..., Page]) -> None:
    shown = opened("<!doctype html><title>notebook</title>" + frame(page([run])))
    inside = shown.frame_locator("iframe")
    inside.locator("#plot").press("Home")
    assert inside.locator("#chosen-title").text_content() == f"Configuration {by_size(run)[0]}"
    with shown.expect_download() as download:
        inside.locator("#save").click()
    assert Path(download.value.path()).read_text() == run.front.config(by_size(run)[0]).dumps() + "\n"


@pytest.mark.slow
def test_an_old_browser_is_told_so(run: ExploredRun, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "front.html").write_text(page([run]), encoding="utf-8")
    context = browser.new_context()
    shown = context.new_page()
    shown.add_init_script("delete window.DecompressionStream")
    shown.goto((tmp_path / "front.html").as_uri())
    assert "too old" in shown.locator("#fault:not([hidden])").text_content(timeout=5000)
    context.close()
