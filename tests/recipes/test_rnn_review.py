"""The tasks of the review ask what they say, and its figure is computed from the right gradients."""

from dataclasses import dataclass

import torch
from torch.testing import assert_close

from memseq.contract import Memory
from memseq.recipes.rnn_review import Labels, adding_batch, gradient_by_lag, late, vanishing_gradients


def test_the_adding_problem_marks_one_number_in_each_half_and_asks_for_their_sum():
    x, target = adding_batch(5000, 21, torch.Generator().manual_seed(0))
    numbers, marks = x.unbind(-1)
    assert marks[:, :10].sum(1).unique().tolist() == marks[:, 10:].sum(1).unique().tolist() == [1.0]
    assert_close(target, (numbers * marks).sum(1))
    assert abs(float((target - 1).square().mean()) - 1 / 6) < 0.01  # what the constant 1 reaches


def test_labels_lie_before_an_even_symbol_and_after_an_odd_one():
    task = Labels(n_symbols=4, reach=2, length=9)
    x, labels = task.batch(50, torch.Generator().manual_seed(0))
    symbols = x.argmax(-1)
    for row, (said, wanted) in enumerate(zip(symbols.tolist(), labels.tolist(), strict=True)):
        for t in range(9):
            inside = 2 <= t < 7
            assert wanted[t] == (said[t - 2 if said[t] % 2 == 0 else t + 2] if inside else -100), (row, t)
    assert late(labels, 2)[:, 2:].equal(labels[:, :-2])
    assert (late(labels, 2)[:, :2] == -100).all()


class Average(Memory[tuple[torch.Tensor]]):
    """y_t = y_{t-1} / 2 + x_t: its gradient halves with every lag."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def init_state(self, batch_size):
        return (torch.zeros(batch_size, self.config.d_model, dtype=torch.float64),)

    def forward(self, x, state):
        (y,), ys = state, []
        for x_t in x.unbind(1):
            y = y / 2 + x_t
            ys.append(y)
        return torch.stack(ys, dim=1), (y,)


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    d_model: int

    def build(self):
        return Average(self)


def test_the_lags_count_back_from_the_last_token():
    lengths = torch.tensor(gradient_by_lag(AverageConfig(d_model=3), lag=6))
    assert_close(lengths / lengths[0], 0.5 ** torch.arange(7.0))


def test_the_figure_has_a_curve_a_network_and_they_fall_in_the_order_of_the_review():
    fall = {name: curve[0] / curve[40] for name, curve in vanishing_gradients(lag=40).items()}
    assert fall["elman, radius 0.9"] > fall["elman, radius 1.1"] > fall["lstm, forget bias 1"] > fall["lstm, forget bias 5"]
