"""`import memseq` is light, and transformers knows our models whichever of the two is imported first."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import memseq
from memseq.models.presets import preset

SOURCE = Path(memseq.__file__).parent
ABSENT = ["transformers", "triton", "fla", "datasets", "fastapi", "rich", "tyro", "tokenizers", "safetensors", "einops", "peft"]


def python(code: str, *arguments: object) -> str:
    """Run `code` in a Python of its own, on one thread and off line; returns what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE.parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_is_fast_and_loads_nothing_optional():
    """At most 0.3 s beyond torch, counted in processor time, which a busy machine does not lengthen; the better of two."""
    code = f"""
import sys, time
import torch
start = time.process_time()
import memseq
seconds = time.process_time() - start
print(seconds, [name for name in {ABSENT} if name in sys.modules])
start = time.process_time()
memseq.Memory, memseq.LanguageModel, memseq.StackConfig, memseq.Session, memseq.load
print(time.process_time() - start, [name for name in {[n for n in ABSENT if n not in ("einops", "safetensors")]} if name in sys.modules])
"""
    runs = [[line.split(" ", 1) for line in python(code).splitlines()] for _ in range(2)]
    assert {loaded for run in runs for _, loaded in run} == {"[]"}
    assert min(float(run[0][0]) for run in runs) < 0.3
    assert min(float(run[0][0]) + float(run[1][0]) for run in runs) < 1.0  # and its common names, once they are used


def test_importing_alone_does_not_load_torch():
    assert python("import sys, memseq; print('torch' in sys.modules)").strip() == "False"


def test_every_public_name_is_there():
    for name in memseq.__all__:
        assert getattr(memseq, name) is not None, name
    assert memseq.load is memseq.load_pretrained
    assert set(memseq.__all__) <= set(dir(memseq))
    with pytest.raises(AttributeError, match="module 'memseq' has no attribute 'lode'"):
        memseq.lode  # noqa: B018
    rooms = {path.stem for path in SOURCE.iterdir() if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"}
    for name in {name for name in rooms if not name.startswith("cli_")} - {"__init__", "__main__"}:
        assert name in dir(memseq), f"memseq.{name} is not found as an attribute; add it to _ROOMS"


ORDERS = {
    "memseq first": "import memseq; from transformers import AutoModelForCausalLM, AutoTokenizer",
    "transformers first": "import transformers; from transformers import AutoModelForCausalLM, AutoTokenizer; import memseq",
    "generation first": "import memseq; import transformers.generation; from transformers import AutoModelForCausalLM, AutoTokenizer",
    "our class first": "from memseq.retrofit import MemseqForCausalLM; from transformers import AutoModelForCausalLM, AutoTokenizer",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    from memseq.tasks.tokenizers import Bytes

    path = tmp_path_factory.mktemp("model")
    memseq.save(preset("memformer", d_model=16, n_heads=2, n_layers=1).build(), path, tokenizer=Bytes())
    return path


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_knows_our_models_in_any_order_of_imports(order, directory):
    code = f"""
import sys
{ORDERS[order]}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("abc", return_tensors="pt")
print(type(model).__name__, model.generate(**ids, max_new_tokens=3).shape[1])
"""
    assert python(code, directory).split() == ["MemseqForCausalLM", "6"]


def test_transformers_is_left_as_it_is():
    """Where nobody asks for our models, none of our code but the config's is loaded, and none of transformers that was not asked for."""
    code = """
import sys
import memseq
finders = len(sys.meta_path)
from transformers import AutoConfig
import transformers.models.auto.configuration_auto as table
loaded = [name in sys.modules for name in ("memseq.retrofit.huggingface", "transformers.modeling_utils")]
print(table.__spec__.name, len(sys.meta_path) - finders, *loaded)
"""
    name, finders, ours, theirs = python(code).split()
    assert name == "transformers.models.auto.configuration_auto"
    assert int(finders) <= 0  # our finder took itself away
    assert (ours, theirs) == ("False", "False")


def test_without_transformers_the_message_says_what_to_install():
    code = """
import sys
sys.modules["transformers"] = None
import memseq
from memseq.errors import MissingExtraError
for name in ("MemseqForCausalLM", "MemseqConfig", "MemseqCache"):
    try:
        getattr(memseq.retrofit, name)
    except MissingExtraError as error:
        print(error)
"""
    assert set(python(code).splitlines()) == {"transformers is not installed; run: pip install 'memseq[hf]'"}


def test_a_transformers_that_is_too_old_is_not_harmed(tmp_path):
    """Its own import goes on, with one warning."""
    package = tmp_path / "transformers"
    for folder in (package, package / "models", package / "models" / "auto"):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (package / "configuration_utils.py").write_text("")
    (package / "models" / "auto" / "configuration_auto.py").write_text("CONFIG_MAPPING = {}")
    code = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import memseq
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformers.models.auto.configuration_auto as table
print(table.CONFIG_MAPPING, len(caught), caught[0].message)
"""
    printed = python(code, tmp_path)
    assert printed.startswith("{} 1 transformers will not know models of memseq: ")
    assert "pip install 'memseq[hf]'" in printed


def test_the_root_imports_no_room_by_itself():
    """`memseq/__init__.py` names what is public and imports only the module that waits for transformers."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = [node.module for node in top if isinstance(node, ast.ImportFrom) and node.module.startswith("memseq")]
    assert ours == ["memseq.retrofit.registration"]
