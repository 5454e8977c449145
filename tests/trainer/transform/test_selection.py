"""Filters over frames: words, duplicates, evaluations, conditions, caps; what stays, what is counted, what is said."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloop_trainer.config import Config, load_config
from spanloop_trainer.config.filters import Filters, Keep
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.selection.duplicates import PLACES, contents, near_copies, signatures
from spanloop_trainer.transform.selection.evaluation import HIT, read_texts
from spanloop_trainer.transform.selection.screen import ANSWER, Screen, Screened
from spanloop_trainer.transform.selection.select import select_rows
from spanloop_trainer.transform.selection.words import episode_messages, grams

VOCABULARY = [f"word{number}" for number in range(400)]


def text(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def changed(original: str, seed: int, share: float) -> str:
    """`share` of the words replaced."""
    rng, words = random.Random(seed), original.split()
    for place in rng.sample(range(len(words)), round(share * len(words))):
        words[place] = f"other{rng.randrange(10**6)}"
    return " ".join(words)


def jaccard(one: str, other: str, size: int = 5) -> float:
    sets = [
        {tuple(words[place : place + size]) for place in range(len(words) - size + 1)}
        for words in (one.split(), other.split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def say(role: str, content: Any, **more: Any) -> str:
    return json.dumps({"role": role, "content": content, **more})


def bucket(episodes: Sequence[tuple[str, Sequence[str], str]]) -> pl.DataFrame:
    """One call an episode: its id, the prompt's messages, the answer."""
    return pl.DataFrame(
        {
            "episode_id": [name for name, _, _ in episodes],
            "step": [0] * len(episodes),
            "agent": ["a"] * len(episodes),
            "status": ["ok"] * len(episodes),
            "tools_json": [None] * len(episodes),
            "messages": [list(messages) for _, messages, _ in episodes],
            "chats": [[answer] for _, _, answer in episodes],
        },
        schema_overrides={"step": pl.Int32, "tools_json": pl.String},
    )


def gram_set(value: str, size: int) -> set[int]:
    return set(grams(pl.Series([value]), size).code.tolist())


def test_grams_know_no_case_and_no_punctuation_and_do_not_cross_texts() -> None:
    found = grams(pl.Series(["One, two; THREE!", "one two", "three four", None, "", "two"]), 3)
    assert found.text.tolist() == [0, 1, 2, 5]
    assert found.short.tolist() == [False, True, True, True]
    assert gram_set("one two three", 3) == {int(found.code[0])}
    assert len(set(found.code.tolist())) == 4
    # A sign of a script without spaces is a word.
    assert len(gram_set("三足す四はいくつですか", 3)) == 9
    assert grams(pl.Series([], dtype=pl.String), 3).code.size == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ｆｕｌｌ width", "full width"),
        ("ﬁne", "FINE"),
        ("e\u0301te\u0301", "été"),
        ("ｶﾞ", "ガ"),
        ("don't", "don’t"),
    ],
)
def test_a_word_that_is_written_in_two_ways_is_one(one: str, other: str) -> None:
    assert gram_set(one, 3) == gram_set(other, 3)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=8), min_size=1, max_size=6), st.integers(1, 5))
def test_a_texts_grams_do_not_depend_on_the_texts_around_it(texts: list[list[str]], size: int) -> None:
    joined = [" ".join(words) for words in texts]
    found = grams(pl.Series(joined), size)
    for number, words in enumerate(texts):
        mine = found.code[found.text == number]
        assert mine.tolist() == grams(pl.Series([joined[number]]), size).code.tolist()
        expected = {tuple(words[at : at + size]) for at in range(max(len(words) - size + 1, bool(words)))}
        assert len(set(mine.tolist())) == len(expected)


def test_ids_of_tool_calls_are_no_content_and_everything_else_is() -> None:
    def episode(name: str, call: str, argument: int, result: str = "5") -> tuple[str, list[str], str]:
        function = {"name": "add", "arguments": json.dumps({"a": argument})}
        asked = say("assistant", None, tool_calls=[{"id": call, "type": "function", "function": function}])
        return name, [say("user", "hi"), asked, say("tool", result, tool_call_id=call)], say("assistant", "5")

    frame = bucket(
        [episode("1", "c1", 2), episode("2", "c2", 2), episode("3", "c1", 3), episode("4", "c1", 2, "6")]
    )
    codes = contents(frame, episode_messages(frame)).sort("episode_id")["content"].to_list()
    assert codes[0] == codes[1]
    assert len(set(codes)) == 3


def test_what_is_no_word_is_content_all_the_same() -> None:
    """Pictures, ids that a tool gave as its result, a refusal: episodes that differ in these alone are two."""
    picture: list[dict[str, Any]] = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": ""}},
    ]
    prompts = []
    for code in ("QUJD", "REVG"):
        picture[1]["image_url"] = {"url": f"data:image/png;base64,{code}"}
        prompts.append(say("user", picture))
    found = [say("tool", f'[{{"id": "{number}", "name": "x"}}]', tool_call_id="1") for number in (7, 8)]
    answers = [say("assistant", "x", refusal=why) for why in ("a", "b")]
    kinds = [
        *((prompt, say("assistant", "a cat")) for prompt in prompts),
        *((tool, say("assistant", "5")) for tool in found),
        *((say("user", "hi"), answer) for answer in answers),
    ]
    frame = bucket([(str(n), [prompt], answer) for n, (prompt, answer) in enumerate(kinds)])
    messages = episode_messages(frame)
    assert contents(frame, messages)["content"].n_unique() == len(kinds)
    texts = messages.distinct.filter(pl.col("role") == "tool")["text"]
    assert [("7" in text, "8" in text) for text in texts.sort()] == [(True, False), (False, True)]


def test_words_of_parts_are_those_of_the_text() -> None:
    frame = bucket(
        [
            ("1", [say("user", "what is\n\tthis \"thing\"")], say("assistant", "x")),
            (
                "2",
                [say("user", [{"type": "text", "text": "what is\n\tthis \"thing\""},
                              {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD+/x=="}}])],
                say("assistant", "x"),
            ),
        ]
    )  # fmt: skip
    distinct = episode_messages(frame).distinct.filter(pl.col("role") == "user")
    plain, parts = (text.split() for text in distinct["text"].str.replace_all(r"\W+", " ").to_list())
    assert parts[: len(plain)] == plain
    assert "QUJD" not in parts


def test_similarity_is_estimated_within_its_deviation() -> None:
    originals = [text(seed) for seed in range(60)]
    copies = [changed(original, seed, seed / 300) for seed, original in enumerate(originals)]
    frame = bucket(
        [
            (f"{n:03d}", [say("user", one)], say("assistant", ""))
            for n, one in enumerate([*originals, *copies])
        ]
    )
    found = signatures(episode_messages(frame)).sort("episode_id")["signature"].to_numpy()
    estimated = (found[:60] == found[60:]).mean(axis=1)
    errors = estimated - np.array([jaccard(a, b) for a, b in zip(originals, copies, strict=True)])
    assert abs(errors.mean()) < 0.02
    assert errors.std() < 0.06
    # Unrelated texts share next to nothing, however short.
    short = bucket([(f"{n:03d}", [say("user", text(n, 4))], say("assistant", "")) for n in range(60)])
    values = signatures(episode_messages(short)).sort("episode_id")["signature"].to_numpy()
    assert (values[:30] == values[30:]).mean() < 0.02


def test_many_texts_are_taken_apart_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pl.Series([text(seed, seed % 9) for seed in range(50)])
    whole = grams(texts, 5)
    monkeypatch.setattr("spanloop_trainer.transform.selection.words._CHUNK_CHARACTERS", 100)
    for one, other in zip(grams(texts, 5), whole, strict=True):
        assert one.tolist() == other.tolist()


def test_the_same_messages_in_another_order_or_with_other_tools_are_no_duplicate() -> None:
    one, other = say("user", "one"), say("user", "other")
    frame = bucket([("1", [one, other], "x"), ("2", [other, one], "x"), ("3", [one, other], "x")])
    frame = frame.with_columns(pl.Series("tools_json", [None, None, "[]"]))
    assert contents(frame, episode_messages(frame))["content"].n_unique() == 3
    first = bucket([("1", [one], "x"), ("2", [other], "x")])
    second = bucket([("1", [other], "x"), ("2", [one], "x")]).with_columns(pl.lit(1, pl.Int32).alias("step"))
    frame = pl.concat([first, second])
    assert contents(frame, episode_messages(frame))["content"].n_unique() == 2


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_prompts_do_not_make_episodes_alike(role: str) -> None:
    system = say(role, text(1, 2000))
    frame = bucket(
        [(f"{n}", [system, say("user", text(n + 10, 40))], say("assistant", "ok")) for n in range(9)]
    )
    found = signatures(episode_messages(frame)).sort("episode_id")
    assert near_copies(found["signature"].to_numpy(), 0.5).is_empty()


def test_near_copies_keep_the_first_of_each_kind() -> None:
    families = [text(seed) for seed in range(8)]
    members = [(family, changed(families[family], 100 + n, 0.01)) for n in range(12) for family in range(8)]
    frame = bucket(
        [(f"{n:03d}", [say("user", one)], say("assistant", "")) for n, (_, one) in enumerate(members)]
    )
    found = signatures(episode_messages(frame)).sort("episode_id")["signature"].to_numpy()
    copies = near_copies(found, 0.7)
    assert copies["stays"].unique().sort().to_list() == list(range(8))
    assert copies.height == len(members) - 8
    assert all(members[episode][0] == members[stays][0] for episode, stays, _ in copies.iter_rows())


def test_copies_are_found_among_many_that_share_a_template() -> None:
    """1,000 tasks that have three quarters of their words in common, two runs of each: no two tasks are copies, all runs are."""
    rng = np.random.default_rng(1)
    template, own = (rng.integers(0, 2**32, (rows, PLACES), dtype=np.uint32) for rows in (1, 1000))
    tasks = np.where(rng.random(own.shape) < 0.75, template, own)
    runs = np.tile(tasks, (2, 1))
    noise = rng.random(runs.shape) < 0.02
    runs = np.where(noise, rng.integers(0, 2**32, runs.shape, dtype=np.uint32), runs)
    copies = near_copies(runs, 0.82)
    assert copies["episode"].to_list() == list(range(1000, 2000))
    assert copies["stays"].to_list() == list(range(1000))


def test_a_family_larger_than_a_band_is_read_is_one_family() -> None:
    """30 tasks of one template, 80 runs of each."""
    rng = np.random.default_rng(1)
    template, own = (rng.integers(0, 2**32, (rows, PLACES), dtype=np.uint32) for rows in (1, 30))
    runs = np.tile(np.where(rng.random(own.shape) < 0.7, template, own), (80, 1))
    runs[:, :8] = rng.integers(0, 2**32, (len(runs), 8), dtype=np.uint32)
    assert near_copies(runs, 0.85)["stays"].to_list() == [episode % 30 for episode in range(30, len(runs))]
    runs[:] = runs[0]
    assert near_copies(runs, 1.0)["stays"].to_list() == [0] * (len(runs) - 1)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 1.0]))
def test_whatever_goes_has_a_copy_that_stays_and_what_stays_has_none(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2**32, (5, PLACES), dtype=np.uint32)
    values = kinds[rng.integers(0, 5, 30)]
    noise = rng.random(values.shape) < rng.choice([0.0, 0.1, 0.3], (30, 1))
    values = np.where(noise, rng.integers(0, 2**32, values.shape, dtype=np.uint32), values)
    copies = near_copies(values, threshold)
    gone = set(copies["episode"])
    for episode, stays, similarity in copies.iter_rows():
        assert stays < episode
        assert stays not in gone
        assert similarity == (values[episode] == values[stays]).mean() >= threshold
    stay = [n for n in range(30) if n not in gone]
    # Bands find what is well above the threshold.
    alike = [
        (a, b)
        for a in stay
        for b in stay
        if a < b and (values[a] == values[b]).mean() > min(1, threshold + 0.1)
    ]
    assert alike == []


def evaluation(folder: Path, content: str, *, name: str = "eval.jsonl", words: int = 6) -> Config:
    (folder / name).write_text(content)
    (folder / "spanloop.toml").write_text(
        f'[filters]\ndecontaminate_words = {words}\n[[filters.decontaminate]]\nfile = "{name}"\ncolumn = "question"\n'
    )
    return load_config(folder / "spanloop.toml")


LONG = "How many roads must a man walk down before you call him a man?"


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_evaluations_words_are_found_wherever_they_were_said(tmp_path: Path, suffix: str) -> None:
    content = (
        "".join(json.dumps({"question": one}) + "\n" for one in ("Who?", LONG))
        if suffix == "jsonl"
        else f'question\nWho?\n"{LONG}"\n'
    )
    texts = read_texts(evaluation(tmp_path, content, name=f"eval.{suffix}"))
    said = "I read: how many roads must -- A MAN walk down"
    frame = bucket(
        [
            ("asked", [say("user", said)], say("assistant", "x")),
            ("answered", [say("user", "hm")], say("assistant", said)),
            ("tool", [say("user", "hm"), say("tool", said, tool_call_id="1")], say("assistant", "x")),
            ("five words", [say("user", "how many roads must a cat")], say("assistant", "x")),
            ("short", [say("user", " who ")], say("assistant", "x")),
            ("short elsewhere", [say("user", "who is it"), say("tool", "who")], say("assistant", "who")),
        ]
    )
    hits = texts.hits(episode_messages(frame))
    assert hits["episode_id"].to_list() == ["answered", "asked", "short", "tool"]
    examples = {hit["episode_id"]: texts.example(hit) for hit in hits.iter_rows(named=True)}
    assert examples["asked"]["words"] == "how many roads must a man"
    assert (examples["asked"]["file"], examples["asked"]["line"]) == (f"eval.{suffix}", 2)
    assert (examples["short"]["words"], examples["short"]["line"]) == ("who", 1)
    assert examples["asked"]["grams"] == 3


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ('\ufeff{"question": "One two"}\n\n{"question": null}\n{"question": 3}', "e.jsonl", [["one", "two"], [], ["3"]]),
        ("\ufeffid,question\n1,007\n2,1.50\n", "E.CSV", [["007"], ["1", "50"]]),
        (
            json.dumps({"question": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Who"},
                                     {"role": "user", "content": "Why"}]}),
            "e.jsonl", [["who"], ["why"]],
        ),
        (json.dumps({"question": [{"role": "user", "content": [{"type": "text", "text": "Who"}]}]}), "e.jsonl", [["who"]]),
        ('{"question": ["one", "two"]}', "e.jsonl", [["one"], ["two"]]),
    ],
    ids=["lines", "numbers", "messages", "parts", "list"],
)  # fmt: skip
def test_evaluations_as_people_have_them(
    tmp_path: Path, content: str, name: str, words: list[list[str]]
) -> None:
    """Numbers as they are written; of messages the user's, since a system prompt may be that of every episode."""
    assert read_texts(evaluation(tmp_path, content, name=name)).texts["words"].to_list() == words


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        ('{"question": null}\n', "e.jsonl", "column 'question' has no text"),
        ("question\n", "e.csv", "column 'question' has no text"),
        ('{"question": {"a": 1}}\n', "e.jsonl", "fields a and no content"),
        ('{"text": "x"}\n', "e.jsonl", "has no column 'question'; it has 'text'"),
        ("{", "e.jsonl", "cannot be read"),
        ("x", "e.txt", r"neither .jsonl nor .csv nor .parquet"),
        ("x", "e.parquet", "cannot be read"),
    ],
    ids=["nothing", "no rows", "no content", "no column", "no JSON", "another format", "no Parquet"],
)
def test_a_wrong_evaluation_file_is_named(tmp_path: Path, content: str, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluation file {name}.*{why}"):
        read_texts(evaluation(tmp_path, content, name=name))


def test_an_evaluation_file_is_part_of_the_configurations_hash(tmp_path: Path) -> None:
    one = evaluation(tmp_path, '{"question": "a"}\n').content_hash()
    assert evaluation(tmp_path, '{"question": "b"}\n').content_hash() != one
    (tmp_path / "eval.jsonl").unlink()
    with pytest.raises(ConfigError, match="evaluation file"):
        load_config(tmp_path / "spanloop.toml").content_hash()


def settled(
    runs: dict[str, tuple[float | None, list[float | None]]], **filters: Any
) -> tuple[set[str], dict[str, int]]:
    """Episodes of one task that say the same, as (reward, rewards of its calls), later ones first: which stay, and what is lost."""
    rows = pl.DataFrame(
        [
            {"episode_id": name, "task_id": "t", "split": "train", "start": -place, "row": 10 * place + step,
             "reward_episode": reward, "reward_call": of_call}
            for place, (name, (reward, of_calls)) in enumerate(runs.items())
            for step, of_call in enumerate(of_calls)
        ],
        schema_overrides={"reward_episode": pl.Float64, "reward_call": pl.Float64, "row": pl.UInt32},
    )  # fmt: skip
    calls = rows.select("row", pl.lit("t").alias("trace_id"), pl.lit("s").alias("span_id"))
    alike = rows.select("episode_id", pl.lit(0, pl.UInt64).alias("content")).unique()
    screened = Screened(alike, pl.DataFrame(schema=HIT), pl.DataFrame(schema=ANSWER))
    funnel = Funnel()
    kept = select_rows(
        rows.sample(fraction=1, shuffle=True, seed=1),
        calls,
        screened,
        Screen(Filters(**filters), None),
        funnel,
    )
    return set(kept["episode_id"]), dict(funnel.lost)


def test_the_reward_of_an_episode_is_its_return() -> None:
    """However many steps it has: .5 for one of three answers is half a reward, and not a sixth."""
    episodes: dict[str, Any] = {
        "liked once": (1.0, [None, 0.5, None]),
        "disliked once": (1.0, [None, None, -0.5]),
        "calls alone": (None, [0.75, 0.5, None]),
        "whole": (1.0, [None]),
        "unscored": (None, [None, None]),
    }
    order = ["liked once", "calls alone", "whole", "disliked once", "unscored"]
    for most in range(1, 6):
        stay, lost = settled(episodes, episodes_per_task=most)
        assert stay == set(order[:most])
        assert sum(lost.values()) == sum(len(episodes[name][1]) for name in order[most:])
    condition = Keep(
        name="f",
        expression="reward = 0.5 AND task_reward_max = 1.5 AND task_reward_min = 0.5 AND task_episodes = 5",
    )
    assert settled(episodes, episodes=(condition,))[0] == {"disliked once"}


def test_of_episodes_that_say_the_same_the_earliest_stays() -> None:
    stay, lost = settled({name: (1.0, [None]) for name in "abc"}, exact_duplicates=True)
    assert stay == {"c"}
    assert lost == {"exact duplicate of an earlier episode": 2}
    # Of those that a condition left.
    alive = Keep(name="f", expression="reward < 1")
    rewards: dict[str, Any] = {"a": (0.0, [None]), "b": (0.5, [None]), "c": (1.0, [None])}
    assert settled(rewards, exact_duplicates=True, episodes=(alive,))[0] == {"b"}


def test_of_equally_rewarded_episodes_the_newest_stay() -> None:
    episodes: dict[str, Any] = {name: (1.0, [None]) for name in "edcba"}
    assert settled(episodes, episodes_per_task=2)[0] == {"e", "d"}
    unscored: dict[str, Any] = {name: (None, [None]) for name in "edcba"}
    assert settled({**unscored, "last": (-1.0, [None])}, episodes_per_task=2)[0] == {"last", "e"}
