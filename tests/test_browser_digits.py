"""The page that reads digits: drawn with a pointer, with keys, and chosen; its numbers are Python's."""

import json
import re
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import pytest
import torch
from torch import Tensor

import digits_network
import fundl
from tests.browsing import NARROW, WIDE, browser, shown
from tests.drawings import DIGITS, Stroke, image_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

THEMES: Sequence[Literal["light", "dark"]] = ("light", "dark")


@pytest.fixture(scope="module")
def chromium() -> Generator["Browser"]:
    with browser() as started:
        yield started


# --- The page ------------------------------------------------------------------------------------------------------------


def draw(page: "Page", strokes: Sequence[Stroke]) -> None:
    """Draw on the sheet with the pointer."""
    box = page.locator("#sheet").bounding_box()
    assert box is not None
    for stroke in strokes:
        for index, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if index == 0:
                page.mouse.down()
        page.mouse.up()


def answered(page: "Page", text: str) -> "Locator":
    """The answer, once it has a text, and the pen is lifted."""
    answer = page.locator('#answer[aria-busy="false"]', has_text=re.compile(text))
    answer.wait_for()
    return answer


def until(page: "Page", condition: str) -> None:
    """Wait until a condition holds; the page does not let Playwright do so itself, which would evaluate text in it."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def reading(page: "Page") -> tuple[Sequence[Stroke], Tensor, Tensor]:
    """The strokes, their pixels and the probabilities of the digits, as the page has them."""
    numbers = "{ pixels: [...reading.pixels], probabilities: [...(reading.probabilities ?? [])] }"
    text = page.evaluate(f"JSON.stringify({{ ...reading, ...{numbers} }})")
    assert isinstance(text, str)
    found: _Reading = json.loads(text)
    pixels = torch.tensor(found["pixels"], dtype=torch.float32).reshape(28, 28)
    return found["strokes"], pixels, torch.tensor(found["probabilities"], dtype=torch.float32)


class _Reading(TypedDict):
    strokes: list[list[tuple[float, float]]]
    pixels: list[float]
    probabilities: list[float]


@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (NARROW, "dark")])
def test_what_is_drawn_is_read(chromium: "Browser", size: tuple[int, int], theme: Literal["light", "dark"]) -> None:
    model = fundl.load_model(digits_network.WEIGHTS)
    with shown(chromium, "digits", size, theme) as page:
        answered(page, "Draw a digit")
        for digit, strokes in enumerate(DIGITS):
            draw(page, strokes)
            answered(page, f"a {digit}")
            drawn, pixels, probabilities = reading(page)
            assert len(drawn) == len(strokes)
            assert (pixels - image_of(drawn)).abs().max() < 1e-6
            expected = fundl.apply(model, pixels.reshape(1, 1, 28, 28))[0]
            assert (probabilities - expected).abs().max() < 1e-5
            assert probabilities[digit] > 0.5
            assert_shown(page, probabilities)
            page.locator("#clear").click()
            answered(page, "Draw a digit")


def assert_shown(page: "Page", probabilities: Tensor) -> None:
    """The bars are as long as the probabilities, which stand beside them; one is marked."""
    text = page.evaluate("""JSON.stringify([...document.querySelectorAll("#bars li")].map((row) => {
        const [track, bar] = [".track", ".track span"].map((part) => row.querySelector(part).getBoundingClientRect().width)
        return [bar / track, parseFloat(row.querySelector(".share").textContent) / 100, Number(row.className === "best")]
    }))""")
    assert isinstance(text, str)
    lengths, shares, marks = torch.tensor(json.loads(text)).T
    assert (lengths - probabilities).abs().max() < 0.01
    assert (shares - probabilities).abs().max() < 0.0006
    assert marks.tolist() == [float(digit == int(probabilities.argmax())) for digit in range(10)]


def test_the_bars_move_while_one_draws(chromium: "Browser") -> None:
    with shown(chromium, "digits") as page:
        answered(page, "Draw a digit")
        box = page.locator("#sheet").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"], steps=10)
        page.locator('#answer[aria-busy="true"]', has_text="a 1").wait_for()  # and nothing is read out before the stroke ends
        page.mouse.up()
        answered(page, "a 1")


def test_without_a_pointer(chromium: "Browser") -> None:
    with shown(chromium, "digits") as page:
        answered(page, "Draw a digit")
        page.keyboard.press("Tab")  # the link
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "sheet"
        for key in [*["ArrowUp"] * 9, *["ArrowLeft"] * 5, "Space", *["ArrowRight"] * 10]:  # the roof of a 7
            page.keyboard.press(key)
        page.keyboard.down("ArrowLeft")  # two arrows go slanted
        for _ in range(7):
            page.keyboard.down("ArrowDown")
        page.keyboard.up("ArrowLeft")
        for key in [*["ArrowDown"] * 11, "Shift+ArrowDown", "Space", "ArrowUp"]:
            page.keyboard.press(key)
        page.keyboard.up("ArrowDown")
        answered(page, "a 7")
        ((first, *_, last),), _, _ = reading(page)
        assert first == pytest.approx((0.3, 0.14))
        assert last == pytest.approx((0.38, 0.87))


def test_drawings_to_try_undo_and_clear(chromium: "Browser") -> None:
    with shown(chromium, "digits") as page:
        answered(page, "Draw a digit")
        page.keyboard.press("5")  # the focus is not where digits are heard
        buttons = page.locator("#samples button")
        assert buttons.count() == 10
        page.locator("#sheet").focus()
        for digit in range(10):
            page.keyboard.press(str(digit))
            answered(page, f"It is a {digit}")
        for key in ["u", "Control+z", "Backspace"]:
            page.keyboard.press(key)
        answered(page, "It is a 6")
        page.keyboard.press("c")
        answered(page, "Draw a digit")
        page.locator("#undo").click()
        answered(page, "It is a 6")
        page.locator("#samples button", has_text="4").click()
        answered(page, "It is a 4")
        draw(page, [[(0.9, 0.1), (0.9, 0.9)]])
        until(page, "reading.strokes.length === 4")
        page.keyboard.press("u")
        answered(page, "It is a 4")
        for _ in range(20):  # more than there was
            page.keyboard.press("u")
        answered(page, "Draw a digit")
        assert float(reading(page)[1].sum()) == 0


def test_what_is_no_digit_does_no_harm(chromium: "Browser") -> None:
    with shown(chromium, "digits") as page:
        answered(page, "Draw a digit")
        for strokes in ([[(0.5, 0.5)]], [[(0.002, 0.5)]], [[(0.2, 0.5), (1.3, 0.5)]]):  # dots, and a line that leaves the sheet
            draw(page, strokes)
            answered(page, r"a \d")
            drawn, pixels, probabilities = reading(page)
            assert (pixels - image_of(drawn)).abs().max() < 1e-6
            assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
            assert max(x for stroke in drawn for x, _ in stroke) <= 1
            page.locator("#clear").click()
            answered(page, "Draw a digit")


def test_it_is_seen_on_all_screens(chromium: "Browser") -> None:
    inks: list[list[int]] = []
    for size, theme in ((size, theme) for size in (WIDE, NARROW) for theme in THEMES):
        with shown(chromium, "digits", size, theme) as page:
            answered(page, "Draw a digit")
            draw(page, [[(0.5, 0.1), (0.5, 0.9)]])
            answered(page, "a 1")
            assert page.evaluate("document.documentElement.scrollWidth") == size[0]
            ink = page.evaluate("[...sheet.getContext('2d').getImageData(sheet.width / 2, sheet.height / 2, 1, 1).data]")
            text = page.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
            assert isinstance(ink, list)
            assert isinstance(text, list)
            assert ink == [*text, 255]
            inks.append(ink)
    assert inks[0] == inks[2]
    assert inks[1] == inks[3]
    assert abs(inks[0][0] - inks[1][0]) > 150  # dark on light, and light on dark
