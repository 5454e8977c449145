"""Templates: written and read back without loss, and rendered with what was matched they give the text again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloop_store.templates import Template

# Few letters, so that places, braces, backslashes and repeated fixed text meet often.
TEXT = (
    st.text(alphabet="{}\\ ab_\n", max_size=20)
    | st.text(max_size=10)
    | st.sampled_from(["{{a}}", "\\{{ b }}", "{{{a}}"])
)
PIECES = st.lists(TEXT, max_size=4).map("".join)
NAMES = st.sampled_from(["a", "b", "variable_1", "_x9"])


@st.composite
def templates(draw: st.DrawFn, *, unique: bool = False) -> Template:
    names = tuple(draw(st.lists(NAMES, max_size=4, unique=unique)))
    return Template(tuple(draw(PIECES) for _ in range(len(names) + 1)), names)


@given(templates())
def test_what_is_written_is_read_back(template: Template) -> None:
    assert Template.parse(template.content) == template


@given(PIECES)
def test_every_text_is_a_template_that_writes_the_same_places(content: str) -> None:
    template = Template.parse(content)
    assert Template.parse(template.content) == template


@given(PIECES)
def test_a_literal_text_has_no_places(text: str) -> None:
    again = Template.parse(Template.literal(text).content)
    assert again.names == ()
    assert again.match(text) == {}


@given(templates(), PIECES)
def test_rendering_what_matched_gives_the_text(template: Template, text: str) -> None:
    values = template.match(text)
    if values is not None:
        assert template.render(values) == text


@given(templates(unique=True), st.data())
def test_a_text_made_from_a_template_always_matches_it(template: Template, data: st.DataObject) -> None:
    text = template.render({name: data.draw(PIECES) for name in template.names})
    values = template.match(text)
    assert values is not None
    assert template.render(values) == text


@pytest.mark.parametrize(
    ("content", "text", "values"),
    [
        ("Hi {{name}}!", "Hi Anna!", {"name": "Anna"}),
        ("Hi {{ name }}!", "Hi Anna!", {"name": "Anna"}),
        ("Hi {{name}}!", "Hi !", {"name": ""}),
        ("Hi {{name}}!", "Ho Anna!", None),
        ("aXa{{v}}aXa", "aXa", None),
        ("{{v}} and {{v}}", "one and one", {"v": "one"}),
        ("{{v}} and {{v}}", "one and two", None),
        ("as \\{{is}}", "as {{is}}", {}),
        ("{{not a name}} {{x", "{{not a name}} {{x", {}),
    ],
)
def test_matches(content: str, text: str, values: dict[str, str] | None) -> None:
    assert Template.parse(content).match(text) == values


def test_what_is_missing_is_named() -> None:
    template = Template.parse("{{b}} {{a}} {{c}}")
    assert template.missing({"c": ""}) == ["a", "b"]
    with pytest.raises(KeyError):
        template.render({"b": ""})
