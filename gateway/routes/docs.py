"""/docs: the OpenAPI document as a page without scripts, for browsers without internet access."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}h2{border-top:1px solid #ccc;padding-top:1rem}code{background:#f3f3f3;"
    "padding:.1em .3em}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
)
CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Every address with its fields and errors."""
    page = render(request.app.openapi())
    return Response(page, 200, {"Content-Security-Policy": CSP}, "text/html; charset=utf-8")


def render(document: dict[str, Any]) -> str:
    title = escape(document["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title} {escape(document['info']['version'])}</h1>"
        "<p>Send a key as <code>Authorization: Bearer KEY</code>. "
        "<a href=openapi.json>openapi.json</a> has all of this for programs.</p>"
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} <code>{escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            parts.append(table("Fields", fields(operation)))
            parts.append(
                table(
                    "Answers",
                    [(code, each["description"]) for code, each in operation["responses"].items()],
                )
            )
    return "".join(parts)


def fields(operation: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and meanings of an operation's parameters and of its body's fields."""
    rows = [(each["name"], each.get("description", "")) for each in operation.get("parameters", [])]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, schema in content["schema"].get("properties", {}).items():
            rows.append((name, schema.get("description", schema.get("type", ""))))
    return rows


def table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(f"<tr><th><code>{escape(name)}</code><td>{escape(text)}" for name, text in rows)
    return f"<h3>{title}</h3><table>{lines}</table>"
