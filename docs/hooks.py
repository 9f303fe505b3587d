"""MkDocs hook: links from a page to a file outside docs/ lead to the repository."""

import os
import re

LINK = re.compile(r"(?<!!)(\]\()(\.\./[^)\s#]+)(#[^)\s]*)?(\))")


def on_page_markdown(markdown, *, page, config, **_):
    """Rewrite relative links that leave docs/, such as (../configs/deit.py)."""
    folder = os.path.dirname(os.path.join("docs", page.file.src_uri))

    def rewrite(match):
        path = os.path.normpath(os.path.join(folder, match[2]))
        if path.startswith("docs/"):
            return match[0]
        kind = "tree" if os.path.isdir(path) else "blob"
        return (
            f"{match[1]}{config.extra['repository']}/{kind}/main/{path}{match[3] or ''}{match[4]}"
        )

    return LINK.sub(rewrite, markdown)
