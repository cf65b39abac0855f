"""The page in a real browser: answers, colours, stop, and a cloud that goes and comes back."""

import os
import re
import signal

import httpx
import pytest

from bench.lab.processes import cloud_process
from tests.edge_runtime.api.browser import TEED, browser, pieces_sent
from tests.edge_runtime.api.test_serve import KEY, free_endpoint, serving, until

SPANS = """
return [...document.querySelectorAll("#log .assistant:last-child .text > span")].map(
    (each) => [each.dataset.origin, each.textContent, getComputedStyle(each).backgroundColor])
"""
LANE_COLOURS = """
const strip = document.querySelector("#strip"), third = Math.floor(strip.height / 3);
const pen = strip.getContext("2d"), left = strip.width / 8;
return [0, 1, 2].map((lane) => new Set(new Uint32Array(pen.getImageData(
    left, lane * third + 4, strip.width - left, third - 8).data.buffer)).size);
"""
"""Number of colours in each lane of the strip, the ground and edges included."""
WAIT_S = 30


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


@pytest.fixture
def page(driver, bundle, endpoint):
    with serving(bundle, endpoint) as (url, _):
        driver.get(url.removesuffix("/v1"))
        driver.execute_script(TEED)
        yield driver
        assert not violations(driver)


def violations(driver):
    """What the browser refused, or did not understand, of the page itself."""
    lines = [line for line in driver.get_log("browser") if line["source"] != "rendering"]
    return [line for line in lines if "Failed to load resource" not in line["message"]]


def found(driver, selector):
    return driver.find_element("css selector", selector)


def set_to(driver, name, value):
    field = found(driver, f"#settings [name={name}]")
    field.clear()
    field.send_keys(value)


def ask(driver, text, **settings):
    for name, value in settings.items():
        set_to(driver, name, value)
    found(driver, "#prompt").send_keys(text + "\n")


def shown(driver, selector):
    return driver.execute_script(
        "const it = document.querySelector(arguments[0]); return it && it.checkVisibility()"
        " ? it.textContent : null",
        selector,
    )


def ended(driver):
    return shown(driver, "#send") and shown(driver, "#log .assistant:last-child .note")


def test_an_answer_has_the_colours_of_its_pieces(page, text):
    """Twice, so that the second prompt has the first answer in it."""
    ask(page, "Why is the sky blue?", temperature="0", top_p="", max_tokens="40")
    until(lambda: ended(page), WAIT_S)
    answer = shown(page, "#log .assistant:last-child .text")
    assert answer == text("user: Why is the sky blue?\n", 40, chat=True)
    ask(page, "And at night?")
    until(lambda: len(page.find_elements("css selector", ".assistant")) == 2, WAIT_S)
    until(lambda: ended(page), WAIT_S)
    prompt = f"user: Why is the sky blue?\nassistant: {answer}\nuser: And at night?\n"
    assert shown(page, "#log .assistant:last-child .text") == text(prompt, 40, chat=True)
    until(lambda: page.execute_script("return window.sent"), WAIT_S)
    spans = page.execute_script(SPANS)
    assert [(origin, piece) for origin, piece, _ in spans] == pieces_sent(page) != []
    legend = page.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.legend [data-origin]')].map("
        "(each) => [each.dataset.origin, getComputedStyle(each).backgroundColor]))"
    )
    assert len(set(legend.values())) == 4
    assert all(legend[origin] == colour for origin, _, colour in spans)
    assert re.search(r"^40 tokens, ", shown(page, "#log .assistant:last-child .note"))


def test_chats_stay_in_the_browser_and_untrusted_text_stays_text(page):
    hostile = '<img src=x onerror="document.title=1"><b>bold</b>'
    found(page, "#new").click()
    ask(page, hostile, max_tokens="4")
    until(lambda: ended(page), WAIT_S)
    before = shown(page, "#log")
    page.refresh()
    until(lambda: shown(page, "#log .note"), WAIT_S)
    assert shown(page, "#log") == before and hostile in before
    assert not page.find_elements("css selector", "#log img, #log b")
    assert hostile in [each.text for each in page.find_elements("css selector", "#chats .open")]
    found(page, "#chats .drop").click()
    assert hostile not in shown(page, "#chats") and shown(page, "#empty")


def test_the_strip_and_the_figures_show_what_was_done(page):
    until(lambda: shown(page, "#link") == "cloud connected", WAIT_S)
    ask(page, "Roses are", max_tokens="200")
    until(lambda: ended(page), WAIT_S)
    until(lambda: re.search(r"Tokens/s\d", shown(page, "#figures")), WAIT_S)
    figures = dict(
        page.execute_script(
            "return [...document.querySelectorAll('#figures div')].map("
            "(each) => [...each.children].map((part) => part.textContent))"
        )
    )
    assert 0 < float(figures["Cloud steps a token"]) <= 1
    assert re.fullmatch(r"\d+ %", figures["Agreement"]) and figures["Mode"]
    assert shown(page, "#reason").startswith("Why this mode: ")
    until(lambda: all(count >= 2 for count in page.execute_script(LANE_COLOURS)))


def test_an_answer_can_be_stopped(driver, bundle):
    with cloud_process(bundle.folder) as cloud, serving(bundle, cloud.endpoint) as (url, _):
        driver.get(url.removesuffix("/v1"))
        until(lambda: shown(driver, "#link") == "cloud connected", WAIT_S)
        os.kill(cloud.pid, signal.SIGSTOP)
        try:
            ask(driver, "Tell me more.", max_tokens="40")
            until(lambda: shown(driver, "#stop"), WAIT_S)
            found(driver, "#stop").click()
            until(lambda: ended(driver) == "Stopped.", WAIT_S)
            metrics = url.removesuffix("/v1") + "/metrics"
            until(lambda: 'requests_total{status="499"} 1.0' in httpx.get(metrics).text, WAIT_S)
        finally:
            os.kill(cloud.pid, signal.SIGCONT)
        ask(driver, "Go on.")
        until(lambda: " tokens" in (ended(driver) or ""), WAIT_S)


def test_a_cloud_that_goes_and_comes_back_is_shown(driver, bundle):
    endpoint = free_endpoint()
    bind = ("--bind", endpoint)
    with serving(bundle, endpoint, "--connect-timeout", "0.5", "--give-up", "2") as (url, _):
        driver.get(url.removesuffix("/v1"))
        until(lambda: "cloud is away" in (shown(driver, "#banner") or ""), WAIT_S)
        for number in range(2):
            with cloud_process(bundle.folder, *bind) as cloud:
                until(lambda: shown(driver, "#banner") is None, WAIT_S)
                assert shown(driver, "#link") == "cloud connected"
                ask(driver, f"Number {number}", max_tokens="8")
                until(lambda: " tokens" in (ended(driver) or ""), WAIT_S)
                os.kill(cloud.pid, signal.SIGKILL)
            until(lambda: "cloud is away" in (shown(driver, "#banner") or ""), WAIT_S)
        ask(driver, "In vain")
        until(lambda: shown(driver, "#log .note.bad button") == "Try again", WAIT_S)
    until(lambda: "does not answer" in (shown(driver, "#banner") or ""), WAIT_S)


def test_the_page_asks_for_the_key(driver, bundle, endpoint):
    with serving(bundle, endpoint, env={"EDGESPEC_API_KEY": KEY}) as (url, _):
        driver.get(url.removesuffix("/v1"))
        for key in ("wrong", KEY):
            until(lambda: shown(driver, "#key"), WAIT_S)
            found(driver, "#key-text").send_keys(key + "\n")
        until(lambda: shown(driver, "#link") == "cloud connected", WAIT_S)
        assert shown(driver, "#key") is None and shown(driver, "#model")
        ask(driver, "Hello", max_tokens="4")
        until(lambda: " tokens" in (ended(driver) or ""), WAIT_S)


def test_a_phone_and_the_keyboard(page):
    page.set_window_size(500, 700)
    try:
        wide = "return document.documentElement.scrollWidth > innerWidth"
        until(lambda: shown(page, "#menu") and shown(page, "#new") is None, WAIT_S)
        assert not page.execute_script(wide)
        found(page, "#menu").click()
        assert found(page, "#menu").get_attribute("aria-expanded") == "true"
        assert shown(page, "#new") and not page.execute_script(wide)
        found(page, "#new").click()
        until(lambda: shown(page, "#new") is None, WAIT_S)
        until(lambda: page.switch_to.active_element.get_attribute("id") == "prompt", WAIT_S)
    finally:
        page.set_window_size(1200, 800)


def test_the_policy_allows_nothing_foreign(bundle, endpoint):
    with serving(bundle, endpoint) as (url, _):
        reply = httpx.get(url.removesuffix("/v1"))
        foreign = httpx.get(url.removesuffix("/v1"), headers={"Host": "attacker.example"})
    assert foreign.status_code == 403
    policy = dict(
        part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["form-action"] == "'none'"
    for kind in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-\S+'", policy[kind])
    assert not re.search(r"(src|href)=.https?:", reply.text)
