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
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.selection.duplicates import PLACES, contents, near_copies, signatures
from spanloop_trainer.transform.selection.evaluation import read_texts
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


def test_system_prompts_do_not_make_episodes_alike() -> None:
    system = say("system", text(1, 2000))
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
    ("content", "name", "why"),
    [
        ('{"text": "x"}\n', "e.jsonl", "has no column 'question'; it has 'text'"),
        ("{", "e.jsonl", "cannot be read"),
        ("x", "e.txt", r"neither .jsonl nor .csv nor .parquet"),
        ("x", "e.parquet", "cannot be read"),
    ],
    ids=["no column", "no JSON", "another format", "no Parquet"],
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
