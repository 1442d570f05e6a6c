"""Hooks of mkdocs.yml: pages that stand beside the code join the site, and links lead to them.

A file keeps its path in the repository, without `docs/`. Other files that a page links to, such as
scripts and tables, are copied under their paths too, so that no link leaves the site.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE_THE_CODE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "tools/README.md",
    "vqvae2_fast/**/README.md",
    "csrc/**/README.md",
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
FENCE = re.compile(r"^ *```")
LIST_OR_TABLE = re.compile(r"^(?:[-*] |\d+\. |\|)")


log = logging.getLogger("mkdocs.hooks.site_pages")


def _in_site(path: str) -> str:
    return path.removeprefix("docs/")


def _source(file: File) -> str:
    """The path of a page in the repository, or "" for one that is made while building."""
    path = Path(file.abs_src_path or "/")
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def _targets(source: str, text: str) -> dict[str, str]:
    """What the links of a page lead to in the repository, by the links as they are written."""
    folder = PurePosixPath(source).parent
    return {link: normpath(str(folder / link)) for link in LINK.findall(text)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(path: str) -> None:
        if (ROOT / path).is_file() and not files.get_file_from_path(_in_site(path)):
            source = str(ROOT / path)
            files.append(File.generated(config, _in_site(path), abs_src_path=source))

    for pattern in BESIDE_THE_CODE:
        for path in sorted(ROOT.glob(pattern)):
            add(path.relative_to(ROOT).as_posix())
    for page in list(files.documentation_pages()):
        for target in _targets(_source(page), page.content_string).values():
            add(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = _source(page.file)
    targets = _targets(source, markdown)
    here = str(PurePosixPath(_in_site(source)).parent)

    def moved(link: re.Match[str]) -> str:
        return f"]({relpath(_in_site(targets[link[1]]), here)}"

    return _as_on_github(LINK.sub(moved, markdown) if source else markdown)


def _as_on_github(markdown: str) -> str:
    """The text with the empty lines that Python-Markdown wants before lists and tables."""
    lines: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        before = lines[-1] if lines else ""
        starts = LIST_OR_TABLE.match(line)
        if starts and not in_code and before.strip() and not before.startswith(" "):
            before_starts = LIST_OR_TABLE.match(before)
            if not before_starts or (before[0] == "|") != (line[0] == "|"):
                lines.append("")
        in_code ^= bool(FENCE.match(line))
        lines.append(line)
    return "\n".join(lines)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    for name in re.findall(r'doc-module-name">([\w.]+)', html):
        log.warning(
            f"{page.file.src_uri} describes the module {name}: give the function's full name."
        )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The page with a name for the theme's search dialog, which readers of screens say aloud."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')
