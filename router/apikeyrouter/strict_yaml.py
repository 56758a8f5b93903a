"""YAML as configuration files may be written: no aliases, no key twice in a mapping, no nesting without end.

Read by libyaml's parser where PyYAML was built with it, which is several times as quick, and by PyYAML's own elsewhere.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

__all__ = ["DEPTH_MAX", "StrictYamlError", "read_yaml"]

DEPTH_MAX = 64
"""Mappings and lists within each other. Parsers recurse, libyaml's without Python's guard."""
_UNREADABLE = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
"""What PyYAML's constructors raise for a value that is not what its tag, or its look, says (`2026-13-01`)."""


class StrictYamlError(ValueError):
    """A text is no YAML, or not of the strict kind. Says the line and the column where they are known."""


def read_yaml(text: str | bytes) -> Any:
    """What a document says: dicts, lists and scalars; None for an empty one.

    Raises:
        StrictYamlError: it is not well-formed, has an alias, a mapping with a key written twice or more than
            `DEPTH_MAX` levels, or a value that cannot be what it looks like.
        ImportError: PyYAML is not installed.
    """
    import yaml

    parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(text, parser)
        return yaml.load(text, Loader=_strict(parser))  # noqa: S506 (a safe loader's heir)
    except yaml.MarkedYAMLError as exc:
        raise StrictYamlError(_place(exc)) from exc
    except yaml.YAMLError as exc:
        raise StrictYamlError(str(exc)) from exc
    except _UNREADABLE as exc:
        raise StrictYamlError(f"a value cannot be read: {exc}") from exc


def _check_events(text: str | bytes, parser: Any) -> None:
    """Refuse what must not be composed at all."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=parser):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise _refusal(f"more than {DEPTH_MAX} levels", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise _refusal("aliases are not allowed here", event.start_mark)


def _strict(parser: Any) -> Any:

    class StrictLoader(parser):  # type: ignore[misc]
        """A safe loader that refuses keys that are written twice."""

        def construct_mapping(self, node: "yaml.MappingNode", deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key_node, _ in node.value:
                key = key_node.value
                if not isinstance(key, str):
                    raise _refusal("a key must be a scalar", key_node.start_mark)
                if key in seen:
                    raise _refusal(f"{key!r} is written twice", key_node.start_mark)
                seen.add(key)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    return StrictLoader


def _refusal(problem: str, mark: Any) -> "yaml.MarkedYAMLError":
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _place(error: "yaml.MarkedYAMLError") -> str:
    mark, problem = error.problem_mark, error.problem or type(error).__name__
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
