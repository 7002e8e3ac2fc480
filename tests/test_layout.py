"""The house: which room may import which. The table is the one of docs; this test is what keeps it true.

Every import counts, wherever in a file it stands. All rooms may import the modules at the root.
"""

import ast
from pathlib import Path

import pytest

import memseq

SOURCE = Path(memseq.__file__).parent
BELOW = ["ops", "layers", "memories", "models", "training", "streams", "tasks", "probes", "retrofit"]
ROOMS = {
    "ops": [],
    "layers": ["ops"],
    "memories": ["ops", "layers"],
    "models": ["memories", "layers", "ops"],
    "training": [],
    "checking": ["training"],  # the proof of the law, behind `contract.check_memory`; replay is one of its rows
    "streams": [],
    "tasks": [],
    "probes": ["streams", "tasks"],
    "retrofit": ["models", "memories", "layers", "ops", "streams"],
    "applications": BELOW,
    "recipes": [*BELOW, "applications", "report"],  # report: the demo prints its own table
    "report": [],
    "cli": ["recipes", "probes", "streams", "training", "retrofit", "report", "models"],  # models: its presets
}
ROOT = {"checking", "configs", "contract", "errors", "pretrained", "state", "systems"}  # import each other, and rooms only by name on use
# packages that an import of which is slow or that an extra brings: where they may be imported at all
OPTIONAL = {
    "transformers": {"retrofit"},
    "peft": {"retrofit"},
    "accelerate": {"retrofit"},
    "tokenizers": {"tasks"},
    "datasets": {"tasks", "training"},
    "triton": {"ops"},
    "fla": {"ops"},
    "fastapi": {"streams"},
    "uvicorn": {"streams", "cli"},
    "tyro": {"cli"},
    "rich": {"cli", "training", "report", "recipes", "probes"},
    "matplotlib": {"report", "recipes"},
    "lm_eval": {"probes", "retrofit", "cli"},
}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The folder directly under memseq, or the module's own name; `cli_x.py` belongs to `cli`."""
    part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "cli" if part.startswith("cli") or part == "__main__" else part


def imports(file: Path) -> list[tuple[int, str]]:
    """Every module that `file` imports, in full, with its line; names taken from a package count as its modules."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are written in full"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def breaks(file: Path, module: str) -> str | None:
    """What is wrong with `file` importing `module`; None where nothing is."""
    room, (package, *rest) = room_of(file), module.split(".")
    if package != "memseq":
        allowed = OPTIONAL.get(package)
        return f"{package} may be imported in {', '.join(sorted(allowed))} only" if allowed is not None and room not in allowed else None
    target = rest[0] if rest else "__init__"
    target = "cli" if target.startswith("cli_") else target
    if room == "__init__":
        return None if rest[:2] == ["retrofit", "registration"] else "the root imports nothing but the registration"
    if target in ROOT:
        return None
    if room in ROOT - {"checking"}:
        return "a module at the root imports rooms by name, when they are used"
    if target == room:
        inside = room == "memories" and file.name != "__init__.py" and rest[1:2] != [file.stem]
        return "memories never import each other; a wrapper takes a config" if inside else None
    return None if target in ROOMS[room] else f"{room} may import {', '.join(ROOMS[room]) or 'nothing'}, not {target}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_file_imports_what_its_room_may(file):
    wrong = [f"line {line}: {module}: {why}" for line, module in imports(file) if (why := breaks(file, module))]
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table():
    there = {room_of(file) for file in FILES} - ROOT - {"__init__"}
    assert there <= set(ROOMS), f"new rooms: {sorted(there - set(ROOMS))}; say in the table what they may import"


def test_the_table_has_no_circles():
    order: list[str] = []
    while len(order) < len(ROOMS):
        ready = [room for room in ROOMS if room not in order and set(ROOMS[room]) <= set(order)]
        assert ready, f"rooms that import each other: {sorted(set(ROOMS) - set(order))}"
        order += ready


@pytest.mark.parametrize(
    ("where", "module", "said"),
    [
        ("ops/scan.py", "memseq.layers.rotary", "ops may import nothing, not layers"),
        ("memories/gru.py", "memseq.memories.lstm.LSTM", "memories never import each other"),
        ("memories/gru.py", "memseq.models.stack", "memories may import ops, layers, not models"),
        ("training/loop.py", "memseq.models", "training may import nothing, not models"),
        ("models/stack.py", "transformers", "transformers may be imported in retrofit only"),
        ("state.py", "memseq.models", "a module at the root imports rooms by name"),
        ("__init__.py", "memseq.state", "the root imports nothing"),
    ],
)
def test_a_break_is_noticed(where, module, said):
    assert said in (breaks(SOURCE / where, module) or "")


def test_files_stay_short():
    long = {str(file.relative_to(SOURCE)): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long, f"more than 400 lines: {long}; split by idea"
