"""A headless Chromium for tests of the page, which skip where there is none."""

import contextlib
import json
import os
import shutil

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
TEED = """
window.sent = "";
const plain = window.fetch;
window.fetch = async (...asked) => {
  const reply = await plain(...asked);
  if (!String(asked[0]).includes("completions") || !reply.ok) return reply;
  const [mine, theirs] = reply.body.tee();
  new Response(mine).text().then((text) => { window.sent = text; });
  return new Response(theirs, reply);
};
"""
"""Keeps the bytes of the last streamed answer in `window.sent`."""


@contextlib.contextmanager
def browser(*options):
    """A Selenium driver. Skips the test if it cannot be had."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium or chromedriver is not installed (apt-get install chromium-driver)")
    settings = selenium.ChromeOptions()
    settings.binary_location = CHROMIUM
    for each in ("--headless=new", "--disable-gpu", "--no-first-run", *options):
        settings.add_argument(each)
    if os.geteuid() == 0:
        settings.add_argument("--no-sandbox")
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.ChromeService(DRIVER)
    driver = selenium.Chrome(settings, service)
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


def pieces_sent(driver):
    """The pieces of the last streamed answer, as the server sent them."""
    raw = driver.execute_script("return window.sent")
    chunks = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [(piece["origin"], piece["text"]) for c in choices for piece in c.get("edgespec") or ()]
