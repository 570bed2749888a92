"""Elements, escaping and pictures."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipx.viz.markup import Markup, element, join, picture_uri, shorten


class Read(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


PLAIN = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\x00", exclude_categories=["Cs"])
)


@given(PLAIN, PLAIN)
def test_any_text_comes_back_as_text_and_any_attribute_as_itself(text: str, title: str) -> None:
    read = Read(element("p", text, title=title))
    assert read.tags == [("p", {"title": title})]
    assert read.text == text


def test_markup_is_kept_and_none_left_out() -> None:
    inner = element("b", "a < b")
    assert element("p", inner, None, class_="x", id=None) == '<p class="x"><b>a &lt; b</b></p>'
    assert join("<", Markup("<br>")) == "&lt;<br>"
    assert element("img", src="data:,") == '<img src="data:,">'


def test_attribute_names_and_coordinates() -> None:
    made = element("text", "a", text_anchor="end", x=1.25, y=3.0, r=2)
    assert made == '<text text-anchor="end" x="1.2" y="3" r="2">a</text>'


def test_a_picture_keeps_its_proportions_and_colors() -> None:
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    image[0] = 200
    uri = picture_uri(image, size=50)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as read:
        assert (read.format, read.size) == ("WEBP", (50, 25))
        red, green, blue = read.convert("RGB").getpixel((25, 12))  # type: ignore[misc]
    assert abs(red - 200) < 6
    assert max(green, blue) < 6


def test_long_text_is_cut() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abc def", 5) == "abc…"
