"""Language models of novels with each memory: the plumbing on few steps, and that the rows are comparable."""

import json

import numpy as np
import pytest
import torch

from memseq.recipes import novels, retrofit
from memseq.recipes.fitting import weights_of


@pytest.fixture
def text():
    """Tokens in the place of novels."""
    chance = np.random.default_rng(0)
    passages = torch.from_numpy(chance.integers(3, novels.V, size=(4, 3 * retrofit.L + 1)))
    return retrofit.Novels([chance.integers(3, novels.V, size=4 * retrofit.DOCUMENT * retrofit.L)], passages)


def test_all_rows_have_as_many_weights():
    for name, config in novels.contenders().items():
        assert abs(weights_of(config) / novels.WEIGHTS - 1) < 0.002, name


@pytest.mark.parametrize("name", [novels.NO_MEMORY, "compressive", "rmt, noise 0.5", "hmt"])
def test_a_row_trains_and_is_scored_with_its_memory_and_with_anothers(name, text):
    row = novels.run(name, text, steps=1, batch_size=2)
    assert (row["beyond"] == row["anothers"]) == (name == novels.NO_MEMORY)
    assert len(row["nats_by_segment"]) == 3
    assert len(row["nats_by_place"]) == retrofit.PLACES
    assert row["tokens"] == 2 * novels.WINDOW * retrofit.L


def test_rows_are_told_by_what_they_have_of_the_perplexity_without_a_memory():
    rows = [{"name": novels.NO_MEMORY, "seed": 0, "inside": 20.0, "beyond": 20.0, "anothers": 20.0}]
    rows.append({"name": "rmt", "seed": 0, "inside": 20.2, "beyond": 19.0, "anothers": 19.5})
    assert novels.claims(rows) == {
        "rmt, seed 0": {"inside, of no memory": 1.01, "beyond, of no memory": 0.95, "beyond, of another's": round(19 / 19.5, 4)}
    }


@pytest.mark.slow
def test_it_runs_from_the_command_line_on_novels(data_dir, tmp_path):
    file = tmp_path / "rows.json"
    novels.main([str(data_dir), "--steps", "2", "--rows", "3", "--only", "armt", "--only", novels.NO_MEMORY, "--json", str(file)])
    assert set(json.loads(file.read_text())["claims"]) == {"armt, seed 0"}
