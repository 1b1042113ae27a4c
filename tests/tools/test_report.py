"""The page of a small run, read as text; with `-m slow` in a browser, where Chromium is
installed."""

import json
import re
import shutil
import time

import numpy as np
import pytest

from cl_jax.__main__ import main
from cl_jax.reports import layouts, page
from tests.tools import kept


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
    (folder / "dog" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "page.html"
    assert main(["report", str(run), f"--data={folder}", f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    titles, data = parts(out.read_text())
    assert {"What was run", "Curves", "Views", "Pairs", "Map", "Clusters"} <= {*titles}
    ours = re.sub("<script>.*?</script>", "", out.read_text(), flags=re.S)
    assert not re.search('(?:src|href)="(?!data:|#)', ours)  # nothing from elsewhere
    assert len(data["names"]) == 16 and np.shape(data["near"]) == (16, 10)
    assert "dog/00.png" in data["names"] and "broken.png" in ours
    assert [*data["layouts"]] == ["t-SNE", "PCA"]
    assert data["atlas"]["files"][0].startswith("data:image/jpeg;base64,")
    assert data["figures"]["curve0"]["data"][0]["y"] == [3.0, 2.0]
    knn = data["figures"]["curve1"]["data"]
    assert [(line["name"], line["y"]) for line in knn] == [
        ("knn/top1", [0.5, 0.75]),
        ("untrained", [0.2, 0.2]),
    ]
    assert "linear/top1" in ours


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
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and its driver are not installed")
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
def test_of_fifty_thousand_points_a_part_is_drawn(browser, tmp_path):
    rng, count = np.random.default_rng(0), 50_000
    label = rng.integers(0, 20, count), [f"c{i}" for i in range(20)]
    places = rng.standard_normal((count, 2)).astype(np.float32)
    near = rng.integers(0, count, (count, 10))
    text = page.write(
        "many", "", [page.Section("Map", "", "map")],
        figures={},
        of_rows=page.Map({"PCA": places}, {"label": label}, near, rng.random(near.shape)),
        names=[f"{i}.jpg" for i in range(count)], labels={"label": label}, atlas=None,
    )  # fmt: skip
    out = tmp_path / "page.html"
    out.write_text(text)
    browser.get(out.as_uri())
    place = browser.find_element("id", "map")
    wait_for(lambda: place.get_attribute("data-ready") == "yes")

    def drawn():
        return browser.execute_script(
            "return arguments[0].data.reduce((n, t) => n + t.x.length, 0)", place
        )

    assert drawn() == 5000
    browser.execute_script(
        """window.draws = 0; arguments[0].on('plotly_react', () => ++window.draws);
        Plotly.relayout(arguments[0], {'xaxis.range': [0, 0.1], 'yaxis.range': [0, 0.1]});""",
        place,
    )
    ranges = "const of = arguments[0]._fullLayout; return [of.xaxis.range, of.yaxis.range]"
    wait_for(lambda: drawn() < 5000)
    sides = [(a - (b - a) / 2, b + (b - a) / 2) for a, b in browser.execute_script(ranges, place)]
    inside = np.logical_and.reduce(
        [(low <= x) & (x <= high) for x, (low, high) in zip(places.T, sides)]
    )
    assert abs(drawn() - inside.sum()) <= 3  # places have four digits in the page
    time.sleep(1)
    assert browser.execute_script("return window.draws") <= 2
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ["simclr_v1", "simcse", "cpc_audio", "graphcl"])
def test_in_a_browser(runs, tmp_path, config, browser):
    from selenium import webdriver

    out = tmp_path / "page.html"
    assert main(["report", str(runs(config)), f"--out={out}"]) == 0
    browser.get(out.as_uri())
    place = browser.find_element("id", "map")
    wait_for(lambda: place.get_attribute("data-ready") == "yes")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    time.sleep(0.5)
    x, y = browser.execute_script(
        """const map = arguments[0], of = map._fullLayout, trace = map.data[0];
        const box = map.getBoundingClientRect();
        return [box.left + of.xaxis._offset + of.xaxis.d2p(trace.x[0]),
                box.top + of.yaxis._offset + of.yaxis.d2p(trace.y[0])];""",
        place,
    )
    actions = webdriver.ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    actions.perform()
    tip = browser.find_element("id", "tip")
    wait_for(tip.is_displayed)
    actions = webdriver.ActionChains(browser)
    actions.w3c_actions.pointer_action.click()
    actions.perform()
    wait_for(lambda: len(browser.find_elements("css selector", "#near .pair")) == 10)
    seen = browser.find_element("css selector", "#near > .tile")
    names = parts(out.read_text())[1]["names"]
    assert seen.get_attribute("title") == names[int(seen.get_attribute("data-row"))]
    range_of = "return arguments[0]._fullLayout.xaxis.range"
    before = browser.execute_script(range_of, place)
    webdriver.ActionChains(browser).scroll_from_origin(
        webdriver.common.actions.wheel_input.ScrollOrigin.from_element(place), 0, -300
    ).perform()
    wait_for(lambda: browser.execute_script(range_of, place) != before)
    for choice in ("layout", "colour"):
        for option in browser.find_elements("css selector", f"#{choice} option"):
            option.click()
    png = browser.get_screenshot_as_png()
    assert len(png) > 10_000
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait_for(true, seconds=20):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)
