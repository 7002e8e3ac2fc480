"""What the pages say is true: every Python block runs, every command parses, every table is up to date."""

import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from memseq.errors import MissingExtraError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, code) of the Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in found]


# their blocks follow on each other; those of other pages are fragments that speak of a reader's own model and data
WHOLE = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "streams.md", ROOT / "docs" / "retrofit.md"]


@pytest.mark.parametrize("page", WHOLE, ids=name)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # blank lines before each block, so that an error names the line of the page
    lines: list[str] = []
    for line, code in blocks(page):
        lines += [""] * (line - 1 - len(lines)) + code.splitlines()
    script = tmp_path / f"{page.stem}_page.py"
    script.write_text("\n".join(lines) + "\n")
    state = torch.get_rng_state()
    try:
        runpy.run_path(str(script), run_name="page")
    finally:
        torch.set_rng_state(state)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in WHOLE], ids=name)
def test_every_fragment_imports_what_exists(page):
    for line, code in blocks(page):
        for node in ast.walk(ast.parse(code, filename=f"{page}:{line}")):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "memseq":
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not has(module, alias.name)]
                assert missing == [], f"{page}:{line}: {node.module} has no {missing}"


def has(module, name) -> bool:
    try:
        return hasattr(module, name)
    except MissingExtraError:  # the name is there, and says what to install
        return True


def commands(page: Path) -> list[str]:
    """The `memseq ...` and `dev.py ...` lines of a page's indented and shell blocks."""
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join(m[1] for m in re.finditer(r"^```(?:sh|bash|console|shell)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^ {4}(.*)$", text, re.MULTILINE) + fenced.splitlines()
    lines += re.findall(r"`(memseq [a-z][^`]*)`", text)
    found = (re.search(r"(?:^|/|\$ )(memseq [a-z].*)$", line) for line in lines)
    return [m[1].partition("  #")[0].strip() for m in found if m]


COMMANDS = [pytest.param(line, id=f"{name(page)}: {line}") for page in PAGES for line in dict.fromkeys(commands(page))]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists(line):
    from memseq.cli import COMMANDS, parse

    words = shlex.split(line)[1:]
    if len(words) == 1 or "..." in words:  # named in passing
        assert words[0] in COMMANDS
    else:
        assert type(parse(words)) is COMMANDS[words[0]]


def test_the_tables_of_systems_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import dev

    monkeypatch.setattr(dev, "PYTHON", sys.executable)
    stale = [name(page) for page, text in dev.pages_with_tables().items() if page.read_text(encoding="utf-8") != text]
    assert stale == [], "run python3 dev.py docs"


def test_the_first_screen_holds_the_two_commands_and_an_example():
    screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:32])
    assert "python3 dev.py demo" in screen
    assert "python3 dev.py test" in screen
    assert "```python" in screen


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
