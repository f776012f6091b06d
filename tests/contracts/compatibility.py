"""Which changes of an OpenAPI document break clients that were generated from the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def incompatible_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A sentence for every change that breaks a client of ``before``; empty if there is none."""
    return [*_operations(before, after), *_schemas(before, after)]


def _all(document: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        operation["operationId"]: (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def _operations(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    old, new = _all(before), _all(after)
    for name, (place, operation) in old.items():
        if name not in new:
            yield f"operation {name} is gone"
            continue
        if new[name][0] != place:
            yield f"operation {name} has moved from {place} to {new[name][0]}"
        now = {p["name"]: p for p in new[name][1].get("parameters", [])}
        then = {p["name"]: p for p in operation.get("parameters", [])}
        for parameter in then.keys() - now.keys():
            yield f"{name} takes no parameter {parameter} any more"
        for parameter, found in now.items():
            if found.get("required") and not then.get(parameter, {}).get("required"):
                yield f"{name} needs the parameter {parameter}"
        for code in operation["responses"].keys() - new[name][1]["responses"].keys():
            if code.startswith("2"):
                yield f"{name} answers with {code} no more"


def _schemas(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    old, new = before["components"]["schemas"], after["components"]["schemas"]
    sent = _sent(before)
    for name, schema in old.items():
        if name not in new:
            yield f"schema {name} is gone"
            continue
        now = new[name]
        for field, kind in schema.get("properties", {}).items():
            if field not in now.get("properties", {}):
                yield f"{name} has no {field} any more"
            elif _kind(kind) != _kind(now["properties"][field]):
                yield f"{name}.{field} was {_kind(kind)}, it is {_kind(now['properties'][field])}"
        for field in set(now.get("required", [])) - set(schema.get("required", [])):
            if name in sent:
                yield f"{name} needs {field}"
        for field in set(schema.get("required", [])) - set(now.get("required", [])):
            if name not in sent:
                yield f"{name}.{field} may be missing"
        for value in set(map(str, schema.get("enum", []))) - set(map(str, now.get("enum", []))):
            yield f"{name} has no value {value} any more"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(sorted(_kind(part) for part in schema[key]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("const") or "anything")


def _sent(document: dict[str, Any]) -> set[str]:
    """The names of the schemas that requests use, including nested ones."""
    found: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, list):
            for part in schema:
                walk(part)
        elif isinstance(schema, dict):
            name = str(schema.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.add(name)
                walk(document["components"]["schemas"].get(name, {}))
            for part in schema.values():
                walk(part)

    for _, operation in _all(document).values():
        walk(operation.get("requestBody", {}))
    return found
