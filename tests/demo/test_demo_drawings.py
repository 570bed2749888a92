"""From the metadata of packages to drawings, captions and pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("resvg_py")

from clipx.demo.clipart import clipart_drawings
from clipx.demo.drawings import Drawing, geometry, tidy
from clipx.demo.icons import concept, icon_drawings, name_splitter
from clipx.demo.recipes import Recipe
from clipx.demo.render import render
from clipx.demo.tars import member_key


@pytest.mark.parametrize(
    "name", ["fluent-emoji", "fluent-emoji-high-contrast", "ph", "circle-flags"]
)
def test_recipe_with_a_held_out_family_is_refused(demo_recipe: Recipe, name: str) -> None:
    with pytest.raises(AssertionError, match="held out"):
        replace(demo_recipe, icon_sets=("mdi", name))


def test_invisible_and_broken_drawings_render_to_none() -> None:
    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="5" height="9" '

    def rendered(svg: str) -> bytes | None:
        return render(Drawing("key", ("a",), "a", "icon", "set", "MIT", svg=svg), 32)

    assert rendered(box + 'fill="none"/></svg>') is None
    assert rendered(box + 'fill="red"') is None
    assert rendered(box + 'fill="red"/></svg>') is not None


def test_geometry_ignores_color_and_order_but_not_shape() -> None:
    a, b = '<path fill="red" d="M0 0h1"/>', '<path d="M5 5v2"/>'
    assert geometry(a + b) == geometry(b + a.replace("red", "blue"))
    assert geometry(a) != geometry(b)
    assert geometry('<circle r="3" id="M0"/>') == ""


def test_names_are_taken_apart_into_concept_and_style() -> None:
    split = name_splitter({"suffixes": {"24-outline": "24px Outline", "": "Regular"}})
    assert split("bicycle-24-outline") == ("bicycle", "outline", 24)
    assert split("bicycle") == ("bicycle", "regular", 24)
    assert name_splitter({})("bell-filled") == ("bell", "filled", 24)
    assert (concept("user-02"), concept("dice-3"), concept("arrowUp")) == (
        "user",
        "dice 3",
        "arrow up",
    )


def test_icon_captions_hold_the_names_of_aliases(demo_npm: Path) -> None:
    (bicycle,) = [
        d for d in icon_drawings(demo_npm / "node_modules", ["mdi"], 1) if d.label == "bicycle"
    ]
    assert bicycle.captions == ("bicycle", "bicycle icon", "bike icon")


def test_tidy_captions_are_lower_case_plain_and_unique() -> None:
    assert tidy(["A “b”", 'a  "b"', " ", "C"]) == ('a "b"', "c")


def test_clipart_is_named_by_its_metadata_or_else_by_its_file(tmp_path: Path) -> None:
    rdf = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="r" xmlns:cc="c" xmlns:dc="d">'
        "<metadata><cc:Work><dc:title>{title}</dc:title><dc:creator>Ann Lee</dc:creator>"
        "<dc:subject><rdf:li>fruit</rdf:li><rdf:li>clipart</rdf:li></dc:subject></cc:Work></metadata></svg>"
    )
    (tmp_path / "food").mkdir()
    (tmp_path / "food/x.svg").write_text(rdf.format(title="Green Pear 02"))
    (tmp_path / "food/red_apple_ann_lee_01.svg").write_text(rdf.format(title="untitled"))
    (tmp_path / "food/broken.svg").write_text("<svg")
    drawings = {d.label: d for d in clipart_drawings(tmp_path)}
    assert set(drawings) == {"green pear", "red apple"}
    assert drawings["red apple"].tags == ("fruit",)


def test_member_keys_fit_a_tar_header_and_stay_distinct() -> None:
    long = "set_" + "a" * 120
    assert member_key("a.b/c") == "a-b-c"
    assert len(member_key(long)) <= 90
    assert member_key(long + "1") != member_key(long + "2")
