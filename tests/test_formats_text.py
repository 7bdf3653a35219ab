"""Formats whose values are plain text: Qwen3-Coder's XML, fenced blocks of code, and boxes."""

import pytest
from format_laws import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.actions import BOXED, FENCED, QWEN_CODER
from turnwise.envs.schema import BadArgs
from turnwise.envs.signatures import make_tool


def xml(name, **texts):
    body = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def read(text, format=QWEN_CODER):
    return [
        (call.name, call.texts if call.error is None else call.code)
        for call in format.parse(text).calls
    ]


class Desk:
    def use(
        self, text: str, count: int, share: float, loud: bool, names: list[str], at: int | None
    ):
        """Use it."""


USE = make_tool(Desk.use)


def test_qwen_values_are_typed_by_the_schema_of_the_tool():
    texts = {
        "text": "3",
        "count": "3",
        "share": "3",
        "loud": "True",
        "names": '["3"]',
        "at": "null",
    }
    (call,) = QWEN_CODER.parse(xml("use", **texts)).calls
    args = {"text": "3", "count": 3, "share": 3.0, "loud": True, "names": ["3"], "at": None}
    assert USE.bind(call) == args and type(USE.bind(call)["share"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "three"}, 'count must be int, got "three"'),
        ({"loud": "yes"}, 'loud must be bool, got "yes"'),
        ({"names": "a, b"}, "names must be list"),
        ({"cuont": "3"}, "use has no parameter 'cuont'; did you mean 'count'"),
    ],
)
def test_a_qwen_value_of_the_wrong_type_names_the_parameter(change, message):
    texts = {"text": "", "count": "1", "share": "1", "loud": "true", "names": "[]", "at": "1"}
    (call,) = QWEN_CODER.parse(xml("use", **texts | change)).calls
    with pytest.raises(BadArgs, match=message):
        USE.bind(call)


@pytest.mark.parametrize(
    "value",
    [
        *("", "\n", "\n\n", " a\n", "\na", "a < b && c > d", "<b>&lt;</b>", "</parameter>"),
        *("</parameter> text", "</function>", "</tool_call>", "<tool_call>", "<function=g>"),
        *(
            "<parameter=b>",
            "<parameter=b>\n1\n",
            "</think>",
            '{"name": "g"}',
            "</function>x</tool_call>",
        ),
    ],
)
def test_a_qwen_value_may_hold_line_breaks_and_what_looks_like_tags(value):
    text = QWEN_CODER.render("write", {"text": value, "n": 1})
    assert text == xml("write", text=value, n="1")
    assert read(text) == [("write", {"text": value, "n": "1"})]


@pytest.mark.parametrize(
    "value",
    [
        *(
            "</parameter></function>",
            "a\n</parameter>\n<parameter=b>\nc",
            "</function></tool_call>",
        ),
        xml("g", a="1"),
    ],
)
def test_a_qwen_value_that_would_be_cut_short_is_not_written(value):
    with pytest.raises(ValueError, match=r"no way to write this call of 'write'.*use a JSON"):
        QWEN_CODER.render("write", {"text": value})


def test_qwen_calls_may_do_without_the_line_breaks():
    text = "Now: <tool_call> <function=f><parameter=a>1</parameter> </function></tool_call> ok"
    assert read(text) == [("f", {"a": "1"})]
    assert read("<tool_call><function=f></function></tool_call>") == [("f", {})]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<function=f>\n</function>", "line 1 col 1: expected <tool_call> before <function=...>"),
        ("<tool_call>\n<function=>", "line 2 col 1: expected <function=NAME>"),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', "line 2 col 1: expected <function=NAME>"),
        ("<tool_call><function=f>1</function></tool_call>", "line 1 col 24: expected <parameter="),
        (xml("f", a="1").replace("</parameter>", ""), "the parameter is not closed"),
        (xml("f", a="1").replace("</function>", ""), "the parameter is not closed"),
        (xml("f", a="1").replace("</tool_call>", ""), "line 6 col 1: expected <parameter="),
        (
            xml("f", a="1").replace("\n</function>", "<parameter=a>\n2\n</parameter></function>"),
            "dup",
        ),
    ],
)
def test_xml_that_is_not_exactly_a_call_is_refused_with_its_place(text, error):
    found = refused("qwen_coder", text)
    assert found.startswith("bad_command line ") and error in found


@pytest.mark.parametrize(
    "bad",
    ["<tool_call><function=f><parameter=a>x</function></tool_call>", "<tool_call></tool_call>"],
)
def test_a_malformed_qwen_call_does_not_take_the_next_one_with_it(bad):
    assert read(bad + xml("g", b="1")) == [("", "bad_command"), ("g", {"b": "1"})]


def words(format, text):
    (call,) = format.parse(text).calls
    assert call.error is None, call.error
    return call.name, call.words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\nprint(1)\n```", ("python", ("print(1)",))),
        ("I run it:\n```bash\nls\n\n```\nand see.", ("bash", ("ls\n",))),
        ("```submit\n```", ("submit", ())),
        ("```python\n\n```", ("python", ("",))),
        ("``` python \r\nx\n``` ", ("python", ("x",))),
        ("````python\n```\na\n```\n````", ("python", ("```\na\n```",))),
        ("```python\n  ```\nx ```\n```", ("python", ("  ```\nx ```",))),
        ("```python\nx\n`````", ("python", ("x",))),
        ("<think>```a\nb\n```</think>```python\nx\n```", ("python", ("x",))),
    ],
)
def test_one_fenced_block_is_the_argument_of_the_tool_that_its_language_names(text, expected):
    assert words(FENCED, text) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nx\n```\n```bash\ny\n```", "line 4 col 1: one block per turn; nothing was run"),
        ("```python\nx\n```\nthen ``` and", "line 4 col 6: one block per turn"),
        ("```\nx\n```", "line 1 col 1: a fence stands alone on its line, with the tool's name"),
        ("```python x\ny\n```", "line 1 col 1: a fence stands alone"),
        ("```print(1)```", "line 1 col 1: a fence stands alone"),
        ("a\n  ```python\nx\n```", "line 2 col 3: a fence stands alone"),
        ("```python\nx\n", "line 3 col 1: the block is not closed by a line of ```"),
        ("````python\nx\n```", "the block is not closed by a line of ````"),
    ],
)
def test_what_is_not_exactly_one_block_is_refused_and_nothing_is_run(text, error):
    found = refused("fenced", text)
    assert found.startswith("bad_command line ") and error in found


@given(st.text(st.sampled_from("`ab \n")))
@settings(deadline=None)
def test_a_block_may_hold_any_fences(value):
    assert words(FENCED, FENCED.render("python", {"code": value})) == ("python", (value,))


def test_a_block_holds_one_argument():
    with pytest.raises(ValueError, match="a block holds one argument"):
        FENCED.render("python", {"code": "x", "seconds": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("So it is \\boxed{42}.", "42"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("$$\\boxed{\n a\\\\b \n}$$", "\n a\\\\b \n"),
        ("\\boxed{}", ""),
        ("\\boxed{1</think>\\boxed{2}", "2"),
        ("\\boxed{1}</think>\\boxed{2}", "2"),
        ("\\boxed{1 \\boxed{2}", "2"),
    ],
)
def test_the_last_box_is_the_answer_and_its_braces_are_balanced(text, value):
    assert words(BOXED, text) == ("submit", (value,))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("it is 42", "no_call line 1 col 9: expected \\boxed{...}"),
        ("\\boxedfoo{1}", "no_call"),
        ("\\boxed{1}</think> so 1", "no_call"),
        ("\\boxed{1} \\boxed{2", "bad_command line 1 col 19: the box is not closed"),
        ("\\boxed 3", "bad_command line 1 col 8: expected \\boxed{...}"),
        ("\\boxed{\\}", "bad_command line 1 col 10: the box is not closed"),
    ],
)
def test_what_is_no_box_is_refused_with_its_place(text, error):
    assert refused("boxed", text).startswith(error)


@pytest.mark.parametrize("value", ["{", "}{", "a}", "\\", "\\boxed{1}"])
def test_what_a_box_cannot_hold_is_not_written(value):
    with pytest.raises(ValueError, match="a box cannot hold"):
        BOXED.render("submit", {"answer": value})
