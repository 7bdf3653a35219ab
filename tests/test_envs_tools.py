"""Laws of tools: the schema says what is accepted, and every refusal names the parameter."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.actions import FORMATS
from turnwise.envs.schema import BadArgs, kind_of
from turnwise.envs.signatures import ToolSchemaError, make_tool
from turnwise.envs.tools import parts_of, reward, tool


class Kit:
    @tool
    def use(
        self,
        text: str,
        count: int,
        share: float,
        loud: bool,
        mode: Literal["slow", "fast"],
        names: list[str],
        table: dict[str, int],
        where: str | None = None,
        extra: Any = None,
    ) -> str:
        """Use everything.

        It has a second paragraph.

        Args:
            text: Any text,
                over two lines.
            count: How many.

        Returns:
            Nothing of interest.
        """
        return text


USE = parts_of(Kit).tools["use"]
TEXT = st.text(max_size=8)
ARGS = st.fixed_dictionaries(
    {
        "text": TEXT,
        "count": st.integers(-(10**6), 10**6),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "loud": st.booleans(),
        "mode": st.sampled_from(["slow", "fast"]),
        "names": st.lists(TEXT, max_size=3),
        "table": st.dictionaries(TEXT, st.integers(0, 9), max_size=3),
        "where": st.none() | TEXT.filter(lambda text: text != "null"),
    },
)


def test_the_schema_follows_from_the_signature_and_the_docstring():
    schema = USE.schema()
    function = schema["function"]
    properties = function["parameters"]["properties"]
    assert schema["type"] == "function" and function["name"] == "use"
    assert function["description"] == "Use everything.\n\nIt has a second paragraph."
    assert properties["text"] == {"type": "string", "description": "Any text, over two lines."}
    assert properties["mode"] == {"type": "string", "enum": ["slow", "fast"]}
    assert properties["names"] == {"type": "array", "items": {"type": "string"}}
    assert properties["where"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert function["parameters"]["required"] == [*properties][:7]
    assert USE.signature.startswith("use(text: str, count: int, ")


def test_a_schema_is_a_new_object_each_time():
    before = json.dumps(USE.schema())
    properties = USE.schema()["function"]["parameters"]["properties"]
    properties["names"]["items"].clear()
    properties["mode"]["enum"].clear()
    properties.clear()
    assert json.dumps(USE.schema()) == before


FOR_ANY_TOOL = [format for format in FORMATS.values() if format.fit is None]


@pytest.mark.parametrize("format", FOR_ANY_TOOL, ids=lambda format: format.name)
@given(args=ARGS)
def test_arguments_reach_the_tool_as_they_were_written(format, args):
    args = {p.name: args[p.name] for p in USE.parameters if p.name in args}
    (call,) = format.parse(format.render("use", args)).calls
    assert USE.bind(call) == args


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [
        (str, 1),
        (int, "3"),
        (int, 3.0),
        (int, True),
        (float, "1.5"),
        (float, False),
        (float, 10**400),
        (bool, 1),
        (Literal["a", "b"], "c"),
        (list[int], [1, "2"]),
        (list[int], {"0": 1}),
        (dict[str, int], {"a": None}),
        (str | None, 4),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_parameter_in_the_message(annotation, wrong):
    with pytest.raises(BadArgs, match=r"^here"):
        kind_of(annotation).check("here", wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, 'count must be int, got "3"'),
        ({"names": ["a", 2]}, r"names\[1\] must be str, got 2"),
        ({"mode": "fas"}, "mode must be one of slow, fast, got \"fas\" .*did you mean 'fast'"),
        ({"cuont": 3}, "use has no parameter 'cuont'; did you mean 'count'"),
    ],
)
def test_bad_arguments_name_the_parameter_and_the_way_out(change, message):
    args = {"text": "", "count": 1, "share": 1.0, "loud": True, "mode": "slow"}
    args |= {"names": [], "table": {}} | change
    (call,) = FORMATS["hermes"].parse(FORMATS["hermes"].render("use", args)).calls
    with pytest.raises(BadArgs, match=message):
        USE.bind(call)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("use hi", r"use needs count \(int\)"),
        ("use hi three", 'count must be int, got "three"'),
        ("use " + "x " * 10, "takes 9 argument.*got 10; quote a value that contains spaces"),
    ],
)
def test_a_bad_command_line_names_the_parameter(line, message):
    (call,) = FORMATS["command"].parse(line).calls
    with pytest.raises(BadArgs, match=message):
        USE.bind(call)


def untyped(self, path):
    """Show."""


def starred(self, *paths: str):
    """Show."""


def undocumented(self, path: str):
    pass


def yielding(self, path: str):
    """Show."""
    yield path


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (untyped, "untyped: parameter 'path' has no type; write for example `path: str`"),
        (starred, "starred: .*paths.* has no schema"),
        (undocumented, "undocumented needs a docstring"),
        (yielding, "yielding: .*return, not yield"),
    ],
)
def test_a_method_that_cannot_be_a_tool_is_refused_where_it_is_decorated(method, message):
    with pytest.raises(ToolSchemaError, match=message):
        tool(method)


def binary(self, data: bytes):
    """Write."""


def nowhere(self, path: Nowhere):  # noqa: F821
    """Write."""


def misdocumented(self, path: str):
    """Write.

    Args:
        pth: Where.
    """


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (binary, "binary: parameter 'data': .*cannot be a tool parameter; use str, int"),
        (nowhere, "nowhere: a type cannot be resolved"),
        (misdocumented, "misdocumented: Args documents 'pth', which is no parameter"),
    ],
)
def test_a_parameter_that_json_cannot_hold_is_refused_by_name(method, message):
    with pytest.raises(ToolSchemaError, match=message):
        make_tool(method)


def test_tools_are_inherited_replaced_and_taken_away():
    class Louder(Kit):
        @tool
        def shout(self, text: str) -> str:
            """Shout."""
            return text.upper()

        use = None

    assert list(parts_of(Louder).tools) == ["shout"]
    assert list(parts_of(Kit).tools) == ["use"]


def test_hiding_a_tool_by_an_undecorated_method_is_refused():
    class Forgetful(Kit):
        def use(self, text: str) -> str:
            return text

    with pytest.raises(ToolSchemaError, match="hides the tool of that name: decorate it too"):
        parts_of(Forgetful)


def test_parts_are_in_the_order_of_definition():
    class Graded(Kit):
        @reward(weight=0.5, turn=True)
        def step(self, episode) -> float:
            return 0.0

        @reward()
        def end(self, episode) -> float:
            return 0.0

    parts = parts_of(Graded)
    assert [g.name for g in parts.turn_rewards] == ["step"]
    assert [(g.name, g.weight) for g in parts.end_rewards] == [("end", 1.0)]
    assert json.dumps([t.schema() for t in parts.tools.values()])
