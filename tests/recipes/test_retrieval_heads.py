"""The plumbing of the recipe: what is taught has one answer, and what is reported follows from what was measured."""

import json

import pytest
import torch

from memseq.memories.attention import AttentionConfig
from memseq.models import StackConfig
from memseq.probes import Subject
from memseq.probes.asking import Alphabet
from memseq.recipes import retrieval_heads
from memseq.recipes.retrieval_heads import ASKED, PAIRS, V, claims, lesson, main, spearman


def test_a_lesson_asks_what_it_has_shown():
    model = StackConfig(vocab_size=V, d_model=8, layers=(AttentionConfig(d_model=8, n_heads=2),)).build()
    subject = Subject(name="any", model=model)
    alphabet = Alphabet.of(subject)
    tokens, targets = lesson(subject, alphabet, torch.Generator().manual_seed(0))
    scored = targets != -100
    assert scored.sum(1).tolist() == [ASKED] * len(tokens)
    for row, said, at in zip(tokens.tolist(), targets.tolist(), scored.tolist(), strict=True):
        shown = dict(zip(row[0 : 2 * PAIRS : 2], row[1 : 2 * PAIRS : 2], strict=True))
        assert len(shown) == PAIRS
        asked = [place for place, yes in enumerate(at) if yes]
        assert min(asked) > 2 * PAIRS
        assert all(shown[row[place]] == said[place] == row[place + 1] for place in asked)
        assert not set(row[2 * PAIRS : min(asked)]) & set(alphabet.keys.tolist())


def test_ranks_are_compared():
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == 1.0
    assert spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert spearman([1, 1, 2], [5, 5, 9]) == 1.0
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_claims_are_of_the_worst_seed():
    good = {"scores": [0.9, 0.1], "accuracy": 1.0, "without_top": 0.2, "without_others": [1.0, 0.98], "spearman": 0.8}
    bad = {"scores": [0.5, 0.1], "accuracy": 1.0, "without_top": 0.9, "without_others": [0.5, 0.5], "spearman": 0.1}
    assert all(claim["ok"] for claim in claims([good]).values())
    found = claims([good, bad])
    assert not any(claim["ok"] for claim in found.values())
    assert (found["lost"]["reached"], found["kept"]["reached"]) == (pytest.approx(0.1), pytest.approx(0.5))


def test_a_short_run_leaves_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval_heads, "BATCH", 4)
    main(["--seeds", "1", "--steps", "2", "--samples", "2", "--json", str(tmp_path / "result.json")])
    told = json.loads((tmp_path / "result.json").read_text())
    assert (len(told["rows"]), told["rows"][0]["steps"], len(told["rows"][0]["scores"])) == (1, 2, 12)
    assert set(told["claims"]) == set(retrieval_heads.TARGETS)
