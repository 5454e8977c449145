"""What is true of every flavour."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spanloop_trainer.transform.flavours import FACTS, Flag, Flavour, flavours

PAGE = (Path(__file__).parents[3] / "docs" / "flavours.md").read_text(encoding="utf-8")
each_flavour = pytest.mark.parametrize("flavour", flavours(), ids=lambda flavour: flavour.name)


@each_flavour
def test_a_call_is_found_by_attributes_and_never_by_a_name(flavour: Flavour) -> None:
    assert "SpanName" not in flavour.recognise + flavour.select_list() + flavour.prepared + flavour.joined


@each_flavour
def test_facts_are_known_ones(flavour: Flavour) -> None:
    assert set(flavour.facts) <= set(FACTS)


@each_flavour
def test_the_page_has_it(flavour: Flavour) -> None:
    assert f"| `{flavour.name}` |" in PAGE


def test_the_page_has_every_flag() -> None:
    rows = re.findall(
        r"^\| (`[a-z_`, ]+`) \|", PAGE.partition("## Flags")[2].partition("## ")[0], re.MULTILINE
    )
    described = {name.strip("` ") for row in rows for name in row.split(",")}
    assert described == {str(flag.name).lower() for flag in Flag}
