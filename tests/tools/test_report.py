"""The page of a small run, read as text; with `-m slow` in a browser, where Chromium is
installed."""

import base64
import io
import json
import os
import re
import shutil
import time
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageColor, ImageDraw

from cl_jax.__main__ import main
from cl_jax.core import parallel
from cl_jax.data.source import from_arrays
from cl_jax.reports import layouts, page
from cl_jax.tools import _page
from cl_jax.training import configs
from tests.tools import kept

try:
    from selenium import webdriver
except ImportError:
    webdriver = None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {}

    def of(config):
        if config not in made:
            made[config] = root / config
            small = ["--config.data.train_size=64", "--config.data.test_size=32"]
            settings = [] if config == "graphcl" else small
            words = ["train", f"{config}:debug", f"--workdir={made[config]}", *settings]
            assert main(words) == 0
        return made[config]

    return of


def parts(page):
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    return re.findall(r"<h2>(.*?)</h2>", page), json.loads(data[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return kept.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a log and without its data."""
    workdir = kept.run(tmp_path_factory.mktemp("report") / "run")
    rows = [
        {"step": 0, "untrained/knn/top1": 0.2},
        {"step": 1, "loss": 3.0, "knn/top1": 0.5},
        {"step": 2, "loss": 2.0, "knn/top1": 0.75, "linear/top1": 0.9},
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def test_the_page_of_a_run(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layouts, "UMAP", False)  # its own compiler takes half a minute
    for name in (b"broken.png", b"no\xfftext.png"):  # the second is no UTF-8
        (folder / "dog" / os.fsdecode(name)).write_bytes(b"no picture")
    out = tmp_path / "page.html"
    assert main(["report", str(run), f"--data={folder}", f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    titles, data = parts(out.read_text())
    assert {"What was run", "Curves", "Views", "Pairs", "Map", "Clusters"} <= {*titles}
    ours = re.sub("<script>.*?</script>", "", out.read_text(), flags=re.S)
    assert not re.search('(?:src|href)="(?!data:|#)', ours)  # nothing from elsewhere
    assert len(data["names"]) == 16 and np.shape(data["near"]) == (16, 10)
    assert "dog/00.png" in data["names"] and "broken.png" in ours and "udcfftext.png" in ours
    assert [*data["layouts"]] == ["t-SNE", "PCA"]
    assert data["atlas"]["files"][0].startswith("data:image/jpeg;base64,")
    assert data["figures"]["curve0"]["data"][0]["y"] == [3.0, 2.0]
    knn = data["figures"]["curve1"]["data"]
    assert [(line["name"], line["y"]) for line in knn] == [
        ("knn/top1", [0.5, 0.75]),
        ("untrained", [0.2, 0.2]),
    ]
    assert "linear/top1" in ours


def test_a_full_disk_is_one_sentence_and_leaves_the_old_page(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "page.html"
    out.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_page, "of_run", lambda *_: "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(["report", str(run), f"--out={out}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "page.html cannot be written: No space left" in said
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


class Task(NamedTuple):
    source: jax.Array
    target: jax.Array


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"views": None}, ""),
        ({"views": lambda batch, key: None}, "views returned a NoneType"),
        ({"views": lambda batch, key: {"one": batch["x"]}}, "views returned a dict"),
        ({"views": lambda batch, key: [batch["moved"]]}, "views read 'moved'"),
        ({"views": lambda batch, key: [Task(batch["x"], batch["x"])] * 2}, "no pairs"),
        ({"features": None}, ""),
        ({"features": lambda params, stats, x, train: ({"word": x}, stats)}, ""),
    ],
)
def test_a_page_does_without_what_a_method_lacks(changes, says, caplog):
    whole = {
        "views": lambda batch, key: [batch["x"]] * 2,
        "clean": lambda batch: batch["x"],
        "features": lambda params, stats, x, train: ({"h": x["no"]}, stats),
        "evaluated": lambda state: (state, {}),
        "needs": ("x",),
        "wants": (),
    }
    run = types.SimpleNamespace(
        method=types.SimpleNamespace(**whole | changes),
        mesh=parallel.make_mesh(1),
        config=ConfigDict(dict(seed=0, views=dict(both=dict(copies=2)))),
        state=np.ones(2, np.float32),
    )
    source = from_arrays("rows", {"x": np.ones((8, 2), np.float32)}, {})
    assert _page._views(run, source, {}) == [] and says in caplog.text


@pytest.mark.parametrize(
    "name, wanted",
    [("imix:debug", 0.2), ("mochi:debug", 0.2), ("clae", 0.2), ("hcl", 0.5), ("byol:debug", 0.1)],
)
def test_the_temperature_is_the_contrasts(name, wanted):
    config = configs.load(name)
    assert _page.temperature(config) == wanted
    base = config.method.get("base", {})
    if "temperature" in base:  # one that is not written is its method's own
        with config.unlocked():
            del base.temperature
        own = {"simclr_v1": 0.1, "moco_v2": 0.2}.get(base.name, wanted)
        assert _page.temperature(config) == config.method.get("temperature", own)


@pytest.mark.parametrize(
    "words, text",
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--data=DATA", "--feature=k"], "no feature 'k'"),
        (["RUN", "--data=DATA", "--label=price"], "--label=price"),
        (["RUN", "--data=/nowhere"], "nowhere"),
        (["RUN"], "nowhere"),
        (["RUN", "--rows=2"], "expected 3 or more"),
        (["RUN", "--out=/nowhere/page.html"], "not a folder"),
        (["RUN", "--data=DATA", "--out=DATA"], "is a folder; give the name of a file"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(run, folder, words, text, capsys):
    before = sorted(run.iterdir())
    capsys.readouterr()
    assert (
        main(
            [
                "report",
                *(word.replace("RUN", str(run)).replace("DATA", str(folder)) for word in words),
            ]
        )
        == 1
    )
    said = capsys.readouterr().err
    assert said.startswith("error: ") and text in said and "Traceback" not in said
    assert sorted(run.iterdir()) == before


@pytest.fixture
def browser(tmp_path):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (webdriver and chromium and driver):
        pytest.skip("selenium, Chromium and its driver are not all installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "enable-unsafe-swiftshader",
        "use-angle=swiftshader",
        "window-size=1300,900",
        "disable-background-networking",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.slow
def test_of_fifty_thousand_points_those_in_view_are_drawn(browser, tmp_path):
    rng, count = np.random.default_rng(0), 50_000
    label = rng.integers(0, 20, count), [f"c{i}" for i in range(20)]
    places = rng.standard_normal((count, 2)).astype(np.float32)
    near = rng.integers(0, count, (count, 10))
    text = page.write(
        "many", "", [page.Section("Map", "", "map")],
        figures={},
        of_rows=page.Map(
            {"PCA": places, "t-SNE": 5 * places + 9}, {"label": label}, near, rng.random(near.shape)
        ),
        names=[f"{i}.jpg" for i in range(count)], labels={"label": label}, atlas=None,
    )  # fmt: skip
    out = tmp_path / "page.html"
    out.write_text(text)
    place = opened(browser, out)

    def drawn():
        return browser.execute_script(
            "return arguments[0].data.reduce((n, t) => n + t.x.length, 0)", place
        )

    def settled():
        """The ranges that the axes have, where a redraw has had its time to change them."""
        time.sleep(1)
        return np.array(axes(browser, place)["ranges"])

    def inside(ranges):
        sides = [(a - (b - a) / 2, b + (b - a) / 2) for a, b in ranges]
        pairs = zip(places.T, sides)
        return np.logical_and.reduce([(low <= x) & (x <= high) for x, (low, high) in pairs]).sum()

    whole = settled()
    assert drawn() == 5000
    browser.execute_script(
        """window.draws = 0; arguments[0].on('plotly_react', () => ++window.draws);
        Plotly.relayout(arguments[0], {'xaxis.range': [0, 0.1], 'yaxis.range': [0, 0.1]});""",
        place,
    )
    wait_for(lambda: drawn() < 5000)
    ranges = settled()  # equal scales widen the one of x
    assert ranges[1].tolist() == [0, 0.1] and 0.1 <= np.ptp(ranges[0]) < 0.2
    assert abs(drawn() - inside(ranges)) <= 3  # places have four digits in the page
    assert browser.execute_script("return window.draws") == 1
    double_click(browser, place)
    np.testing.assert_allclose(settled(), whole)
    assert drawn() == 5000
    wheel(browser, place, 40)
    near_ranges = settled()
    assert (np.ptp(near_ranges, axis=1) < 0.2 * np.ptp(whole, axis=1)).all()
    wheel(browser, place, -40)
    assert (np.ptp(settled(), axis=1) > 3 * np.ptp(near_ranges, axis=1)).all() and drawn() == 5000
    choose(browser, "layout", "t-SNE")
    np.testing.assert_allclose(np.ptp(settled(), axis=1), 5 * np.ptp(whole, axis=1), rtol=1e-3)
    assert complaints(browser) == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ["simclr_v1", "simcse", "cpc_audio", "graphcl", "unlabelled"])
def test_in_a_browser(runs, run, tmp_path, config, browser):
    out = tmp_path / "page.html"
    words = (
        [str(run), f"--data={flat(tmp_path)}"] if config == "unlabelled" else [str(runs(config))]
    )
    assert main(["report", *words, f"--out={out}"]) == 0
    titles, data = parts(out.read_text())
    if config == "unlabelled":
        assert data["labels"] == {} and "Confusion" not in titles
    place = opened(browser, out)
    for choice in ("layout", "colour"):
        for option in browser.find_elements("css selector", f"#{choice} option"):
            option.click()
            looks_as_its_points(browser, place, data)
    row, x, y = apart(browser, place, data)
    tip = browser.find_element("id", "tip")
    move_to(browser, x, y)
    wait_for(tip.is_displayed)
    shown = tip.find_element("css selector", ".tile")
    assert int(shown.get_attribute("data-row")) == row
    if data["atlas"]:
        looks_as_its_picture(shown, row, data)
    else:
        assert shown.text.split() == data["names"][row].split()
    move_to(browser, x, y, click=True)
    near = "#near .pair .tile"
    wait_for(lambda: len(browser.find_elements("css selector", near)) == len(data["near"][row]))
    rows = [int(e.get_attribute("data-row")) for e in browser.find_elements("css selector", near)]
    assert rows == data["near"][row]
    assert (
        browser.find_element("css selector", "#near > .tile").get_attribute("title")
        == (data["names"][row])
    )
    before = np.array(axes(browser, place)["ranges"])
    wheel(browser, place, 3)
    assert (np.ptp(axes(browser, place)["ranges"], axis=1) < np.ptp(before, axis=1)).all()
    time.sleep(0.3)
    looks_as_its_points(browser, place, data)
    assert browser.execute_script(
        """return [...document.images].every(i => i.naturalWidth > 0) &&
        [...document.querySelectorAll('.plot, .wide')].every(p => p.querySelector('.main-svg')) &&
        ![...document.querySelectorAll('.modebar-btn')].some(
            b => /shar|cloud/i.test(b.dataset.title));"""
    )
    assert complaints(browser) == []


# The page as a browser shows it --------------------------------------


def flat(root):
    """Pictures of no class."""
    made = root / "flat"
    made.mkdir()
    for path in kept.pictures(root / "made").rglob("*.png"):
        path.rename(made / f"{path.parent.name}{path.name}")
    return made


def opened(browser, path):
    """The page's map, when it is drawn."""
    browser.get(path.as_uri())
    place = browser.find_element("id", "map")
    wait_for(lambda: place.get_attribute("data-ready") == "yes")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    time.sleep(0.3)
    return place


def axes(browser, place):
    """ranges of x and y, and the box of the points in the map, in pixels."""
    return browser.execute_script(
        """const of = arguments[0]._fullLayout, size = of._size;
        return {ranges: [of.xaxis.range, of.yaxis.range], box: [size.l, size.t, size.w, size.h],
                at: arguments[0].getBoundingClientRect().toJSON()};""",
        place,
    )


def spots(browser, place, data):
    """[N, 2] pixels of all rows in the box of the points, and the box."""
    seen = axes(browser, place)
    chosen = browser.find_element("id", "layout").get_attribute("value")
    (left, right), (low, high) = seen["ranges"]
    _, _, width, height = seen["box"]
    x, y = np.array(data["layouts"][chosen]).T
    return np.stack(
        [(x - left) / (right - left) * width, (high - y) / (high - low) * height], 1
    ), seen


def apart(browser, place, data):
    """(row, x, y): one that is away from all others and inside of the box, and where it is in the
    window."""
    at, seen = spots(browser, place, data)
    left, top, width, height = seen["box"]
    distance = np.linalg.norm(at[:, None] - at, axis=2)
    np.fill_diagonal(distance, np.inf)
    inside = ((at > 30) & (at < [width - 30, height - 30])).all(1)
    row = int(np.argmax(np.where(inside, distance.min(1), -1)))
    assert distance[row].min() > 4
    x, y = np.round(at[row] + [left + seen["at"]["x"], top + seen["at"]["y"]])
    return row, int(x), int(y)


def looks_as_its_points(browser, place, data):
    """The map's picture against one that is drawn here, from the numbers in the page."""
    at, seen = spots(browser, place, data)
    chosen = data["colourings"][browser.find_element("id", "colour").get_attribute("value")]
    values = np.array(chosen["values"])
    left, top, width, height = (round(side) for side in seen["box"])
    shot = image_of(place).crop((left, top, left + width, top + height))

    def drawn(values, at, fine=3):
        sheet = Image.new("RGB", (fine * width, fine * height), "white")
        draw = ImageDraw.Draw(sheet, "RGBA")
        for value in np.unique(values):
            ink = data["colours"][value % len(data["colours"])] if value >= 0 else "#c4c9d2"
            for x, y in fine * at[values == value]:
                draw.ellipse([x - 9, y - 9, x + 9, y + 9], fill=(*ImageColor.getrgb(ink), 191))
        return coarse(sheet)

    def coarse(picture):
        small = picture.resize((width // 8, height // 8), Image.Resampling.BOX)
        return np.asarray(small, float)[4:]  # the bar of tools covers the top

    expected, got = drawn(values, at), coarse(shot)
    ink = np.abs(255 - expected).sum()

    def far(other):
        return np.abs(got - other).sum() / ink

    assert far(expected) < 0.3
    assert far(drawn(values, [width, height] - at)) > 0.5  # of points elsewhere
    if len(np.unique(values)) > 1:
        assert far(drawn(values.max() - values, at)) > 1.5 * far(expected)  # of other colours


def looks_as_its_picture(shown, row, data):
    """A tile's picture is that of its row, and of no other."""
    got = np.asarray(image_of(shown).resize((24, 24), Image.Resampling.BOX), float)
    cell, columns = data["atlas"]["cell"], data["atlas"]["columns"]
    sheet = Image.open(io.BytesIO(base64.b64decode(data["atlas"]["files"][0].split(",")[1])))
    far = []
    for i in range(len(data["names"])):
        x, y = i % columns * cell, i // columns * cell
        part = sheet.crop((x, y, x + cell, y + cell)).resize((24, 24), Image.Resampling.BOX)
        far.append(np.abs(np.asarray(part, float)[2:-2, 2:-2] - got[2:-2, 2:-2]).mean())
    assert far[row] < 12 and np.sum(np.array(far) < far[row]) == 0


def image_of(element):
    return Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")


def move_to(browser, x, y, click=False):
    actions = webdriver.ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(x, y)
    if click:
        actions.w3c_actions.pointer_action.click()
    actions.perform()


def double_click(browser, place):
    webdriver.ActionChains(browser).move_to_element(place).double_click().perform()


def wheel(browser, place, turns):
    """Turns towards the middle of the map, or away from it."""
    origin = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(place)
    for _ in range(abs(turns)):
        away = -300 if turns > 0 else 300
        webdriver.ActionChains(browser).scroll_from_origin(origin, 0, away).perform()
    time.sleep(0.3)


def choose(browser, choice, text):
    for option in browser.find_elements("css selector", f"#{choice} option"):
        if option.text == text:
            option.click()


def complaints(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wait_for(true, seconds=20):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)
