"""Markdown of models is shown as it was meant, in the direction of its script, and loads and runs nothing."""

from __future__ import annotations

import re
from pathlib import Path

from tiltyard.feedback.web import markdown
from tiltyard.feedback.web.markdown import LONGEST, to_html


def test_what_is_shown():
    html = to_html("# Title\n\nOne\ntwo *three* `four`\n\n1. a\n2. b\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n~~no~~")
    assert "<h3>Title</h3>" in html
    assert "<br>" in html
    for part in ("<em>three</em>", "<code>four</code>", "<ol", "<li", "<td", "<s>no</s>"):
        assert part in html


def test_headings_leave_no_level_out():
    assert to_html("##### deep").startswith("<h3")


def test_links_open_apart_and_pictures_are_not_loaded():
    link = to_html("[x](https://example.org/a)")
    assert 'rel="noopener noreferrer nofollow"' in link
    assert 'target="_blank"' in link
    picture = to_html("![a cat](https://example.org/track.png)")
    assert "<img" not in picture
    assert "example.org" not in picture
    assert "a cat" in picture


def test_a_list_a_quote_and_a_table_have_the_direction_of_their_text():
    """`dir="auto"` does not see the text of parts that have one themselves: none has (base.css)."""
    html = to_html("English first.\n\nثم العربية.\n\n- סעיף\n\n> اقتباس\n\n| خلية |\n|---|\n| خلية |")
    for outer in ("ul", "blockquote", "table"):
        assert re.search(rf'<{outer} [^>]*dir="auto"', html)  # nh3 writes attributes in any order
    assert html.count("dir=") == 3
    style = (Path(markdown.__file__).parent / "static" / "base.css").read_text(encoding="utf-8")
    assert ".prose :is(p, li, h3, td, th) { unicode-bidi: plaintext; }" in style


def test_texts_of_any_size_and_any_characters():
    assert "[...]" in to_html("x" * (LONGEST + 5))
    assert to_html("\ud800 \x00 \u202e")
    assert to_html(">" * 5000 + "[" * 5000 + "*" * 5000)
    assert to_html("") == ""
