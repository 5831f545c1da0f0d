"""Markdown of models and people as safe HTML. What a model wrote is hostile text: shown, never run, never loaded.

markdown-it-py reads Markdown with HTML switched off, and nh3 (ammonia) keeps a list of harmless tags. Pictures are not
loaded (an address in a picture would tell its owner who looks): their text is shown. Links open apart and send no
referrer. Each block is set in the direction of its own script.
"""

from __future__ import annotations

from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

LONGEST = 200_000  # characters of one text; more is cut, and said
TAGS = frozenset(
    {"a", "blockquote", "br", "code", "del", "em", "h3", "hr", "li", "ol", "p", "pre", "s", "strong", "ul"}
    | {"table", "tbody", "td", "th", "thead", "tr"}
)
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "td": {"align"}, "th": {"align"}}
# Lists, quotes and tables take the direction of their text, which `dir="auto"` does not see in parts that have one
# themselves; paragraphs, items and cells have their own by `unicode-bidi: plaintext` (base.css).
BLOCKS = ["blockquote", "ol", "table", "ul"]
HEADING = "h3"  # of every level: the page's own are h1 and h2, and none may be left out between
WIDE = {"tabindex": "0"}  # what may be wider than the page is scrolled, by keyboard too
FORCED = {name: {"dir": "auto"} for name in BLOCKS} | {"a": {"target": "_blank"}, "pre": WIDE}
FORCED["table"] |= WIDE


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.options["maxNesting"] = 20

    def picture(self, tokens, idx, options, env):  # type: ignore[no-untyped-def]  # noqa: ARG001
        token = tokens[idx]
        return nh3.clean_text(f"[{token.content or 'picture'}]")

    def heading(self, tokens, idx, options, env):  # type: ignore[no-untyped-def]
        tokens[idx].tag = HEADING
        return self.renderToken(tokens, idx, options, env)

    parser.add_render_rule("image", picture)
    parser.add_render_rule("heading_open", heading)
    parser.add_render_rule("heading_close", heading)
    return parser


@lru_cache(maxsize=512)  # the same answer is shown to several people
def to_html(text: str) -> Markup:
    """Returns Markdown as HTML that can be put into a page as it is."""
    cut = text[:LONGEST] + ("\n\n[...]" if len(text) > LONGEST else "")
    shown = cut.encode(errors="replace").decode()  # lone surrogates cannot be sent
    return Markup(  # noqa: S704 - nh3 has cleaned it
        nh3.clean(
            _parser().render(shown),
            tags=set(TAGS),
            attributes={name: set(kept) for name, kept in ATTRIBUTES.items()},
            set_tag_attribute_values=FORCED,
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )
