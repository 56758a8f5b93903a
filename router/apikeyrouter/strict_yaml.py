"""YAML as configuration files may be written: no aliases, no key twice in a mapping, no nesting without end.

Read by libyaml's parser where PyYAML was built with it, which is several times as quick, and by PyYAML's own elsewhere.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

__all__ = ["DEPTH_MAX", "StrictYamlError", "read_yaml"]

DEPTH_MAX = 64
"""Mappings and lists within each other. Parsers recurse, libyaml's without Python's guard."""
_TEXT = "tag:yaml.org,2002:str"
_MAPPING, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
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
        loader = parser(text)
        try:
            return _document(loader)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        raise StrictYamlError(_place(exc)) from exc
    except yaml.YAMLError as exc:
        raise StrictYamlError(str(exc)) from exc
    except _UNREADABLE as exc:
        raise StrictYamlError(f"a value cannot be read: {exc}") from exc


def _document(loader: Any) -> Any:
    """The only document of a stream. It is made from the parser's events as they come: a tree of nodes in between, with
    a mark at each end of each, would take four times as long."""
    import yaml

    loader.get_event()
    event = loader.get_event()
    if isinstance(event, yaml.StreamEndEvent):
        return None
    made = _Maker(loader).value(loader.get_event(), 0)
    loader.get_event()
    after = loader.get_event()
    if not isinstance(after, yaml.StreamEndEvent):
        raise _refusal("there is more than one document", after.start_mark)
    return made


class _Maker:
    """Makes values of events. Scalars mean what PyYAML's safe loader takes them for."""

    def __init__(self, loader: Any) -> None:
        import yaml

        self._loader, self._next = loader, loader.get_event
        self._kinds = yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent
        self._ends = yaml.CollectionEndEvent
        self._node = yaml.ScalarNode
        self._looks = loader.yaml_implicit_resolvers

    def value(self, event: Any, depth: int) -> Any:
        """What begins with this event. `depth`: how many collections it is in."""
        scalar, mapping, sequence = self._kinds
        if isinstance(event, scalar):
            return self._scalar(event)
        if not isinstance(event, (mapping, sequence)):
            raise _refusal("aliases are not allowed here", event.start_mark)
        if depth == DEPTH_MAX:
            raise _refusal(f"more than {DEPTH_MAX} levels", event.start_mark)
        make, tag = (self._mapping, _MAPPING) if isinstance(event, mapping) else (self._sequence, _SEQUENCE)
        if event.tag not in (None, "!", tag):
            raise _refusal(f"the tag {event.tag} is not allowed here", event.start_mark)
        return make(depth + 1)

    def _sequence(self, depth: int) -> list[Any]:
        made = []
        while not isinstance(event := self._next(), self._ends):
            made.append(self.value(event, depth))
        return made

    def _mapping(self, depth: int) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        seen: set[str] = set()
        while not isinstance(event := self._next(), self._ends):
            if not isinstance(event, self._kinds[0]):
                raise _refusal("a key must be a scalar", event.start_mark)
            if event.value in seen:
                raise _refusal(f"{event.value!r} is written twice", event.start_mark)
            seen.add(event.value)
            made[self._scalar(event)] = self.value(self._next(), depth)
        return made

    def _scalar(self, event: Any) -> Any:
        """A text, unless it has a tag or looks like something else."""
        tag, text = event.tag, event.value
        if tag is None or tag == "!":
            if not event.implicit[0] or (text and text[0] not in self._looks):
                return text
            tag = self._loader.resolve(self._node, text, event.implicit)
            if tag == _TEXT:
                return text
        makers = self._loader.yaml_constructors
        return makers.get(tag, makers[None])(self._loader, self._node(tag, text, event.start_mark, event.end_mark))


def _refusal(problem: str, mark: Any) -> "yaml.MarkedYAMLError":
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _place(error: "yaml.MarkedYAMLError") -> str:
    mark, problem = error.problem_mark, error.problem or type(error).__name__
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
