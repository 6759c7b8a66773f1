"""Tags that runs and registered versions carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

STEP = "loraline.step"
UPSTREAM = "loraline.upstream"
PIPELINE = "loraline.pipeline"
FINGERPRINT = "loraline.fingerprint"
WORKFLOW_NAME = "loraline.workflow.name"
WORKFLOW_UID = "loraline.workflow.uid"
IMAGE = "loraline.image"
GIT_SHA = "loraline.git_sha"
PROFILE = "loraline.profile"
OVERRIDES = "loraline.profile.set"
"""KEY=VALUE texts that counted instead of the profile's values in training, as a JSON list."""
MODEL_ID = "loraline.model_id"
RESULT = "loraline.gate.result"
REASON = "loraline.gate.reason"
MODEL_NAME = "loraline.registered_model"
MODEL_VERSION = "loraline.registered_version"
INPUTS = "loraline.inputs"
CHECKPOINT = "loraline.checkpoint"
CHECKPOINTS_ASIDE = "loraline.checkpoints_aside"
"""Checkpoints of a run that could not be used, and why, as JSON."""
PROCESS = "loraline.process"
LEASE = "loraline.lease"
"""When the run's process last said that it lives, in seconds since 1970."""
SPENT = "loraline.spent"
"""What all attempts at a run have cost so far, as JSON."""
SOURCES = "loraline.sources"
NOTE = "mlflow.note.content"
"""Shown by MLflow as a run's description, in Markdown."""
GATE_RUN = "loraline.gate.run_id"
AUDIT = "loraline.audit"
SELECTED = "loraline.selected"
MEASURED = "loraline.measured"
"""Followed by .tokenizer, .template, .prompt and .rows: what must be equal to compare numbers."""
METRICS = "loraline.metrics"
"""The user's metrics that an evaluation measured: whether higher is better by name, as JSON."""
CHAMPION = "loraline.champion"
"""The registered version that an evaluation compared with."""
CHAMPION_AGAIN = "loraline.champion.again"
"""Set where the adapter is the champion's own, trained once more."""
CHAMPION_REFUSED = "loraline.champion.refused"
"""Why it could not be compared with the champion."""
ADAPTER_DIGEST = "loraline.adapter.sha256"
"""Digest of the adapter folder that a run trained, measured, judged or rendered."""
DATASET_DIGEST = "loraline.dataset.sha256"
"""Digest of a dataset's manifest, which lists those of its shards."""
PROFILE_DIGEST = "loraline.profile.sha256"
MANIFEST_DIGEST = "loraline.manifest.sha256"
"""Parameter of a deploy_vllm run: the digest of the manifest that it rendered."""


def json_object(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    """A tag that holds a JSON object; an empty one where it is missing or holds something else.

    Whoever may write to MLflow may write anything there.
    """
    try:
        content = json.loads(tags.get(name, "{}"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
