"""The adapter to lm-evaluation-harness: its methods on plain requests, and a local task where the harness is installed; no network."""

import json
import math
import sys
from types import SimpleNamespace

import pytest

from memseq.errors import ConfigError, MissingExtraError
from memseq.memories.gru import GRUConfig
from memseq.models import StackConfig
from memseq.pretrained import save_pretrained
from memseq.probes.lm_eval import Answers, continuation, harness_model
from memseq.tasks.tokenizers import Bytes


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_pretrained(StackConfig(vocab_size=256, d_model=8, layers=(GRUConfig(d_model=8),)).build(), path, tokenizer=Bytes())
    return path


def request(*args):
    return SimpleNamespace(args=args)


class Hook:
    """Where the harness keeps answers."""

    def __init__(self):
        self.kept = []

    def add_partial(self, kind, asked, answer):
        self.kept.append((kind, asked, answer))


def test_it_answers_what_the_harness_asks(directory):
    lm = Answers(str(directory), batch_size="2", device="cpu")
    lm.cache_hook = Hook()
    pairs = [("The sky is", " blue"), ("The sky is", " green"), ("", "x")]
    found = lm.loglikelihood([request(*pair) for pair in pairs])
    assert found == lm.scorer.loglikelihoods(pairs)
    assert lm.loglikelihood_rolling([request("a text")]) == lm.scorer.rolling(["a text"])
    asked = [
        ("a", {"until": ["\n"], "max_gen_toks": 5}),
        ("b", {"until": "z", "max_gen_toks": 3}),
        ("c", {"until": ["\n"], "max_gen_toks": 5}),
    ]
    said = lm.generate_until([request(*args) for args in asked])
    assert said == [lm.scorer.continue_until([text], continuation(how, 256))[0] for text, how in asked]
    assert lm.cache_hook.kept[:3] == [("loglikelihood", pair, answer) for pair, answer in zip(pairs, found, strict=True)]
    assert [answer for kind, _, answer in lm.cache_hook.kept if kind == "generate_until"] == [said[0], said[2], said[1]]
    with pytest.raises(ConfigError, match="has no argument 'batchsize'; did you mean 'batch_size'"):
        Answers(str(directory), batchsize=3)


def test_the_harness_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    harness_model.cache_clear()
    with pytest.raises(MissingExtraError, match=r"lm_eval is not installed; run: pip install 'memseq\[eval\]'"):
        harness_model()


def test_words_of_the_harness_are_understood():
    how = continuation({"until": ["a", "b"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 9}, 256)
    assert (how.until, how.tokens, how.temperature) == (("a", "b"), 9, 0.0)
    how = continuation({"until": "a", "do_sample": True, "temperature": 0.7, "top_k": 5}, 256)
    assert (how.until, how.tokens, how.temperature, how.top_k) == (("a",), 256, 0.7, 5)
    with pytest.raises(ConfigError, match="generation has no setting 'num_beams'"):
        continuation({"num_beams": 4}, 256)


def test_a_local_task_runs_offline(directory, tmp_path):
    """Two-way choices and perplexity from files on this disk, through the harness's own evaluator."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed; run: pip install 'memseq[eval]'")
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    from memseq.probes.lm_eval import MemseqLM

    rows = [
        {"q": f"{a} comes before", "choices": [" one", " two"], "gold": i % 2, "text": f"text number {i}"} for i, a in enumerate("abcd")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"dataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path / 'rows.jsonl'}\n"
    files += f"  cache_dir: {tmp_path / 'cache'}\ntest_split: train\n"
    (tmp_path / "choice.yaml").write_text(
        f"task: choice\n{files}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_choice: '{{{{choices}}}}'\n"
        "doc_to_target: '{{gold}}'\nmetric_list:\n  - metric: acc\n"
    )
    (tmp_path / "perplexity.yaml").write_text(
        f"task: perplexity\n{files}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    assert get_model("memseq") is MemseqLM
    lm = MemseqLM(str(directory), device="cpu")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=lm, tasks=["choice", "perplexity"], task_manager=tasks, bootstrap_iters=0)["results"]
    answers = lm.scorer.loglikelihoods([(row["q"], choice) for row in rows for choice in row["choices"]])
    right = [(answers[2 * i + 1][0] > answers[2 * i][0]) == bool(row["gold"]) for i, row in enumerate(rows)]
    assert found["choice"]["acc,none"] == pytest.approx(sum(right) / len(right))
    bits = -sum(lm.scorer.rolling([row["text"] for row in rows])) / math.log(2) / sum(len(row["text"]) for row in rows)
    assert found["perplexity"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
