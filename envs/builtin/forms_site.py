"""The wizard of Forms: runs in the sandbox."""

from __future__ import annotations

import re

from turnwise.envs.web.kit import Answer, Request, escape, not_found, page, redirect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

STYLE = "/forms.css"
FORMATS = {
    "phone": (r"\d{7}", "seven digits"),
    "postcode": (r"[A-Z]{2}\d{3}", "two capital letters and three digits"),
    "date": (r"\d{4}-\d\d-\d\d", "a date as YYYY-MM-DD"),
}


def respond(request: Request) -> Answer:
    """Answer one request."""
    request.db.setdefault("draft", {})
    request.db.setdefault("submitted", [])
    top, _, rest = request.path.strip("/").partition("/")
    number = int(rest) if rest.isascii() and rest.isdigit() and len(rest) < 4 else 0
    if top == "":
        return start(request)
    if top == "page" and 1 <= number <= len(request.data["sheets"]):
        return fill(request, number) if request.method == "GET" else keep(request, number)
    if top == "review":
        return review(request) if request.method == "GET" else submit(request)
    return receipt(request) if top == "receipt" else not_found()


def start(request: Request) -> Answer:
    """Where the form begins."""
    go = '<p class="actions"><a class="button" href="/page/1">Start</a></p>'
    body = f"<h1>Application</h1><p>Please have your details at hand.</p>{go}"
    return page("Start", body, style=STYLE)


def shown(request: Request) -> list[int]:
    """The numbers of the sheets that the answers so far lead to."""
    answers = {k: v for sheet in request.db["draft"].values() for k, v in sheet.items()}
    return [
        number
        for number, sheet in enumerate(request.data["sheets"], 1)
        if sheet["when"] is None or answers.get(sheet["when"][0]) == sheet["when"][1]
    ]


def fill(request: Request, number: int) -> Answer:
    """A sheet, with the answers that were given before."""
    if number not in shown(request):
        return redirect("/review")
    return _sheet(request, number, request.db["draft"].get(str(number), {}), [])


def keep(request: Request, number: int) -> Answer:
    """Keep a sheet's answers and go on, or say what is wrong with them."""
    sheet = request.data["sheets"][number - 1]
    answers = {field["key"]: _answer(field, request) for field in sheet["fields"]}
    checked = ((field, _problem(field, answers, request)) for field in sheet["fields"])
    problems = [f"{field['label']}: {why}" for field, why in checked if why]
    if problems:
        return _sheet(request, number, answers, problems)
    request.db["draft"][str(number)] = answers
    return redirect(_next(request, number))


def _next(request: Request, number: int) -> str:
    later = [n for n in shown(request) if n > number]
    return f"/page/{later[0]}" if later else "/review"


def _answer(field: Mapping[str, Any], request: Request) -> str:
    given = request.form.get(field["key"], "")
    if field["kind"] == "checkbox":
        return "yes" if given else "no"
    given = given.strip()
    if request.data["strict"]:
        return given
    if field["of"] in ("phone", "postcode"):
        return given.replace(" ", "").upper()
    return given


def _problem(field: Mapping[str, Any], answers: Mapping[str, str], request: Request) -> str:
    given = answers[field["key"]]
    if field["kind"] == "checkbox" or (field["optional"] and not given):
        return ""
    if not given:
        return "is missing."
    if field["options"]:
        return "" if given in field["options"] else "is not one of the options."
    if field["kind"] == "number":
        low, high = map(int, field["of"].split("-"))
        whole = given.isascii() and given.isdigit() and len(given) < 9
        return "" if whole and low <= int(given) <= high else f"must be {low} to {high}."
    if request.data["strict"] and field["of"] in FORMATS:
        pattern, wanted = FORMATS[field["of"]]
        return "" if re.fullmatch(pattern, given, re.A) else f"must be {wanted}."
    return ""


def review(request: Request) -> Answer:
    """All answers before they are submitted."""
    if (missing := _missing(request)) is not None:
        return redirect(f"/page/{missing}")
    parts = "".join(_reviewed(request, number) for number in shown(request))
    button = '<form method="post"><p class="actions"><button>Submit</button></p></form>'
    return page("Review", f"<h1>Review</h1>{parts}{button}", style=STYLE)


def _missing(request: Request) -> int | None:
    """The first sheet that was not filled in."""
    return next((n for n in shown(request) if str(n) not in request.db["draft"]), None)


def _reviewed(request: Request, number: int) -> str:
    sheet, answers = request.data["sheets"][number - 1], request.db["draft"][str(number)]
    rows = "".join(
        f"<div><dt>{escape(field['label'])}</dt> "
        f"<dd>{escape(answers[field['key']] or '-')}</dd></div>"
        for field in sheet["fields"]
    )
    title = escape(sheet["title"])
    edit = f'<a href="/page/{number}">Edit {title}</a>'
    return f'<section class="sheet"><h2>{title}</h2><dl>{rows}</dl>{edit}</section>'


def submit(request: Request) -> Answer:
    """Store the answers of the sheets that are shown."""
    if (missing := _missing(request)) is not None:
        return redirect(f"/page/{missing}")
    answers: dict[str, str] = {}
    for number in shown(request):
        answers |= request.db["draft"][str(number)]
    request.db["submitted"].append(answers)
    return redirect("/receipt")


def receipt(request: Request) -> Answer:
    """What was received."""
    if not request.db["submitted"]:
        return redirect("/")
    thanks = '<div class="thanks"><h1>Received</h1><p>Thank you.</p></div>'
    return page("Received", thanks, style=STYLE)


def _sheet(
    request: Request, number: int, answers: Mapping[str, str], problems: Iterable[str]
) -> Answer:
    sheet, numbers = request.data["sheets"][number - 1], shown(request)
    place = numbers.index(number) + 1 if number in numbers else number
    alerts = "".join(f'<p role="alert">{escape(problem)}</p>' for problem in problems)
    fields = "".join(_field(field, answers.get(field["key"], "")) for field in sheet["fields"])
    before = [n for n in numbers if n < number]
    back = f'<a href="/page/{before[-1]}">Previous</a> ' if before else ""
    body = (
        f'<p class="progress">Step {place} of {len(numbers)}</p><h1>{escape(sheet["title"])}</h1>'
        f'{alerts}<form class="wizard" method="post" action="/page/{number}">{fields}'
        f'<p class="actions">{back}<button>Continue</button></p></form>'
    )
    return page(sheet["title"], body, status=422 if problems else 200, style=STYLE)


def _field(field: Mapping[str, Any], value: str) -> str:
    key, kind = field["key"], field["kind"]
    label = escape(field["label"]) + (" (optional)" if field["optional"] else "")
    if kind == "checkbox":
        on = " checked" if value == "yes" else ""
        tick = f'<input type="checkbox" name="{key}"{on}>'
        return f'<p class="field"><label>{tick} {label}</label></p>'
    if kind == "radio":
        return f"<fieldset><legend>{label}</legend>{_radios(field, value)}</fieldset>"
    if kind == "select":
        control = f'<select id="{key}" name="{key}">{_options(field, value)}</select>'
    else:
        shown = escape(value)
        control = (
            f'<input id="{key}" type="{kind}" name="{key}" value="{shown}" autocomplete="off">'
        )
    return f'<div class="field"><label for="{key}">{label}</label> {control}</div>'


def _radios(field: Mapping[str, Any], value: str) -> str:
    return " ".join(
        f'<label><input type="radio" name="{field["key"]}" value="{option}"'
        f"{' checked' if option == value else ''}> {option}</label>"
        for option in field["options"]
    )


def _options(field: Mapping[str, Any], value: str) -> str:
    return '<option value="">choose</option>' + "".join(
        f"<option{' selected' if option == value else ''}>{option}</option>"
        for option in field["options"]
    )
