"""The pool map: a tile per key. Colour and mark tell the quota, the outline the breaker."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import (
    UNKNOWN,
    badge,
    bar,
    button,
    count,
    first_sentence,
    moment,
    percent,
    span_of,
    table,
    told_at,
    when,
)  # fmt: skip

__all__ = [
    "CHIPS_MAX", "GROUPINGS", "OUT", "Group", "as_table", "back", "condition", "groups", "key_facts", "legend",
    "size_for", "tiles", "who", "why", "with_actors",
]  # fmt: skip

Key = Mapping[str, Any]
GROUPINGS = {"provider_id": "provider", "quota_group": "quota group", "tier": "tier", "tags": "tag", "state": "state"}
CARDS_MAX, CHIPS_MAX = 60, 400
"""So many keys are shown as cards, so many as chips, more as dots."""
CHUNK = 50
"""Tiles that are sent together when one of them changes."""
CONDITIONS = {
    "exhausted": ("✕", "nothing left"), "invalid": ("⊘", "the provider refuses it"), "disabled": ("⏸", "switched off"),
    "out": ("⚡", "kept out by a breaker or cooling"), "critical": ("!", "nearly empty"),
    "throttled": ("◷", "told to slow down"), "constrained": ("◔", "getting scarce"),
    "recovering": ("↻", "tried again carefully"), "unknown": ("?", "no limit is known"), "abundant": ("✓", "plenty"),
}  # fmt: skip
"""What may be said of a key in one word, worst first: its mark, and what that means."""
OUT = ("exhausted", "invalid", "disabled", "out", "throttled")
"""Conditions in which a key does not serve."""
_WORST = {name: place for place, name in enumerate(CONDITIONS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Keys that belong together, the worst off first."""

    name: str
    keys: Sequence[Key]

    @property
    def counts(self) -> dict[str, int]:
        """How many are in which condition."""
        found: dict[str, int] = {}
        for key in self.keys:
            found[condition(key)] = found.get(condition(key), 0) + 1
        return dict(sorted(found.items(), key=lambda one: _WORST[one[0]]))


def condition(key: Key) -> str:
    """What is to be said of a key in one word: what keeps it out, else what is left to it."""
    if key["state"] in ("invalid", "disabled", "exhausted", "throttled"):
        return str(key["state"])
    if key["out_lane"] or key["breaker"] == "open":
        return "out"
    if key["capacity_state"] != "abundant":
        return str(key["capacity_state"])
    if key["state"] == "recovering":
        return "recovering"
    return "unknown" if key["headroom"] is None else "abundant"


def groups(keys: Iterable[Key], grouping: str) -> list[Group]:
    """The keys by one of their fields; a key with several tags is in several groups. By name."""
    found: dict[str, list[Key]] = {}
    for key in keys:
        told = key[grouping]
        for name in (told or ["none"]) if isinstance(told, list) else ["none" if told is None else told]:
            found.setdefault(str(name), []).append(key)
    return [Group(name=name, keys=sorted(found[name], key=lambda key: str(key["id"]))) for name in sorted(found)]


def size_for(number: int) -> str:
    """How large tiles are when there are so many."""
    return "card" if number <= CARDS_MAX else "chip" if number <= CHIPS_MAX else "dot"


def tiles(keys: Sequence[Key], size: str, now: datetime) -> list[Markup]:
    """The tiles of a group, in chunks."""
    make = {"card": _card, "chip": _chip, "dot": _dot}[size]
    made = [make(key, now) for key in keys]
    return [Markup("").join(made[n : n + CHUNK]) for n in range(0, len(made), CHUNK)]


def legend(found: Iterable[Group], size: str) -> Markup:
    """What the marks mean, of those that are seen."""
    seen = {name for group in found for name in group.counts}
    told = Markup("").join(
        Markup('<span class="key"><i class="tile dot is-{}">{}</i> {} <span class="dim">{}</span></span>').format(
            name, mark, name, meaning
        )
        for name, (mark, meaning) in CONDITIONS.items()
        if name in seen
    )
    outline = Markup('<span class="key"><i class="tile dot with-open"></i> breaker open <i class="tile dot '
                     'with-half_open"></i> half open</span>')  # fmt: skip
    return Markup('<div class="legend">{}{}</div>').format(told, outline)


def counted(group: Group) -> Markup:
    """The head of a group: its name, how many keys, how many in which condition."""
    told = Markup(" ").join(badge(name, f"{number} {name}") for name, number in group.counts.items())
    return Markup('<h2>{} <span class="dim">{}</span> {}</h2>').format(
        group.name, f"{len(group.keys)} {'key' if len(group.keys) == 1 else 'keys'}", told
    )


def with_actors(keys: Iterable[dict[str, Any]], transitions: Sequence[Key], known: dict[str, Any]) -> None:
    """Say of each key that is out who took it out, as `state_actor` ("": nobody knows). `transitions`: newest first.
    `known` keeps what was found between two looks."""
    latest: dict[str, Key] = {}
    for one in transitions:
        if one["from_state"] != one["to_state"]:
            latest.setdefault(str(one["entity_id"]), one)
    for key in keys:
        mark = (key["state"], key["state_until"])
        found = latest.get(key["id"])
        if found is not None and found["to_state"] == key["state"]:
            known[key["id"]] = (mark, str(found["actor"]))
        kept = known.get(key["id"])
        key["state_actor"] = kept[1] if kept and kept[0] == mark and key["state"] != "available" else ""


def who(key: Key) -> str:
    """Who took a key out, in words; "" where nobody did, or nobody knows."""
    actor = key.get("state_actor", "")
    if not actor or key["state"] in ("available", "recovering"):
        return ""
    return {"router": "by the router", "operator": "by code or configuration"}.get(actor, f"by {actor}")


def error_words(key: Key, at: str) -> str:
    """The class of its last failure, and when that was; "" where none is known."""
    error = key["last_error"]
    if error is None:
        return ""
    status = f" {error['status']}" if error["status"] else ""
    return f"last error {error['category'].replace('_', ' ').removesuffix(' error')}{status}, {at}"


def back(key: Key, now: datetime) -> Markup:
    """When a key that is out is back; "" for one that is not."""
    if condition(key) not in OUT:
        return Markup("")
    if key["state"] in ("invalid", "disabled"):
        return Markup("until somebody acts")
    until = key["state_until"] or key["out_until"]
    if until is None and key["binding"] is not None and condition(key) == "exhausted":
        until = key["binding"]["full_again_at"]
    return Markup("back {}").format(when(until, now, unknown="at an unknown time"))


def why(key: Key, *, whole: bool = False) -> str:
    """What took a key out, or binds it. `whole`: not only what a glance needs."""
    if key["state"] not in ("available", "recovering") and key["state_reason"]:
        return str(key["state_reason"]) if whole else first_sentence(key["state_reason"])
    if key["out_lane"]:
        kind = "breaker open" if key["breaker"] == "open" else "cooling"
        return f"{kind} on {key['out_lane']}"
    return _binding_words(key)


def _binding_words(key: Key) -> str:
    limit = key["binding"]
    if limit is None:
        return "no limit is known"
    used, whole = count(limit["used"]), count(limit["capacity"])
    return f"{limit['name'].removesuffix('~')}: {used} of {whole} used"


def _classes(key: Key) -> str:
    return f"is-{condition(key)} with-{key['breaker']}"


def _tip(key: Key) -> str:
    """All that a tile tells, in times that do not change from look to look."""
    parts = [str(key["id"]), condition(key), f"headroom {percent(key['headroom'])}", why(key), who(key)]
    if key["state_reason"] or key["out_lane"]:
        parts.append(_binding_words(key))
    until = moment(key["state_until"] or key["out_until"])
    if until is not None and condition(key) in OUT:
        parts.append(f"back {told_at(until)}")
    error = key["last_error"]
    parts.append("" if error is None else error_words(key, told_at(datetime.fromisoformat(error["at"]))))
    return " · ".join(part for part in parts if part)


def _attributes(key: Key, size: str) -> Markup:
    return Markup(
        'type="button" class="tile {} {}" data-act="open" data-id="{}" data-keep="tile {}" title="{}"'
    ).format(size, _classes(key), key["id"], key["id"], _tip(key))


def _card(key: Key, now: datetime) -> Markup:
    mark = CONDITIONS[condition(key)][0]
    left = key["headroom"]
    serves = key["state"] not in ("invalid", "disabled", "exhausted")
    gauge = bar([(condition(key), left or 0.0)] if serves else [], f"headroom {percent(left)}")
    return Markup(
        '<button {}><span class="name"><i aria-hidden="true">{}</i>{}</span><span class="share">{}</span>{}'
        '<span class="why">{}</span><span class="back">{}</span><span class="error">{}</span></button>'
    ).format(
        _attributes(key, "card"),
        mark,
        key["id"],
        percent(left) if serves else "–",
        gauge,
        why(key),
        Markup(", ").join(part for part in (back(key, now), who(key)) if part),
        _error(key, now),
    )


def _error(key: Key, now: datetime) -> str:
    at = None if key["last_error"] is None else moment(key["last_error"]["at"])
    return "" if at is None else error_words(key, f"{span_of((now - at).total_seconds())} ago")


def _chip(key: Key, now: datetime) -> Markup:
    mark = CONDITIONS[condition(key)][0]
    return Markup('<button {}><i aria-hidden="true">{}</i> {}</button>').format(
        _attributes(key, "chip"), mark, key["id"]
    )


def _dot(key: Key, now: datetime) -> Markup:
    return Markup("<button {}>{}</button>").format(_attributes(key, "dot"), CONDITIONS[condition(key)][0])


def key_facts(key: Key, transitions: Sequence[Mapping[str, Any]], now: datetime) -> Markup:
    """Everything that is known of one key, and what became of it."""
    name = condition(key)
    limit = key["binding"]
    facts = [
        ("Condition", badge(name, f"{CONDITIONS[name][0]} {name}") + Markup(" {}").format(back(key, now))),
        ("Why", why(key, whole=True)),
        *([("Taken out", who(key))] if who(key) else []),
        ("Last error", _explained_error(key, now)),
        ("Headroom", percent(key["headroom"])),
        ("Binding limit", UNKNOWN if limit is None else f"{_binding_words(key)}, in {limit['lane']}"),
        ("Full again", UNKNOWN if limit is None else when(limit["full_again_at"], now, unknown="it is full")),
        ("Breaker", key["breaker"].replace("_", " ")),
        ("Provider, quota group", f"{key['provider_id']}, {key['quota_group']}"),
        ("Models", ", ".join(key["models"]) if key["models"] else "whatever its provider serves"),
        ("In flight, latency", f"{key['in_flight']}, " + _latency(key)),
        ("Requests, failures", f"{count(key['requests_total'])}, {count(key['failures_total'])}"),
        ("Last used", when(key["last_used_at"], now, unknown="not yet")),
    ]
    told = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(title, text) for title, text in facts)
    rows = [
        (when(one["timestamp"], now), f"{one['from_state'] or 'new'} → {one['to_state'] or 'revoked'}", one["actor"],
         one["reason"])
        for one in transitions
    ]  # fmt: skip
    history = table(["when", "change", "by", "why"], rows, none="nothing has become of it yet")
    return Markup('<dl class="facts">{}</dl><h3>What became of it</h3>{}').format(told, history)


def _explained_error(key: Key, now: datetime) -> Markup:
    """Its last failure, with the way to the request that it came of."""
    error = key["last_error"]
    if error is None:
        return Markup('<span class="dim">none that any worker remembers</span>')
    told = [error["category"].replace("_", " "), (error["meaning"] or "").replace("_", " ")]
    told.append(f"status {error['status']}" if error["status"] else "no answer")
    return Markup('{} of {}, {} · <a href="/decisions?{}">explain the request</a>').format(
        ", ".join(part for part in told if part), error["model"], when(error["at"], now),
        urlencode({"explain": error["request_id"]}),
    )  # fmt: skip


def _latency(key: Key) -> str:
    return "latency unknown" if key["latency_ms"] is None else f"{key['latency_ms']} ms"


def as_table(keys: Sequence[Key], now: datetime) -> Markup:
    """The same as the map, in rows, the worst off first."""
    rows = [
        (
            button("open", key["id"], kind="link", id=str(key["id"])), badge(condition(key), condition(key)),
            percent(key["headroom"]), why(key), Markup(", ").join(part for part in (back(key, now), who(key)) if part),
            key["provider_id"], key["quota_group"],
            key["breaker"].replace("_", " "), key["in_flight"], _error(key, now).removeprefix("last error ") or "–",
        )
        for key in sorted(keys, key=lambda key: (_WORST[condition(key)], key["headroom"] or 0, key["id"]))
    ]  # fmt: skip
    columns = ["key", "condition", "headroom", "why", "back, by", "provider", "quota group", "breaker", "in flight",
               "last error"]  # fmt: skip
    return table(columns, rows, none="no keys", numbers=(2, 8))
