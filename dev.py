#!/usr/bin/env python3
"""Set up and work on memseq: one file, the standard library, pip.

    python3 dev.py demo      train a Memformer on text that every Python holds, and show what its memory buys
    python3 dev.py test      run the tests (what follows goes to pytest: python3 dev.py test -m slow)
    python3 dev.py check     formatting, lint, types, docs, wheel and source archive
    python3 dev.py docs      rewrite the generated tables and build the site into site/
    python3 dev.py bench     list the benchmarks; python3 dev.py bench NAME ... runs one

Each makes .venv beside this file, installs into it what the job needs under constraints.txt, and does the job. The second
time there is nothing to install, and the job starts at once.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "memseq-setup.json"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST_PYTHON = (3, 11)
TORCH = ((2, 11), (2, 14))  # from, and below: the range that constraints.txt names
OLD_TRANSFORMERS = "5.17.0"  # the oldest that the extra `hf` allows; the tests run a few laws under it too
EXTRAS = {
    "demo": [],
    "test": ["data", "dev", "hf"],
    "check": ["data", "dev", "docs", "hf"],
    "docs": ["docs"],
    "bench": ["dev", "hf", "oracle"],
}
ROOM = 3 * 2**30  # bytes that torch, triton and the rest take, at least


class Failed(Exception):
    """A set-up or a job that cannot go on; its message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("job", choices=sorted(EXTRAS), help="what to do; further words and flags go to the job")
    parser.add_argument(
        "--torch",
        choices=["keep", "new"],
        default="keep",
        help="keep (default): use the torch that this Python imports if it is in range; new: install one into .venv",
    )
    parser.add_argument("--index-url", metavar="URL", help="where pip looks in place of its default")
    parser.add_argument("--extra-index-url", metavar="URL", help="where pip looks as well, such as the index of the CPU builds of torch")
    given, rest = parser.parse_known_args()
    try:
        need_python()
        set_up(EXTRAS[given.job], given)
        return {"demo": demo, "test": test, "check": check, "docs": docs, "bench": bench}[given.job](rest)
    except Failed as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndev.py: stopped", file=sys.stderr)
        return 130


# ------------------------------------------------------------------------------------------------------------ set-up


def need_python() -> None:
    if sys.version_info >= OLDEST_PYTHON:
        return
    newer = next((name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)), None)
    advice = f"run: {newer} dev.py {' '.join(sys.argv[1:])}" if newer else "install Python 3.11 or newer from your system or python.org"
    raise Failed(f"memseq needs Python 3.11 or newer, and this is {sys.version.split()[0]} ({sys.executable}); {advice}")


def set_up(extras: list, given: argparse.Namespace) -> None:
    """Make .venv hold memseq with `extras`; where a stamp says that it does, nothing is done."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    have = read_stamp()
    same = have.get("key") == wanted and have.get("root") == str(ROOT) and have.get("torch") == given.torch and PYTHON.exists()
    if same and set(extras) <= set(have["extras"]):
        return
    started = time.time()
    if not usable(PYTHON) or have.get("torch", given.torch) != given.torch:
        make_venv(given.torch)
    extras = sorted(set(extras) | set(have["extras"] if same else []))
    target = f".[{','.join(extras)}]" if extras else "."
    free = shutil.disk_usage(ROOT).free
    if free < ROOM and not has_torch(PYTHON):
        raise Failed(f"{free / 2**30:.1f} GB are free at {ROOT}; the installation takes about 3 GB (8 GB with a CUDA build of torch)")
    say(f"installing memseq{target[1:]} and what it needs into .venv (torch alone can be large: the first time takes minutes)")
    pip("install", "-c", "constraints.txt", "-e", target, *indexes(given))
    STAMP.write_text(json.dumps({"key": wanted, "root": str(ROOT), "torch": given.torch, "extras": extras}))
    say(f"ready after {time.time() - started:.0f} s; the next time this takes none")


def read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def usable(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def make_venv(torch: str) -> None:
    say(f"making .venv with Python {sys.version.split()[0]}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode:
        if "ensurepip" in made.stdout:
            raise Failed("this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv")
        raise Failed(f"python -m venv failed: {made.stdout.strip() or 'no message'}{advice_on(made.stdout)}")
    where = importable_torch() if torch == "keep" else None
    if where:
        # a line in a .pth file lets .venv see that folder behind its own: what pip installs there comes first
        site = subprocess.check_output([str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
        (Path(site) / "kept_torch.pth").write_text(f"{where}\n")


def importable_torch():
    """The folder of the torch that the calling Python imports, where it is in range and works; else None."""
    code = "import os, torch; print(torch.__version__); print(os.path.dirname(os.path.dirname(torch.__file__)))"
    found = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tempfile.gettempdir()
    )
    if found.returncode:
        return None
    version, where = found.stdout.split("\n")[:2]
    parts = version.split("+")[0].split(".")
    if TORCH[0] <= (int(parts[0]), int(parts[1])) < TORCH[1]:
        say(f"keeping torch {version} of {where}")
        return where
    say(f"torch {version} of {where} is not from {dotted(TORCH[0])} to below {dotted(TORCH[1])}: another one goes into .venv")
    return None


def has_torch(python: Path) -> bool:
    return subprocess.run([str(python), "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"]).returncode == 0


def indexes(given: argparse.Namespace) -> list:
    flags = [("--index-url", given.index_url), ("--extra-index-url", given.extra_index_url)]
    return [word for flag, url in flags if url for word in (flag, url)]


def pip(*words: str) -> None:
    """Run pip in .venv; its lines are shown as they come, and a failure is explained."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace") as running:
        said = []
        for line in running.stderr:
            said.append(line)
            sys.stderr.write(line)
    if running.returncode:
        raise Failed(f"pip could not install what is needed{advice_on(''.join(said))}")


def advice_on(said: str) -> str:
    if "No space left" in said:
        return f"; the disk of {ROOT} or of the temporary folder ({tempfile.gettempdir()}) is full: free a few GB, or set TMPDIR"
    if any(
        sign in said
        for sign in ("resolution", "NewConnectionError", "ConnectTimeout", "Network is unreachable", "ProxyError", "Connection refused")
    ):
        return "; no package index answers: is there a network, and does pip need a proxy (HTTPS_PROXY) or an index (--index-url URL)?"
    if "No matching distribution found for torch" in said:
        return (
            f"; there is no torch for Python {sys.version.split()[0]} on this system:"
            " use Python 3.11 to 3.13, 64 bit, or give another index with --index-url URL"
        )
    if "Permission denied" in said:
        return f"; {ROOT} cannot be written to"
    return "; its last lines above say why"


def say(message: str) -> None:
    print(f"dev.py: {message}", file=sys.stderr, flush=True)


def dotted(version: tuple) -> str:
    return ".".join(str(part) for part in version)


# -------------------------------------------------------------------------------------------------------------- jobs


def demo(words: list) -> int:
    # threads that wait by spinning take the cores from each other when the machine has other work: 80 times slower was seen
    return run("-m", "memseq.recipes.demo", *words, OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "passive"))


def test(words: list) -> int:
    old = VENV / f"transformers-{OLD_TRANSFORMERS}"
    if not old.exists():
        say(f"fetching transformers {OLD_TRANSFORMERS}, the oldest that is allowed, for one test")
        beside = old.with_suffix(".part")
        try:
            pip("install", "--quiet", "--no-deps", "--target", str(beside), f"transformers=={OLD_TRANSFORMERS}")
            pip("install", "--quiet", "--target", str(beside), "huggingface-hub<2")  # it takes no newer one
            beside.rename(old)
        except Failed as error:
            say(f"{error} (the tests run without it)")
    environment = {"MEMSEQ_OLD_TRANSFORMERS": str(old)} if old.exists() else {}
    workers = min(os.cpu_count() or 1, 8)
    if workers > 1 and not any(word.startswith(("-n", "--numprocesses", "--pdb")) for word in words):
        words = ["-n", str(workers), *words]
    return run("-m", "pytest", *words, OMP_NUM_THREADS="1", **environment)


def check(words: list) -> int:
    """Everything that a change must pass besides the tests; all of it runs, whatever fails."""
    steps = [
        ("format", lambda: run("-m", "ruff", "format", "--check", ".")),
        ("lint", lambda: run("-m", "ruff", "check", ".")),
        ("types", lambda: run("-m", "ty", "check", "src")),
        ("docs", lambda: build_site()),
        ("archives", lambda: build_archives()),
    ]
    unknown = [word for word in words if word not in [name for name, _ in steps]]
    if unknown:
        raise Failed(f"there is no check named {', '.join(unknown)}; there are {', '.join(name for name, _ in steps)}")
    results = []
    for name, step in steps:
        if words and name not in words:
            continue
        say(f"check: {name}")
        results.append((name, step() == 0))
    say("check: " + ", ".join(f"{name} {'ok' if passed else 'FAILED'}" for name, passed in results))
    return 0 if all(passed for _, passed in results) else 1


def docs(words: list) -> int:
    if words:
        raise Failed(f"docs takes no further words, got {' '.join(words)}")
    for page, text in pages_with_tables().items():
        page.write_text(text, encoding="utf-8")
    return build_site()


def bench(words: list) -> int:
    scripts = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("[!_]*.py"))}
    if not words:
        print("python3 dev.py bench NAME [flags], where NAME is one of: " + ", ".join(scripts))
        return 0
    if words[0] not in scripts:
        raise Failed(f"there is no benchmark named {words[0]}; there are {', '.join(scripts)}")
    return run(str(scripts[words[0]]), *words[1:])


def run(*words: str, **environment: str) -> int:
    return subprocess.run([str(PYTHON), *words], cwd=ROOT, env={**os.environ, **environment}).returncode


BEGIN, END = "<!-- systems: begin (python3 dev.py docs writes what follows) -->", "<!-- systems: end -->"


def pages_with_tables():
    """The pages that hold a table of systems, as they should be; a system that has a page is linked to it."""
    pages = {}
    index = ROOT / "docs" / "systems" / "index.md"
    for page, folder, flags in ((ROOT / "README.md", "docs/systems/", ["--families"]), (index, "", [])):
        command = [str(PYTHON), "-m", "memseq", "list", "--markdown", *flags]
        linked = subprocess.check_output(command, text=True, cwd=str(ROOT))
        for path in (ROOT / "docs" / "systems").glob("*.md"):
            linked = linked.replace(f"`{path.stem}`", f"[`{path.stem}`]({folder}{path.name})")
        pages[page] = with_table(page.read_text(encoding="utf-8"), linked)
    return pages


def with_table(text: str, table: str) -> str:
    """`text` with what lies between the two markers replaced by `table`."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise Failed(f"the markers {BEGIN} and {END} are missing")
    return f"{head}{BEGIN}\n{table.strip()}\n{END}{tail}"


def build_site() -> int:
    return run("-m", "zensical", "build", "--strict", "--clean")


def build_archives() -> int:
    """Build the wheel and the source archive, and look at what lies in them."""
    import tarfile
    import zipfile

    with tempfile.TemporaryDirectory() as folder:
        built = run("-m", "build", "--no-isolation", "--outdir", folder, ".")
        if built:
            return built
        wheel, source = next(Path(folder).glob("*.whl")), next(Path(folder).glob("*.tar.gz"))
        with zipfile.ZipFile(wheel) as archive:
            in_wheel = set(archive.namelist())
        with tarfile.open(source) as archive:
            in_source = {name.partition("/")[2] for name in archive.getnames()}
        wrong = [f"{wheel.name} lacks {name}" for name in sorted(ours("src") - in_wheel)]
        wrong += [f"{wheel.name} holds {name}" for name in sorted(in_wheel - ours("src")) if ".dist-info/" not in name]
        wrong += [f"{wheel.name} lacks its licence"] * (not any(name.endswith("/licenses/LICENSE") for name in in_wheel))
        needed = (
            {f"src/{name}" for name in ours("src")}
            | {f"tests/{name}" for name in ours("tests")}
            | {"LICENSE", "README.md", "pyproject.toml", "dev.py", "constraints.txt"}
        )
        wrong += [f"{source.name} lacks {name}" for name in sorted(needed - in_source)]
        wrong += [f"{source.name} holds {name}" for name in sorted(in_source) if name.endswith((".pyc", ".safetensors", ".part"))]
        for line in wrong:
            print(line)
        for archive, names in ((wheel, in_wheel), (source, in_source)):
            print(f"{archive.name}: {len(names)} files, {archive.stat().st_size / 1e3:.0f} kB")
        return 1 if wrong else 0


def ours(folder: str) -> set:
    """The files of the repository under `folder`, relative to it, as an archive names them."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc")
    return {path.relative_to(ROOT / folder).as_posix() for path in found}


if __name__ == "__main__":
    sys.exit(main())
