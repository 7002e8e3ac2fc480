"""The house itself: what is declared is what is tested, imports are light, and the set-up script says what is wrong."""

import ast
import hashlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def load_dev():
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dev = load_dev()


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower()


def constraints() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {name_of(line): line for line in lines if line}


# ------------------------------------------------------------------------------------------------------ dependencies


def test_everything_the_tests_install_is_pinned():
    used = PROJECT["dependencies"] + [requirement for extra in ("hf", "data", "docs", "dev") for requirement in EXTRAS[extra]]
    loose = sorted({name_of(requirement) for requirement in used} - set(constraints()))
    assert loose == []


def test_every_pin_is_of_something_declared():
    declared = {name_of(requirement) for requirement in [*PROJECT["dependencies"], *chain(*EXTRAS.values())]}
    assert sorted(set(constraints()) - declared - {"mkdocstrings-python"}) == []


def test_torch_is_open_in_the_metadata_and_bounded_in_the_constraints():
    assert "torch>=2.11" in PROJECT["dependencies"]
    assert constraints()["torch"] == f"torch<{dev.dotted(dev.TORCH[1])}"


def test_the_oldest_transformers_tested_is_the_oldest_allowed():
    (allowed,) = [requirement for requirement in EXTRAS["hf"] if requirement.startswith("transformers")]
    oldest = re.search(r">=([\d.]+)", allowed).group(1)
    assert dev.OLD_TRANSFORMERS.startswith(oldest + ".")


def test_all_runs_on_any_machine():
    assert "gpu" not in EXTRAS["all"][0]
    assert "oracle" not in EXTRAS["all"][0]


def test_the_licence_is_apache_2_unchanged():
    assert PROJECT["license"] == "Apache-2.0"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == LICENCE_SHA256


LICENCE_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


# ----------------------------------------------------------------------------------------------------------- imports


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src")
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = [
    "accelerate",
    "datasets",
    "fastapi",
    "fla",
    "matplotlib",
    "peft",
    "rich",
    "tensorboard",
    "tokenizers",
    "transformers",
    "triton",
    "tyro",
]


def test_import_memseq_loads_nothing_heavy():
    loaded = run("import torch, sys; before = set(sys.modules); import memseq; print(*sorted(set(sys.modules) - before))").split()
    assert "memseq" in loaded
    assert sorted({name.partition(".")[0] for name in loaded} & set(HEAVY)) == []


def modules() -> list[str]:
    paths = [path.relative_to(ROOT / "src").with_suffix("") for path in (ROOT / "src" / "memseq").rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def test_no_import_has_side_effects():
    """Importing every module changes no default, seeds nothing, prints nothing and needs no optional package."""
    names = [name for name in modules() if ".retrofit" not in name and ".kernels" not in name]
    code = f"""
import importlib, random, sys, torch
import torch.utils.flop_counter  # takes Triton along where that is installed, which is none of ours
def defaults():
    flags = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    return *flags, torch.get_float32_matmul_precision(), torch.get_rng_state().tolist(), random.getstate()
before, loaded = defaults(), set(sys.modules)
for name in {names!r}:
    importlib.import_module(name)
    heavy = {{module.partition(".")[0] for module in set(sys.modules) - loaded}} & set({sorted(set(HEAVY) - {"rich", "tyro"})!r})
    assert not heavy, f"{{name}} imports {{heavy}} at its top"
assert defaults() == before
"""
    assert run(code) == ""


# ------------------------------------------------------------------------------------------------------------ dev.py


def test_dev_can_be_read_by_an_old_python_and_needs_nothing():
    """An old Python must get as far as the message that it is too old."""
    tree = ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert sorted({name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)) == []


def test_an_old_python_is_told_what_to_run(monkeypatch):
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(dev.shutil, "which", lambda name: "/usr/bin/python3.12" if name == "python3.12" else None)
    monkeypatch.setattr(dev.sys, "argv", ["dev.py", "test"])
    with pytest.raises(dev.Failed, match=r"needs Python 3.11 or newer.*; run: python3.12 dev.py test"):
        dev.need_python()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "is full"),
        ("NewConnectionError: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "is there a network"),
        ("ERROR: No matching distribution found for torch>=2.11", "there is no torch for Python"),
        ("PermissionError: [Errno 13] Permission denied: '/opt/x'", "cannot be written to"),
        ("something else", "last lines"),
    ],
)
def test_a_failed_installation_is_explained(said, advice):
    assert advice in dev.advice_on(said)


def scratch(monkeypatch, tmp_path) -> list[tuple[str, ...]]:
    """dev.py at work in a folder of its own, where nothing is really installed; returns the calls of pip."""
    calls: list[tuple[str, ...]] = []
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    venv = tmp_path / ".venv"
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "VENV", venv)
    monkeypatch.setattr(dev, "STAMP", venv / "memseq-setup.json")
    monkeypatch.setattr(dev, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(dev, "has_torch", lambda python: True)

    def make(torch: str) -> None:
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin" / "python").touch()
        calls.append(("venv", torch))

    monkeypatch.setattr(dev, "make_venv", make)
    monkeypatch.setattr(dev, "usable", lambda python: python.exists())
    monkeypatch.setattr(dev, "pip", lambda *words: calls.append(words))
    return calls


def wishes(**changed) -> SimpleNamespace:
    return SimpleNamespace(**{"torch": "keep", "index_url": None, "extra_index_url": None, **changed})


def test_the_second_set_up_has_nothing_to_do(monkeypatch, tmp_path):
    calls = scratch(monkeypatch, tmp_path)
    dev.set_up(["dev"], wishes())
    assert calls == [("venv", "keep"), ("install", "-c", "constraints.txt", "-e", ".[dev]")]
    dev.set_up(["dev"], wishes())
    dev.set_up([], wishes())
    assert len(calls) == 2


def test_a_change_of_dependencies_or_a_new_extra_installs_again(monkeypatch, tmp_path):
    calls = scratch(monkeypatch, tmp_path)
    dev.set_up(["dev"], wishes())
    dev.set_up(["docs"], wishes())
    assert calls[2:] == [("install", "-c", "constraints.txt", "-e", ".[dev,docs]")]
    (tmp_path / "constraints.txt").write_text("torch<9\n")
    dev.set_up(["dev"], wishes())
    assert len(calls) == 4


def test_another_index_is_used_only_if_it_is_given(monkeypatch, tmp_path):
    calls = scratch(monkeypatch, tmp_path)
    dev.set_up([], wishes(index_url="https://a.example/simple", extra_index_url="https://b.example/simple"))
    assert calls[1][-4:] == ("--index-url", "https://a.example/simple", "--extra-index-url", "https://b.example/simple")


def test_another_choice_of_torch_makes_another_environment(monkeypatch, tmp_path):
    calls = scratch(monkeypatch, tmp_path)
    dev.set_up([], wishes())
    dev.set_up([], wishes(torch="new"))
    assert [call for call in calls if call[0] == "venv"] == [("venv", "keep"), ("venv", "new")]


def test_an_installation_that_failed_leaves_no_stamp(monkeypatch, tmp_path):
    scratch(monkeypatch, tmp_path)

    def fail(*words: str) -> None:
        raise dev.Failed("no")

    monkeypatch.setattr(dev, "pip", fail)
    with pytest.raises(dev.Failed):
        dev.set_up([], wishes())
    assert not dev.STAMP.exists()


def test_a_full_disk_is_said_before_anything_is_fetched(monkeypatch, tmp_path):
    calls = scratch(monkeypatch, tmp_path)
    monkeypatch.setattr(dev, "has_torch", lambda python: False)
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(dev.Failed, match=r"0\.9 GB are free"):
        dev.set_up([], wishes())
    assert [call for call in calls if call[0] == "install"] == []


def test_an_unknown_job_or_check_is_refused():
    wrong = subprocess.run([sys.executable, "dev.py", "tset"], capture_output=True, text=True, cwd=ROOT)
    assert (wrong.returncode, "invalid choice" in wrong.stderr) == (2, True)
    with pytest.raises(dev.Failed, match="there is no check named lnit; there are format, lint"):
        dev.check(["lnit"])


def test_a_table_goes_between_its_markers():
    text = f"above\n{dev.BEGIN}\nold\n{dev.END}\nbelow\n"
    assert dev.with_table(text, "new\n") == f"above\n{dev.BEGIN}\nnew\n{dev.END}\nbelow\n"
    with pytest.raises(dev.Failed, match="are missing"):
        dev.with_table("no markers", "new")
