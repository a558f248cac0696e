"""The report in a real browser, where one is installed: at the width of a desktop and of a phone, in light and in dark."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from handmade import write_run
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from dfa_tf.reporting import report
from dfa_tf.reporting.report_figures import draw
from dfa_tf.reporting.run_reader import read_run

BROWSER, DRIVER = (next(filter(None, map(shutil.which, names)), None) for names in (("chromium", "chromium-browser"), ("chromedriver",)))
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium or its driver is not installed")
DESKTOP, PHONE = 1280, 390


class Served(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what was asked for."""

    asked: list[str] = []  # noqa: RUF012 (shared on purpose: each request has a handler of its own)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # or a page that was seen before would not be asked for
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the reports of one run and of three are served."""
    folder = tmp_path_factory.mktemp("pages")
    records = [read_run(write_run(folder / name).path) for name in ("run", "other", "third_run_of_a_rather_long_name_that_goes_on_and_on")]
    drawings = draw(records[0])
    for page, count in (("one.html", 1), ("three.html", 3)):
        (folder / page).write_text(report.render(records[:count], [drawings] * count), encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Served, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))  # with its path, so that none is looked for elsewhere
    yield driver
    driver.quit()


def opened(browser: webdriver.Chrome, page: str, width: int, scheme: str) -> None:
    """Opens a page as a screen of this width shows it; the window itself may not be that narrow."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("page", ["one.html", "three.html"])
def test_the_page_in_a_browser(browser: webdriver.Chrome, address: str, page: str, width: int, scheme: str) -> None:
    Served.asked.clear()
    opened(browser, f"{address}/{page}", width, scheme)
    assert browser.get_log("browser") == []
    assert Served.asked == [f"/{page}"], "nothing but the page is asked for"
    assert (
        browser.execute_script("return performance.getEntriesByType('resource').filter(each => !each.name.startsWith('data:')).length") == 0
    )
    assert browser.execute_script("return innerWidth") == width
    wide, room = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= room, "the page scrolls sideways"
    assert browser.execute_script(OUTSIDE) == []
    loaded = browser.execute_script("return [...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert loaded
    assert all(loaded)


OUTSIDE = """
const inScroller = element => element.closest('.scroll, pre') !== null;
return [...document.querySelectorAll('main *')]
    .filter(element => !inScroller(element) && element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.outerHTML.slice(0, 100));
"""

CONTRAST = """
const numbers = text => text.match(/[0-9.]+/g).map(Number);
const linear = value => value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const luminance = rgb => 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
const ground = element => {
    for (let node = element; node; node = node.parentElement) {
        const colour = numbers(getComputedStyle(node).backgroundColor);
        if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return null;
};
const written = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
return [...document.querySelectorAll('body *')].filter(written).map(element => {
    const pair = [luminance(numbers(getComputedStyle(element).color)), luminance(ground(element))].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), element.textContent.trim().slice(0, 40)];
}).filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_its_ground(browser: webdriver.Chrome, address: str, scheme: str) -> None:
    """WCAG 2, level AA: a contrast of 4.5 to 1."""
    opened(browser, f"{address}/three.html", DESKTOP, scheme)
    grounds = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    assert browser.execute_script(CONTRAST) == []
