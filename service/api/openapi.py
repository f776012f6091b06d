"""The OpenAPI document, for generators of clients: valid, with short names and an example of every body."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from ..domain.group_spec import schema_of
from ..domain.study_spec import StudySpec
from ..schemas.wire import Problem

_REFERENCE = "#/components/schemas/{model}"
# Where the name of a route's function does not say what the operation does.
_NAMES = {
    "acquire": "lease_trials",
    "report": "send_reports",
    "finish": "send_result",
    "demand": "get_demand",
    "samplers": "list_samplers",
    "pruners": "list_pruners",
    "chart": "get_chart",
    "predictions": "predict",
    "study_predictions": "get_predictions",
    "study_comparison": "get_comparison",
    "front": "get_front",
    "study_front": "get_front",
    "predictors_record": "get_predictors_record",
    "event_log": "list_events",
    "event_stream": "stream_events",
    "read_audit": "list_audit_entries",
}

_PARAMS = {"r1": 2, "r2": 8, "r": 4, "alpha": 16, "learning_rate": 0.001}
_MEASURED = {"seconds": 61.2, "gpu_seconds": 61.2, "steps": 120}
EXAMPLES: dict[str, Any] = {
    "create_study": {
        "name": "bbc-news",
        "model": {"path": "sentence-transformers/all-MiniLM-L6-v2"},
        "task": {
            "kind": "sequence_classification",
            "dataset": {"path": "json", "data_files": {"train": "train.jsonl"}},
            "columns": {"text": "text", "label": "topic"},
        },
        "budget": {"lora_rank": 8},
        "search": {"trials": 12},
    },
    "create_group": {
        "name": "bbc-news by budget",
        "model": {"path": "sentence-transformers/all-MiniLM-L6-v2"},
        "task": {
            "kind": "sequence_classification",
            "dataset": {"path": "json", "data_files": {"train": "train.jsonl"}},
            "columns": {"text": "text", "label": "topic"},
        },
        "budgets": [{"lora_rank": 2}, {"lora_rank": 8}, {"lora_rank": 32}],
        "search": {"trials": 12},
    },
    "update_study": {"name": "bbc-news, longer", "trials": 24},
    "predict": {"model": {"path": "sentence-transformers/all-MiniLM-L6-v2"}, "budget": {"lora_rank": 8}},
    "enqueue_trial": {"params": _PARAMS},
    "lease_trials": {"runner": "runner-1", "host": "gpu-03", "cpus": 4.0, "gpus": 1.0},
    "send_reports": {"reports": [{"step": 40, "metrics": {"accuracy": 0.91, "loss": 0.31}}], "checkpoint": None},
    "append_log": {"start": 0, "text": "step 40: accuracy 0.91\n"},
    "record_inputs": {
        "splits": {
            "train": {
                "read": 160,
                "dropped": 0,
                "used": 160,
                "origin": "160 examples",
                "files": [{"name": "train.jsonl", "sha256": "0" * 64, "bytes": 412_345}],
            }
        },
        "classes": ["business", "sport"],
    },
    "send_result": {"state": "completed", "metrics": {"accuracy": 0.93}, "resources": _MEASURED},
    "create_token": {"name": "ci", "role": "member"},
    "rotate_token": {"grace_seconds": 3600},
    "create_team": {"name": "research", "max_gpus": 8},
    "update_team": {"max_studies": 20},
    "release_host": {"host": "gpu-07"},
    "create_webhook": {"url": "https://hooks.example.org/cdka", "events": ["study.state"]},
}


def operation_id(route: APIRoute) -> str:
    """The name of a route's operation, from its function's."""
    return _NAMES.get(route.name, route.name)


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary="Search Kronecker adapters: studies, trials, predictions and comparisons.",
            routes=app.routes,
            servers=[{"url": "/"}],
        )
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        # POST /studies reads the raw body, to report every fault at once; its schema is documented here.
        for name, model in (("StudySpec", StudySpec), ("Problem", Problem)):
            found = model.model_json_schema(ref_template=_REFERENCE)
            for inner, definition in found.pop("$defs", {}).items():
                components.setdefault(inner, definition)
            components[name] = found
        components["GroupSpec"] = schema_of(components["StudySpec"])
        for definition in components.values():
            _simplify(definition)
        for item in schema["paths"].values():
            for operation in item.values():
                body = operation.get("requestBody", {}).get("content", {}).get("application/json")
                if body is not None and operation["operationId"] in EXAMPLES:
                    body["example"] = EXAMPLES[operation["operationId"]]
        app.openapi_schema = schema
    return app.openapi_schema


def _simplify(schema: Any) -> None:
    """Write a schema as generators read it.

    Defaults that are objects, or that the schema itself does not admit, become words. A constant that is one of
    several forms becomes a pattern: some clients would take every value for that constant.
    """
    if isinstance(schema, list):
        for part in schema:
            _simplify(part)
    if not isinstance(schema, dict):
        return
    for part in [*schema.get("oneOf", []), *schema.get("anyOf", [])]:
        if isinstance(part.get("const"), str):
            part["pattern"] = f"^{re.escape(part.pop('const'))}$"
    given = schema.get("default")
    composed = any(key in schema for key in ("$ref", "oneOf", "anyOf", "allOf"))
    if isinstance(given, dict | list) and composed and given:
        said = f"Default: {json.dumps(given)}."
        schema["description"] = f"{schema['description']} {said}" if "description" in schema else said
        del schema["default"]
    elif given == "" and schema.get("minLength"):
        # Worked out from other fields.
        del schema["default"]
    for part in list(schema.values()):
        _simplify(part)
