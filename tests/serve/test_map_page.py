"""The map of the page in a browser."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import served
from browsing import chromium, press, type_text, wait
from PIL import Image

from clipx.search.embedding_map import EmbeddingMap, map_file, write_map
from clipx.search.embeddings import read_manifest
from clipx.search.regions import RegionLabel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="chromium is not installed"),
]
MIDDLE = 44  # the row at the center of the map
LOADED = "document.getElementById('map-frame').classList.contains('loaded')"
CARD = "document.getElementById('map-card')"
NAMES = "[...document.querySelectorAll('#map-labels span:not([hidden])')]"
MEETING = f"""(() => {{
    const boxes = {NAMES}.map((name) => name.getBoundingClientRect());
    const beside = (a, b) => a.right <= b.left || b.right <= a.left;
    const above = (a, b) => a.bottom <= b.top || b.bottom <= a.top;
    const meet = (a, b) => !beside(a, b) && !above(a, b);
    return boxes.filter((a, n) => boxes.some((b, m) => m > n && meet(a, b))).length;
}})()"""
NEAREST = """import("./map_points.js").then(({ MapPoints }) => {
    const packed = Uint16Array.from({ length: 6000 }, () => Math.random() ** 2 * 65535);
    const points = new MapPoints(packed.buffer);
    let wrong = 0;
    for (let query = 0; query < 300; query += 1) {
        const [x, y] = [2.4 * Math.random() - 1.2, 2.4 * Math.random() - 1.2];
        const radius = 0.2 * Math.random();
        const distance = (row) => Math.hypot(points.x(row) - x, points.y(row) - y);
        let best = null;
        for (let row = 0; row < 3000; row += 1) {
            const isBetter = best === null || distance(row) < distance(best);
            if (distance(row) <= radius && isBetter) best = row;
        }
        const found = points.nearest(x, y, radius);
        if ((found === null) !== (best === null)) wrong += 1;
        else if (found !== null && distance(found) > distance(best)) wrong += 1;
    }
    return wrong;
})"""
# So that the page does not know that the browser has no graphics card, and uses WebGL.
WEBGL = "WebGLRenderingContext.prototype.getExtension = () => null;"
NO_WEBGL = """{
    const { getContext } = HTMLCanvasElement.prototype;
    HTMLCanvasElement.prototype.getContext = function (kind, options) {
        return kind === "webgl" ? null : getContext.call(this, kind, options);
    };
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings with a map whose places are known: a circle, and a row in its middle."""
    folder = served.embed(tmp_path_factory.mktemp("map-page"))
    angle = 2 * np.pi * np.arange(served.NUM_SAMPLES) / served.NUM_SAMPLES
    points = np.stack([np.cos(angle), 0.8 * np.sin(angle)], axis=1)
    points[MIDDLE] = 0
    generator = np.random.default_rng(0)
    labels = []
    for level, count in enumerate((12, 48, 192)):
        for number in range(count):
            x, y = generator.uniform(-0.9, 0.9, 2)
            labels.append(RegionLabel(f"level {level} name {number}", x, y, level, number))
    drawn = EmbeddingMap(points.astype(np.float32), labels)
    write_map(folder, drawn, read_manifest(folder))
    return folder


def middle(browser: chromium.Chromium) -> dict[str, int]:
    """Of the map, on the screen."""
    rectangle = browser.value(
        "document.getElementById('map-points').getBoundingClientRect().toJSON()"
    )
    return {
        "x": round(rectangle["x"] + rectangle["width"] / 2),
        "y": round(rectangle["y"] + rectangle["height"] / 2),
    }


def mouse(browser: chromium.Chromium, kind: str, x: int, y: int, **more: int | str) -> None:
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def touch(browser: chromium.Chromium, kind: str, *places: tuple[int, int]) -> None:
    points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
    browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)


def colors(browser: chromium.Chromium, path: Path) -> int:
    """That the map has, on a screenshot."""
    browser.picture(path, height=900)
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    rectangle = browser.value(
        "document.getElementById('map-points').getBoundingClientRect().toJSON()"
    )
    box = [rectangle[side] for side in ("left", "top", "right", "bottom")]
    return len(image.crop([round(side) for side in box]).getcolors(1 << 20))


@pytest.mark.parametrize("width", [1280, 420])
def test_a_person_moves_points_and_searches_on_the_map(
    browser: chromium.Chromium, server: str, width: int
) -> None:
    browser.open("about:blank", width=width, dark=False)
    browser.events.clear()
    browser.open(server, width=width, dark=width == 420)
    wait(browser, "document.querySelectorAll('.card').length === 36")
    browser.value("document.querySelector('[data-view=map]').click()")
    wait(browser, LOADED)
    wait(browser, "location.hash === '#view=map'")
    wait(browser, f"{NAMES}.length > 3")
    assert browser.value(MEETING) == 0
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")

    # A picture that the mouse points at, and the picture itself.
    place = middle(browser)
    mouse(browser, "mouseMoved", place["x"] + 3, place["y"])
    wait(browser, f"{CARD}.textContent === 'picture {MIDDLE}'")
    wait(browser, f"{CARD}.querySelector('.loaded') !== null")
    mouse(browser, "mouseMoved", place["x"] + 60, place["y"])
    wait(browser, f"{CARD}.hidden")
    for kind in ("mousePressed", "mouseReleased"):
        mouse(browser, kind, place["x"], place["y"], button="left", clickCount=1)
    wait(browser, "document.getElementById('detail').open")
    caption = "document.getElementById('detail-caption').textContent"
    assert browser.value(caption) == f"picture {MIDDLE}"

    # More like it, whose places are marked.
    press(browser, "m")
    wait(browser, "document.getElementById('map-legend').textContent === 'the 90 nearest results'")
    assert browser.value("document.querySelectorAll('.chip').length") == 1
    assert browser.value("location.hash") == f"#row=%2B{MIDDLE}&view=map"

    # Zoom by the wheel and move by the mouse: the address has the place, and names get finer.
    mouse(browser, "mouseWheel", **place, deltaX=0, deltaY=-1300)
    wait(browser, "location.hash.includes('&at=')")
    zoomed = json.dumps(browser.value("location.hash"))
    finer = "level 2" if width == 1280 else "level 1"  # on a small screen, fewer names fit
    wait(browser, f"{NAMES}.some((name) => name.textContent.startsWith('{finer}'))")
    assert browser.value(MEETING) == 0
    mouse(browser, "mousePressed", **place, button="left", clickCount=1)
    mouse(browser, "mouseMoved", place["x"] - 40, place["y"], button="left", buttons=1)
    mouse(browser, "mouseReleased", place["x"] - 40, place["y"], button="left", clickCount=1)
    wait(browser, f"location.hash !== {zoomed}")
    assert not browser.value("document.getElementById('detail').open"), "to move is not to click"

    # By the keyboard: the whole map, near to its middle, and open.
    browser.value("document.getElementById('map-points').focus()")
    press(browser, "0")
    wait(browser, "!location.hash.includes('at=')")
    press(browser, "+")
    wait(browser, f"{CARD}.textContent === 'picture {MIDDLE}'")
    press(browser, "Enter")
    wait(browser, "document.getElementById('detail').open")
    press(browser, "Escape")

    # A text, whose results are on the map, too.
    press(browser, "/")
    type_text(browser, "picture 3")
    press(browser, "Enter")
    wait(browser, "location.hash.startsWith('#q=picture+3&row=')")

    requests = [e["params"]["request"]["url"] for e in browser.events if "request" in e["params"]]
    assert [url for url in requests if not url.startswith((server, "about:"))] == []
    messages = [event["params"] for event in browser.events if "request" not in event["params"]]
    # Chromium notes that WebGL without a graphics card is slow.
    assert [each for each in messages if "GL Driver Message" not in json.dumps(each)] == []


def test_fingers_tap_and_pinch(browser: chromium.Chromium, server: str) -> None:
    browser.open("about:blank", width=420, dark=False)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.open(f"{server}#view=map", width=420, dark=False)
    wait(browser, LOADED)
    place = middle(browser)
    x, y = place["x"], place["y"]
    touch(browser, "touchStart", (x, y))
    touch(browser, "touchEnd")
    wait(browser, f"{CARD}.textContent === 'picture {MIDDLE}'")
    assert not browser.value("document.getElementById('detail').open"), "the first tap shows it"
    y += 200  # beside what is shown
    touch(browser, "touchStart", (x - 20, y), (x + 20, y))
    for distance in (40, 60, 80):
        touch(browser, "touchMove", (x - distance, y), (x + distance, y))
    touch(browser, "touchEnd")
    wait(browser, "location.hash.includes('at=')")
    zoom = float(browser.value("location.hash").rpartition("_")[2])
    assert zoom == pytest.approx(4, rel=0.1), "four times as far apart"
    browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_the_address_has_the_place_and_pictures_are_shown_from_near(
    browser: chromium.Chromium, server: str, tmp_path: Path
) -> None:
    browser.open("about:blank", width=1280, dark=False)
    browser.open(f"{server}#view=map&at=0.0000_0.0000_8.00", width=1280, dark=False)
    wait(browser, "document.querySelectorAll('.map-picture .loaded').length === 1")
    assert browser.value("location.hash") == "#view=map&at=0.0000_0.0000_8.00"
    browser.value("document.getElementById('map-whole').click()")
    wait(browser, "location.hash === '#view=map'")
    browser.value("document.querySelector('[data-view=search]').click()")
    wait(browser, "location.hash === '' || location.hash === '#'")
    browser.value("history.back()")
    wait(browser, "!document.getElementById('map').hidden")


def test_the_grid_finds_the_nearest_point(browser: chromium.Chromium, server: str) -> None:
    browser.open("about:blank", width=1280, dark=False)
    browser.open(server, width=1280, dark=False)
    assert browser.value(NEAREST) == 0


def test_the_map_is_drawn_with_and_without_webgl(
    browser: chromium.Chromium, server: str, tmp_path: Path
) -> None:
    for has_webgl in (True, False):
        source = WEBGL if has_webgl else NO_WEBGL
        script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"]
        browser.open("about:blank", width=1280, dark=False)
        browser.open(f"{server}#view=map", width=1280, dark=False)
        wait(browser, f"{LOADED} && {NAMES}.length > 3")
        wait(browser, "getComputedStyle(document.getElementById('map-points')).opacity === '1'")
        context = "document.getElementById('map-points').getContext('2d') !== null"
        browser.value("document.getElementById('map-labels').style.display = 'none'")
        assert colors(browser, tmp_path / "map.png") > 20, f"WebGL: {has_webgl}"
        assert browser.value(context) is not has_webgl
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_without_a_map_the_page_has_the_remedy(
    browser: chromium.Chromium, server: str, folder: Path
) -> None:
    content = map_file(folder).read_bytes()
    map_file(folder).unlink()
    browser.open("about:blank", width=420, dark=True)
    browser.open(f"{server}#view=map", width=420, dark=True)
    text = json.dumps("has no map; run `clipx index DIR --map`")
    wait(browser, f"document.getElementById('map-error').textContent.includes({text})")
    # Made meanwhile, it is there at the next visit.
    map_file(folder).write_bytes(content)
    browser.value("document.querySelector('[data-view=search]').click()")
    browser.value("document.querySelector('[data-view=map]').click()")
    wait(browser, LOADED)
    assert browser.value("document.getElementById('map-error').hidden")
