"""The table of events, the page that shows it, and the code that tells them: one thing."""

import ast

from apikeyrouter.infrastructure.observability.event_names import EVENTS
from tests.house.tree import python_files, read

TELLS = ("emit", "_publish")


def test_the_page_shows_the_table_of_events_as_it_is() -> None:
    shown = [line for line in read("docs/observability.md").splitlines() if line.startswith("| `") and "." in line[:20]]
    wanted = [
        f"| `{event.name}` | {', '.join(f'`{field}`' for field in event.fields)} | {event.help} |"
        for event in EVENTS.values()
    ]
    assert [line for line in shown if line.split("`")[1] in EVENTS] == wanted


def test_every_event_that_code_tells_is_in_the_table_with_these_fields() -> None:
    told: dict[str, set[tuple[str, ...]]] = {}
    for name in python_files("router/"):
        for node in ast.walk(ast.parse(read(name))):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(TELLS) or not node.args:
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                if any(word.arg is None for word in node.keywords):
                    continue  # a mapping of fields; whoever hears the event compares them
                fields = tuple(word.arg for word in node.keywords if word.arg not in (None, "log", "at_us"))
                told.setdefault(first.value, set()).add(tuple(field for field in fields if field is not None))
    assert sorted(told.keys() - EVENTS.keys()) == []
    wrong = {
        name: fields
        for name, calls in told.items()
        for fields in calls
        if fields and set(fields) - {"request_id"} != set(EVENTS[name].fields)
    }
    assert wrong == {}
