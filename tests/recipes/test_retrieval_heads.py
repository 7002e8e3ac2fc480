"""The plumbing of the recipe: what is reported follows from what was measured."""

import json

import pytest
import torch

from memseq.memories.attention import AttentionConfig
from memseq.models import StackConfig
from memseq.recipes.recall_table import V
from memseq.recipes.retrieval_heads import TARGETS, claims, main, measured, spearman


def test_ranks_are_compared():
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == 1.0
    assert spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert spearman([1, 1, 2], [5, 5, 9]) == 1.0
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def row(scores, top, others, ranks):
    end = {"heads": 1, "without_top": top, "without_others": others}
    found = sum(score >= 0.1 for score in scores)
    return {"scores": scores, "accuracy": 1.0, "retrieval_heads": found, "silenced": [{}, end], "spearman": ranks}


def test_claims_are_of_the_worst_seed():
    good, bad = row([0.9, 0.0, 0.0], 0.2, [1.0, 0.98], 0.8), row([0.5, 0.4, 0.0], 0.9, [0.5, 0.5], 0.1)
    assert all(claim["ok"] for claim in claims([good]).values())
    found = claims([good, bad])
    assert not any(claim["ok"] for claim in found.values())
    assert (found["lost"]["reached"], found["kept"]["reached"]) == (pytest.approx(0.1), pytest.approx(0.5))


def test_a_head_that_adds_nothing_is_not_missed():
    torch.manual_seed(0)
    model = StackConfig(vocab_size=V, d_model=64, layers=2 * (AttentionConfig(d_model=64, n_heads=4),)).build().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.memories[0].heads.out.weight.zero_()
    told = measured(model, trials=32, draws=2, generator=torch.Generator().manual_seed(0))
    assert told["lost_alone"] == [0.0] * 8
    for cut in told["silenced"]:
        assert cut["without_top"] == told["accuracy"]
        assert cut["without_others"] == [told["accuracy"]] * 2


def test_a_short_run_leaves_its_numbers(tmp_path):
    path = tmp_path / "result.json"
    for _ in range(2):  # what the file holds is not repeated
        main(["--seeds", "1", "--steps", "2", "--trials", "4", "--json", str(path)])
    told = json.loads(path.read_text())
    assert (len(told["rows"]), told["rows"][0]["steps"], len(told["rows"][0]["scores"])) == (1, 2, 16)
    assert set(told["claims"]) == set(TARGETS)
