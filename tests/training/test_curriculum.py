"""The curriculum: stages end by steps or by score, numbers are drawn evenly and alike, and it continues where it stopped."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from memseq.errors import ConfigError
from memseq.memories.gru import GRUConfig
from memseq.models.stack import StackConfig
from memseq.training import TokenDocuments, TrainingConfig, WarmupCosine, train
from memseq.training.curriculum import Curriculum, Progress


def test_a_stage_ends_after_its_steps_or_when_it_is_mastered():
    curriculum = Curriculum(stages=(2, 4, 8), steps=3, mastered=0.9)
    progress = curriculum.begin()
    seen = []
    for score in (None, None, None, 0.95, None, 0.5, None, 1.0, None):
        seen.append(progress.stage)
        progress = curriculum.after(progress, score)
    assert seen == [0, 0, 0, 1, 2, 2, 2, 2, 2]  # three steps; one step and its score; the last does not end
    assert progress == Progress(2, 5)


def test_by_steps_a_place_is_a_function_of_the_step():
    curriculum = Curriculum(stages=(1, 2, 4), steps=3)
    progress, seen = curriculum.begin(), []
    for step in range(12):
        assert curriculum.at(step) == progress
        seen.append(progress.stage)
        progress = curriculum.after(progress)
    assert seen == [0] * 3 + [1] * 3 + [2] * 6


def test_a_training_run_takes_it_as_its_horizon_and_resumes_alike(tmp_path):
    config = TrainingConfig(
        steps=6,
        batch_size=2,
        segment_length=4,
        horizon=Curriculum(stages=(1, 3), steps=2, full=1.0),
        rate=WarmupCosine(warmup=0, floor=1.0),
        dtype="float32",
        log_every=1,
    )
    documents = TokenDocuments([np.random.default_rng(i).integers(0, 7, 400) for i in range(3)])

    def run(out, config, *, resume=False):
        torch.manual_seed(0)
        model = StackConfig(vocab_size=7, d_model=8, layers=(GRUConfig(d_model=8),)).build()
        train(model, config.lanes(documents), config, tmp_path / out, resume=resume, quiet=True)
        log = [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        return model, [line["tokens"] for line in log]

    whole, tokens = run("whole", config)
    assert tokens == [8, 16, 40, 64, 88, 112]  # windows of 1, 1, 3, 3, 3, 3 segments of 2 x 4 tokens
    run("cut", replace(config, steps=3))
    resumed, _ = run("cut", config, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(ConfigError, match="a run goes by steps"):
        TrainingConfig(horizon=Curriculum(mastered=0.9))


def test_numbers_are_drawn_evenly_below_the_full_stage():
    curriculum = Curriculum(stages=(5,), least=2, full=0.5)
    drawn = Counter(curriculum.n_segments(Progress(0, step), seed=0) for step in range(4000))
    assert set(drawn) == {2, 3, 4, 5}
    assert all(abs(drawn[n] / 4000 - 0.125) < 0.025 for n in (2, 3, 4))
    assert abs(drawn[5] / 4000 - 0.625) < 0.03
    assert {Curriculum(stages=(5,), full=1.0).n_segments(Progress(0, s), 0) for s in range(50)} == {5}


def test_the_same_place_draws_the_same_and_another_seed_another():
    curriculum = Curriculum(stages=(16,), full=0.0)
    of = [[curriculum.n_segments(Progress(0, step), seed) for step in range(30)] for seed in (0, 0, 1)]
    assert of[0] == of[1] != of[2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"stages": ()}, "must be numbers of segments that grow"),
        ({"stages": (4, 4)}, "must be numbers of segments that grow"),
        ({"least": 3}, "least=3 must lie in 1 to the first stage, 1"),
        ({"full": 2.0}, "full=2.0 must be a share"),
        ({"steps": None}, "no stage would end"),
        ({"steps": 0}, "steps=0 must be at least 1"),
    ],
)
def test_errors_say_what_is_wrong(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Curriculum(**wrong)
