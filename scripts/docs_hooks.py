"""What mkdocs has to know about our pages (mkdocs.yml, ``hooks``).

The pages can be read in the repository too. So three things are made fit for the site: ``nav`` may hold patterns, a
code block may name its file after the language, and a link to a file outside of docs/ is shown as that file's name.
After the build the site is searched for what would be loaded from elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

_NAMED_BLOCK = re.compile(r"^```(\w+) (\S+\.\w+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio)\b[^>]*\b(?:src|href|srcset)=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|@import\s+[^;]+|url\(["']?(?:https?:)?//[^)]+"""
)


def on_config(config: Any) -> Any:
    """Put the pages that a pattern of ``nav`` matches in its place. Raises ValueError where it matches none."""
    config["nav"] = expanded(config["nav"], Path(config["docs_dir"]))
    return config


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Name the files of code blocks, and unlink what lies outside of docs/: the strict build would fail on it."""
    folder = PurePosixPath(page.file.src_uri).parent
    text = _NAMED_BLOCK.sub(r'```\1 title="\2"', text)
    return _LINK.sub(lambda link: inside(link[0], link[1], link[2], folder), text)


def on_post_build(config: Any) -> None:
    """Raises ValueError where a page or a style would load something from elsewhere: the site is read offline."""
    site = Path(config["site_dir"])
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for loaded in foreign(file.read_text(encoding="utf-8")):
            raise ValueError(f"{file.relative_to(site)} loads from elsewhere: {loaded}")


def expanded(items: list[Any], docs: Path) -> list[Any]:
    """``nav`` with every pattern replaced by the pages that it matches, sorted by name."""
    pages: list[Any] = []
    for item in items:
        if isinstance(item, str):
            pages += matching(item, docs)
        else:
            ((title, below),) = item.items()
            below = matching(below, docs) if isinstance(below, str) and "*" in below else below
            pages.append({title: expanded(below, docs) if isinstance(below, list) else below})
    return pages


def matching(pattern: str, docs: Path) -> list[str]:
    """The pages of a pattern, relative to ``docs``; a name without ``*`` stands for itself."""
    found = sorted(page.relative_to(docs).as_posix() for page in docs.glob(pattern)) if "*" in pattern else [pattern]
    if not found:
        raise ValueError(f"mkdocs.yml, nav: no page in {docs} matches {pattern!r}")
    return found


def inside(link: str, text: str, target: str, folder: PurePosixPath) -> str:
    """The link of a page in ``folder`` as it is, or text with the file's name where it leads out of docs/."""
    where = normpath(folder / target)
    if "://" in target or not where.startswith("../"):
        return link
    name = where.removeprefix("../")
    return f"`{name}`" if text.strip("`") == name else f"{text} (`{name}`)"


def foreign(content: str) -> list[str]:
    """The places of a page or a style at which a browser would load from another address."""
    return _LOADED.findall(content)
