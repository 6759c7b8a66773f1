"""Kubernetes objects as dictionaries: what every manifest shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]


def read(manifest: Path) -> list[Object]:
    import yaml

    return [entry for entry in yaml.safe_load_all(manifest.read_text()) if entry]


def name_of(objects: Sequence[Object]) -> str:
    """The name that all objects share; a chart's values have their model's name."""
    if "metadata" in objects[0]:
        return str(objects[0]["metadata"]["name"])
    return f"lora-{objects[0]['servingEngineSpec']['modelSpec'][0]['name']}"


def version_of(objects: Sequence[Object]) -> str:
    """The registered version as `models:/NAME/VERSION`."""
    entry = objects[0]
    metadata = entry.get("metadata") or entry["servingEngineSpec"]["modelSpec"][0]
    return str(metadata["annotations"]["loraline/registered-version"])


def unprivileged() -> Object:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def secret(variable: str, name: str, key: str, *, optional: bool = False) -> Object:
    reference: Object = {"name": name, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def environment(variables: Mapping[str, str]) -> list[Object]:
    return [{"name": key, "value": literal(value)} for key, value in sorted(variables.items())]


def literal(text: str) -> str:
    """Keep Kubernetes from replacing `$(NAME)`, which could print a secret."""
    return text.replace("$", "$$")


def to_yaml(objects: list[Object]) -> str:
    """One YAML document for each object; the same objects give the same bytes."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as blocks, so that they can be reviewed."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        if not value.replace("\n", "").isprintable():
            style = '"'
        elif "\n" in value:
            style = "|"
        else:
            # Kubernetes' YAML parser reads unquoted y, n and 1e3 as other types than strings.
            plain = len(value) > 1 and (value[0].isalpha() or value.startswith(("/", "--")))
            style = "" if plain else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(
        objects, Dumper=Dumper, sort_keys=False, explicit_start=True, allow_unicode=True, width=100
    )


def run_as(uid: int) -> Object:
    """A pod's security context: one user without rights, and its group for what is mounted."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def http_service(metadata: Object, selector: Object, port: int) -> Object:
    """A Service in front of the pods' port `http`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": port, "targetPort": "http"}],
        },
    }


def scrape(metadata: Object, selector: Object, port: str) -> Object:
    """A ServiceMonitor, by which the Prometheus operator scrapes a Service's port by its name."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": selector},
            "endpoints": [{"port": port, "path": "/metrics", "interval": "15s"}],
        },
    }
