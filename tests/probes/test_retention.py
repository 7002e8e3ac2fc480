"""What is left of a trace follows from how a memory forgets."""

import pytest

from memseq.probes.retention import RetentionProbe, half_life


def test_a_queue_keeps_its_trace_whole_and_then_not_at_all(subject, fifo):
    found = RetentionProbe(length=256, samples=8, load=4).run(subject(fifo(40)))
    rows = {row["distance"]: row for row in found["rows"]}
    assert rows[16]["trace"] > 0
    assert rows[16]["recall"] == 1.0
    assert rows[64]["trace"] == rows[256]["trace"] == 0.0
    assert 16 < found["half_life"] < 64
    assert rows[256]["recall"] < 0.4


@pytest.mark.parametrize("keep", [0.9, 0.99])
def test_a_decay_keeps_a_share_a_token(subject, leaky, keep):
    """The difference of twins that read the same is what was shown, times keep^d; here without the division by their norms."""
    found = RetentionProbe(length=64, samples=8).run(subject(leaky(keep)))
    rows = {row["distance"]: row for row in found["rows"]}
    apart = {d: row["trace"] * row["norm"] for d, row in rows.items()}
    assert apart[16] / apart[0] == pytest.approx(keep**16, rel=0.1)
    assert apart[64] / apart[0] == pytest.approx(keep**64, rel=0.1)
    assert list(rows[0]["leaves"]) == ["h"]
    assert rows[0]["leaves"]["h"] == pytest.approx(rows[0]["trace"])


def test_half_life_lies_between_two_distances():
    assert half_life([0, 16, 64], [1.0, 0.6, 0.4]) == pytest.approx((17 * 65) ** 0.5 - 1)
    assert half_life([0, 16], [1.0, 0.6]) is None


def test_nothing_kept_is_said(subject, leaky):
    found = RetentionProbe(length=16, samples=4).run(subject(leaky(0.0)))
    assert found["rows"][-1]["trace"] == 0.0
    assert "0% is left" in found["says"][0]["answer"]
