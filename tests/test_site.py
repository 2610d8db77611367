"""The site's own rules (scripts/docs_hooks.py). The strict build itself is part of .ci/run."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
HOOKS = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "docs_hooks.py")))


def page(text: str, where: str = "cookbook/own_world.md") -> str:
    return HOOKS.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=where)))


def test_links_out_of_the_documents_become_text() -> None:
    assert page("see [the README](../../README.md#look).") == "see the README (`README.md`)."
    assert page("[`turnwise/cli.py`](../../turnwise/cli.py)") == "`turnwise/cli.py`"
    for kept in ["[worlds](../worlds.md#search)", "[a](https://example.org/a)", "![p](../../p.png)", "[b](#b)"]:
        assert page(kept) == kept


def test_a_code_block_may_name_its_file() -> None:
    assert page("```python my_worlds.py\nx\n```") == '```python title="my_worlds.py"\nx\n```'
    assert page("```bash\nx\n```") == "```bash\nx\n```"


def test_patterns_of_the_menu_are_filled_in(tmp_path: Path) -> None:
    for name in ["index.md", "adr/002-b.md", "adr/001-a.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    menu = [{"Home": "index.md"}, {"Project": ["index.md", {"Decisions": "adr/*.md"}]}]
    decisions = {"Decisions": ["adr/001-a.md", "adr/002-b.md"]}
    assert HOOKS.expanded(menu, tmp_path) == [{"Home": "index.md"}, {"Project": ["index.md", decisions]}]
    with pytest.raises(ValueError, match=r"no page in .* matches 'adrs/\*\.md'"):
        HOOKS.expanded([{"Decisions": "adrs/*.md"}], tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link rel=stylesheet href=//fonts.example/a.css>",
        '<img alt="" src="http://example.org/a.png">',
        'a { src: url("https://example.org/a.woff2") }',
        "@import 'other.css';",
    ],
)
def test_what_is_loaded_from_elsewhere_fails_the_build(content: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<a href="https://example.org">a link</a><script src="own.js"></script>')
    HOOKS.on_post_build({"site_dir": tmp_path})
    (tmp_path / "page.html").write_text(content)
    with pytest.raises(ValueError, match=r"page\.html loads from elsewhere: "):
        HOOKS.on_post_build({"site_dir": tmp_path})
