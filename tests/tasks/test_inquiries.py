"""PubMedQA and QMSum: official formats as read, passages chained and cut to a size, and what is made in their likeness."""

import gzip
import json
import random
import re

import pytest

from memseq.errors import InputError
from memseq.tasks import babi, inquiries

STUDY = {
    "QUESTION": "Does it help?",
    "CONTEXTS": ["We asked.", "It helped nine of ten."],
    "LABELS": ["AIM", "RESULTS"],
    "LONG_ANSWER": "It helps most.",
    "final_decision": "yes",
}
MEETING = {
    "topic_list": [],
    "general_query_list": [{"query": "Summarize.", "answer": "They talked."}],
    "specific_query_list": [
        {"query": "What did Ann think?", "answer": "That it is late.", "relevant_text_span": [["0", "0"], ["2", "9"]]},
        {"query": "What was decided?", "answer": "Nothing."},
    ],
    "meeting_transcripts": [
        {"speaker": "Ann", "content": "It is late ."},
        {"speaker": "Bob", "content": "Is it ?"},
        {"speaker": "Ann", "content": "Yes ."},
    ],
}


@pytest.mark.parametrize("packed", [False, True])
def test_official_formats_are_read(tmp_path, packed):
    def written(name, text):
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        return path

    papers = inquiries.read_pubmedqa(written("ori_pqal.json", json.dumps({"1": STUDY, "2": STUDY | {"final_decision": "maybe"}})))
    assert papers[0] == inquiries.Inquiry(("We asked.", "It helped nine of ten."), "Does it help?", "It helps most.", "yes", (0, 1))
    assert [paper.decision for paper in papers] == ["yes", "maybe"]
    meetings = inquiries.read_qmsum(written("val.jsonl", json.dumps(MEETING) + "\n" + json.dumps(MEETING) + "\n"))
    assert len(meetings) == 4
    turns = ("Ann: It is late .", "Bob: Is it ?", "Ann: Yes .")
    assert meetings[0] == inquiries.Inquiry(turns, "What did Ann think?", "That it is late.", "", (0, 2))  # spans end with the meeting
    assert meetings[1].gold == ()


def test_other_files_are_refused_by_name(tmp_path):
    for read in (inquiries.read_pubmedqa, inquiries.read_qmsum):
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / "none.json")
        for text in ("no json", '["a", "list"]', '{"1": {"QUESTION": "?"}}', "{}"):
            (tmp_path / "some.json").write_text(text)
            with pytest.raises(InputError, match=r"some\.json (is not in the format of|holds no question; give a file in the format of)"):
                read(tmp_path / "some.json")


def test_the_real_sets_are_read(data_dir):
    if not (data_dir / "qa").is_dir():
        pytest.skip("the data hold no folder qa")
    papers = inquiries.read_pubmedqa(data_dir / "qa" / "pubmedqa_labeled_700.json.gz")
    assert len(papers) == 700
    assert {paper.decision for paper in papers} == {"yes", "no", "maybe"}
    meetings = inquiries.read_qmsum(data_dir / "qa" / "qmsum_val.jsonl.gz")
    assert len({meeting.passages for meeting in meetings}) == 35
    assert sum(max(meeting.gold) < len(meeting.passages) for meeting in meetings) == len(meetings)


def test_a_chain_keeps_what_decides():
    chance = random.Random(0)
    asked = inquiries.Inquiry(tuple("abcde"), "?", "!", gold=(1, 3))
    others = [inquiries.Inquiry(("x", "y"), "?", "!"), inquiries.Inquiry(("z",), "?", "!"), inquiries.Inquiry(("toolong",), "?", "!")]
    seen = set()
    for room in range(1, 12):
        for _ in range(20):
            made = inquiries.chained(asked, others, room, len, chance)
            assert len(made.passages) <= room
            kept = [made.passages[at] for at in made.gold]
            assert kept == ["b", "d"] if room > 1 else kept in (["b"], ["d"])
            own = [text for text in made.passages if text in "abcde"]
            assert own == sorted(own)
            assert len(own) == min(room, 5)
            text = "".join(made.passages)
            assert ("xy" in text) == (room >= 7)
            assert ("z" in text) == (room >= 8)
            seen.add(text)
    assert {"xyabcdez", "zabcdexy", "zxyabcde", "abcdexyz"} <= seen


def test_a_made_study_has_one_town_of_that_name_and_its_story_decides():
    chance = random.Random(1)
    facts = ("Fred moved to the cinema.", "Mary is either in the school or the park.")
    stories = [babi.Question(facts, "Is Mary in the park?", "maybe", (1,)), babi.Question(facts[:1], "Is Fred in the park?", "no", (0,))]
    made = inquiries.parse_pubmedqa(inquiries.made_studies(stories, chance))
    assert [one.decision for one in made] == ["maybe", "no"]
    assert [one.answer for one in made] == ["Mary is either in the school or the park.", "Fred moved to the cinema."]
    towns = [re.match(r"In (\w+)\. ", one.question)[1] for one in made]
    assert len(set(towns)) == 2
    for town, one in zip(towns, made, strict=True):
        assert one.passages[0].startswith(f"In {town}. Fred moved")


def test_a_made_meeting_says_once_what_is_asked():
    chance = random.Random(2)
    for n_said, n_turns in ((1, 1), (5, 12), (36, 40)):
        for asked in inquiries.parse_qmsum(inquiries.made_meeting(n_said, n_turns, ["Call me Ishmael.", "It was cold."], chance)):
            speaker, thing = re.fullmatch(r"What did the (\w+) say about the (\w+)\?", asked.question).groups()
            saying = [turn for turn in asked.passages if turn.startswith(f"{speaker}: The {thing} ")]
            assert saying == [f"{speaker}: {asked.answer}"]
            assert asked.passages[asked.gold[0]] == saying[0]
            assert len(asked.passages) == n_turns
            assert sum("The " in turn for turn in asked.passages) == n_said
