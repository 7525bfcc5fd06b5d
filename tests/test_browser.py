"""The page of the disk, in a browser: it learns what Python learns, does what its buttons say, and asks nobody for anything."""

import json
import threading
import time
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import torch
from torch import Tensor

import disk_network
import fundl
from build import server_of
from fundl import apply, epochs, evaluate, fold_in, key, load, minibatches, with_hyperparameters
from tests.browsing import NARROW, WIDE, browser, shown
from tests.exported import worst

if TYPE_CHECKING:
    from playwright.sync_api import Page

HIDDEN: Final = (25, 25, 25)
SETTINGS: Final = {"rate": "0.01", "batch": "50", "noise": "0", "network": "25-25-25"}


def write(folder: Path) -> None:
    """What the page needs, with two of its networks alone: that takes half of the time."""
    disk_network.write(folder, [(), HIDDEN])


@pytest.fixture(scope="module")
def opened() -> Generator["Page"]:
    pytest.importorskip("onnx", reason="onnx is not installed, of the extra onnx")
    with browser() as chromium, shown(chromium, "disk", write=write) as page:
        page.locator("#status:text-is('Ready')").wait_for()
        yield page


@pytest.fixture
def page(opened: "Page") -> "Page":
    """The page with its points and its first state, and with the settings that it starts with."""
    for name, value in SETTINGS.items():
        opened.locator(f"#{name}").select_option(value)
    opened.locator("#seed").fill("0")
    opened.locator("#again").click()
    opened.locator("#reset").click()
    opened.evaluate("disk.idle()")
    assert text_of(opened, "status") == "Before the first step"
    assert losses_of(opened) == []
    return opened


# --- What the page has ----------------------------------------------------------------------------------------------------


def text_in(page: "Page", expression: str) -> str:
    """A value of the page, as JSON."""
    text = page.evaluate(f"JSON.stringify({expression})")
    assert isinstance(text, str)
    return text


def losses_of(page: "Page") -> list[float]:
    losses: list[float] = json.loads(text_in(page, "disk.history.losses"))
    return losses


def points_of(page: "Page") -> tuple[Tensor, Tensor]:
    rows: list[tuple[float, float, int]] = json.loads(text_in(page, "disk.points.map(({ x, y, label }) => [x, y, label])"))
    return torch.tensor([[x, y] for x, y, _ in rows]), torch.tensor([label for _, _, label in rows])


def text_of(page: "Page", name: str) -> str:
    return page.locator(f"#{name}").inner_text()


def make_steps(page: "Page", count: int) -> None:
    """Make steps one by one."""
    before = len(losses_of(page))
    for number in range(before + 1, before + count + 1):
        page.locator("#one").click()
        page.locator(f"#step:text-is('{number}')").wait_for()


def run_for(page: "Page", count: int) -> None:
    """Start, pause after so many steps, or some more, and go on to where an epoch ends."""
    page.locator("#go").click()
    while len(losses_of(page)) < count:
        time.sleep(0.02)
    page.locator("#go").click()
    page.locator("#status:text-is('Paused')").wait_for()
    page.evaluate("disk.idle()")
    make_steps(page, -len(losses_of(page)) % 20)


def downloaded(page: "Page", folder: Path) -> Path:
    with page.expect_download() as file:
        page.locator("#download").click()
    file.value.save_as(folder / file.value.suggested_filename)
    return folder / file.value.suggested_filename


def losses_in_python(hidden: Sequence[int], rates: Sequence[float], batch_size: int) -> list[float]:
    """The losses of the first steps with seed 0, each with a learning rate."""
    state = disk_network.start(key(0), hidden)
    (train, _), losses = disk_network.data(key(0), torch.tensor(0.0)), []
    batches = minibatches(fold_in(state.key, 2**63), train, batch_size)
    for rate, batch in zip(rates, batches, strict=False):
        state, report = disk_network.step(with_hyperparameters(state, rate=rate), batch)
        losses.append(report.loss.item())
    return losses


# --- Learning -------------------------------------------------------------------------------------------------------------


def test_it_learns_what_python_learns(page: "Page", tmp_path: Path) -> None:
    run_for(page, 180)
    losses, count = torch.tensor(losses_of(page)), len(losses_of(page)) // 20
    train_key, test_key, _, _ = fundl.split(key(0), 4)
    train, test = fundl.disk(train_key, 1000), fundl.disk(test_key, 1000)
    run = epochs(
        disk_network.step,
        disk_network.start(key(0), HIDDEN),
        lambda epoch_key: minibatches(epoch_key, train, 50),
        count=count,
        metrics={"accuracy": fundl.accuracy},
        evaluate=lambda model: evaluate(fundl.cross_entropy, model, [test], metrics={"accuracy": fundl.accuracy}),
        compile=False,
    )
    *_, last = run
    assert last.test is not None
    expected = torch.tensor([epoch.train.loss for epoch in last.history])
    torch.testing.assert_close(losses.view(count, 20).mean(1), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses[:20].mean(), expected[0], rtol=1e-6, atol=0)
    assert last.test.metrics["accuracy"] > 0.95
    assert float(text_of(page, "test").removesuffix(" %")) == pytest.approx(100 * last.test.metrics["accuracy"], abs=0.2)
    model = load(downloaded(page, tmp_path), disk_network.network(HIDDEN))
    assert worst(model, last.state.model) < 1e-3
    assert evaluate(fundl.cross_entropy, model, [test], metrics={"accuracy": fundl.accuracy}).metrics["accuracy"] > 0.95


def test_steps_and_reset_are_exact(page: "Page") -> None:
    run_for(page, 30)
    losses = losses_of(page)
    page.locator("#reset").click()
    page.locator("#step:text-is('0')").wait_for()
    make_steps(page, 25)
    assert losses_of(page) == losses[:25]


def test_rate_batch_size_and_hidden_layers_are_what_is_learned_with(page: "Page", tmp_path: Path) -> None:
    page.locator("#network").select_option("linear")
    page.locator("#batch").select_option("250")
    make_steps(page, 2)
    page.locator("#rate").select_option("0.3")
    make_steps(page, 2)
    expected = losses_in_python((), [0.01, 0.01, 0.3, 0.3], 250)
    assert losses_of(page) == pytest.approx(expected, rel=1e-5)
    assert "linear(2, 2),\n))" in text_of(page, "code")
    model = load(downloaded(page, tmp_path), disk_network.network(()))
    assert apply(model, torch.zeros(1, 2)).shape == (1, 2)


def test_seed_and_noise_are_those_of_python(page: "Page") -> None:
    page.locator("#seed").fill("7")
    page.locator("#seed").press("Enter")
    page.evaluate("disk.idle()")
    points, labels = points_of(page)
    (expected, expected_labels), _ = disk_network.data(key(7), torch.tensor(0.0))
    assert torch.equal(points, expected)
    assert torch.equal(labels, expected_labels)
    page.locator("#noise").select_option("0.1")
    page.evaluate("disk.idle()")
    noisy, labels = points_of(page)
    (expected, expected_labels), _ = disk_network.data(key(7), torch.tensor(0.1))
    torch.testing.assert_close(noisy, expected, rtol=0, atol=1e-6)
    assert torch.equal(labels, expected_labels)
    assert not torch.equal(noisy, points)


# --- Points of one's own --------------------------------------------------------------------------------------------------


def test_points_are_drawn_with_the_pointer_and_erased(page: "Page") -> None:
    box = page.locator("#square").bounding_box()
    assert box is not None
    make_steps(page, 1)
    page.locator("#clear").click()
    page.locator("#one").click()
    page.locator("#status:text-is('There is no point to learn from: draw some.')").wait_for()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.25 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"], steps=5)
    page.mouse.up()
    page.locator("input[name=tool][value='0']").check()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"])
    page.evaluate("disk.idle()")
    points, labels = points_of(page)
    expected = torch.tensor([[0.25 + 0.1 * step, 0.75] for step in range(6)] + [[0.5, 0.1]])
    torch.testing.assert_close(points, expected, rtol=0, atol=0.005)
    assert labels.tolist() == [1] * 6 + [0]
    assert "%" not in text_of(page, "test")
    make_steps(page, 3)
    page.locator("input[name=tool][value=erase]").check()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"])
    page.evaluate("disk.idle()")
    assert points_of(page)[1].tolist() == [1] * 6
    page.locator("#again").click()
    page.evaluate("disk.idle()")
    assert len(points_of(page)[1]) == 1000
    assert text_of(page, "test").endswith("%")


def test_one_point_is_enough_to_learn_from(page: "Page") -> None:
    page.locator("#clear").click()
    page.locator("#square").focus()
    for pressed in ("o", "ArrowLeft", "Shift+ArrowUp", "Space"):
        page.locator("#square").press(pressed)
    page.evaluate("disk.idle()")
    points, labels = points_of(page)
    torch.testing.assert_close(points, torch.tensor([[0.48, 0.6]]))
    assert labels.tolist() == [0]
    make_steps(page, 5)
    losses = losses_of(page)
    assert losses == sorted(losses, reverse=True)


# --- Whoever looks at it --------------------------------------------------------------------------------------------------


def test_all_of_it_is_reached_by_the_keyboard(page: "Page") -> None:
    page.evaluate("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(str(page.evaluate("document.activeElement.id || document.activeElement.name")))
    assert {"go", "one", "reset", "square", "tool", "clear", "again", *SETTINGS, "seed", "download"} <= {*reached}
    page.locator("#one").focus()
    page.keyboard.press("Enter")
    page.locator("#step:text-is('1')").wait_for()


@pytest.mark.parametrize("size", [NARROW, WIDE])
def test_nothing_is_wider_than_the_window(page: "Page", size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


# --- The server -----------------------------------------------------------------------------------------------------------


def test_it_is_served_to_this_machine_alone_and_where_a_port_is_free(tmp_path: Path) -> None:
    (tmp_path / "disk.html").write_text("the page")
    with server_of(tmp_path, 0) as first, server_of(tmp_path, first.server_port) as second:
        assert first.server_port != second.server_port
        for server in (first, second):
            assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=second.serve_forever)
        thread.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{second.server_port}/disk.html") as answer:
            assert answer.read() == b"the page"
        second.shutdown()
        thread.join()
