"""The review's claims, run: minutes on one core, by `-m slow`. The two that need no training are in tests/recipes and tests/memories."""

import pytest

from memseq.recipes.rnn_review import adding_problem, labelling

pytestmark = pytest.mark.slow


def test_a_cell_that_adds_solves_the_adding_problem_where_elman_does_not():
    scores = adding_problem()
    assert scores["lstm"] < 0.01
    assert scores["elman"] > 0.1  # the constant 1 has 1/6


def test_reading_both_ways_labels_what_one_way_can_only_guess():
    scores = labelling()
    assert scores["blstm"] > 0.99
    assert scores["look-ahead blstm"] > 0.99
    assert abs(scores["lstm"] - scores["causal bound"]) < 0.02
