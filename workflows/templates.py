"""Templates of the pipeline's steps, with deadlines, retries, resources and security.

Each step has a factory with its inputs, outputs, deadline and lock. What is the same for all steps
is in `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources import CLASSES, GRACE_SECONDS, SMALL, Class, entry_by_parameter, patch

if TYPE_CHECKING:
    from hera.workflows import Container, Suspend

PROFILES = Path(__file__).parents[1] / "lora_profiles"

OUT_DIR = "/tmp/outputs"
MODELS = "/models"
"""Where the cache of models from the hub is mounted; it outlives the pods."""

NAMESPACE_OBJECTS = "loraline"
"""Name of the ConfigMap, the Secret and the service account that the namespace provides."""

HOUR = 3600
DAY = 24 * HOUR

MLFLOW_CREDENTIALS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
"""Keys of the Secret, named as what MLflow's client reads; `deploy_vllm` renders them, too."""

RETRY = (
    "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) == 75 || "
    "lastRetry.message matches 'node shutdown|pod deleted|evicted|Evicted|low on resource'"
)
"""Retry after a lost pod or exit code 75; never after a user's mistake, a bug, or out of memory.

A lost pod is an Error. If its node shuts down or evicts it, it is a failure that only the message
shows. Out of memory ends with 1 (CUDA) or 137 (kernel), and a retry would end in the same way.
"""


@dataclass(frozen=True)
class Settings:
    """What differs between clusters; all of it is rendered into the file."""

    image: str = "localhost/loraline:dev"
    gpu_image: str = "localhost/loraline:dev"
    service_account: str = NAMESPACE_OBJECTS
    user: int = 8737
    """User of the images; a number, since Kubernetes cannot tell that a name is not root."""
    model_cache: str = "loraline-models"
    """PersistentVolumeClaim of the model cache."""
    sent_models: Mapping[str, str] = field(default_factory=dict)
    """Registered models of profiles that are sent with the workflow, by profile."""
    classes: Mapping[str, Class] = field(default_factory=lambda: CLASSES)
    machines: str = ""
    """Class of several machines that training runs on; empty for the classes of one machine."""
    trainer: str = "job"
    """What makes the group of machines: an entry of `trainers.TRAINERS`."""

    @property
    def offered(self) -> Mapping[str, Class]:
        """The classes that the workflow's parameter `resources` may name."""
        if self.machines:
            return {self.machines: self.classes[self.machines]}
        return {
            name: resource_class
            for name, resource_class in self.classes.items()
            if resource_class.machines == 1
        }


def prepare_data() -> Container:
    return step("prepare-data", inputs=["profile", "data", "set", "recipes"], deadline=2 * HOUR)


def train_qlora(settings: Settings) -> Container:
    return step(
        "train-qlora",
        inputs=["run-id", "profile", "set", "recipes"],
        deadline=DAY,
        classes=settings.offered,
        several_cards=True,
        grace_seconds=GRACE_SECONDS,
    )


def train_qlora_after_group() -> Container:
    """The task after a group of machines: hands over its run ID, or ends with its exit code.

    It is the same step in the same image, which finds the finished training by its inputs.
    """
    inputs = ["run-id", "profile", "set", "recipes", "ended"]
    return step("train-qlora", inputs=inputs, deadline=HOUR, gpu_image=True)


def evaluate(settings: Settings) -> Container:
    inputs = ["run-id", "recipes"]
    return step("evaluate", inputs=inputs, deadline=8 * HOUR, classes=settings.offered)


def select_best() -> Container:
    return step("select-best", inputs=["run-ids", "set", "recipes"], deadline=HOUR)


def quality_gate(model: str) -> Container:
    # If the file is lost, nothing has passed.
    result = {"result": "failed"}
    return step(
        "quality-gate",
        inputs=["run-id", "set", "recipes"],
        deadline=HOUR,
        outputs=result,
        registry=model,
    )


def promote(model: str) -> Container:
    return step("promote", inputs=["model", "version"], deadline=HOUR, registry=model)


def deploy_vllm(model: str) -> Container:
    return step("deploy-vllm", inputs=["run-id"], deadline=HOUR, registry=model)


def notify() -> Container:
    return step("notify", inputs=["workflow", "status", "failures"], deadline=300, hands_over=False)


def approval() -> Suspend:
    """Wait for a person's answer; without one nothing is promoted."""
    from hera.workflows import Parameter, Suspend, models

    return Suspend(
        name="approval",
        inputs=[
            Parameter(
                name="decision",
                default="no",
                enum=["yes", "no"],
                description="Whether this version becomes the champion and is deployed.",
            )
        ],
        outputs=[
            Parameter(name="decision", value_from=models.ValueFrom(supplied={}, default="no"))
        ],
    )


def step(
    name: str,
    *,
    inputs: list[str],
    deadline: int,
    several_cards: bool = False,
    grace_seconds: int | None = None,
    outputs: dict[str, str] | None = None,
    classes: Mapping[str, Class] | None = None,
    gpu_image: bool = False,
    registry: str = "",
    hands_over: bool = True,
) -> Container:
    """A template for steps/<name>.py: each input is a flag, each output is a file.

    `outputs` has further outputs beside the run ID, each with its value if the file is missing. A
    step with `classes` runs on the class that the workflow's parameter `resources` names. Steps
    that change the registry run one at a time for the model that `registry` names.
    """
    from hera.workflows import Container, EmptyDirVolume, Parameter, RetryStrategy, models

    large = classes is not None
    words = [word for flag in inputs for word in (f"--{flag}", f"{{{{inputs.parameters.{flag}}}}}")]
    image = f"{{{{workflow.parameters.{'gpu-image' if large or gpu_image else 'image'}}}}}"
    volumes: list[Any] = [EmptyDirVolume(name="tmp", mount_path="/tmp")]
    if large:
        # A data loader's workers pass tensors in /dev/shm, which has 64 MiB by default.
        shm_size = models.Quantity(root="8Gi")
        shm = EmptyDirVolume(
            name="shm", mount_path="/dev/shm", medium="Memory", size_limit=shm_size
        )
        volumes.append(shm)
    # Only training uses several cards; other steps get one.
    patches = {
        key: patch(resource_class if several_cards else one_card(resource_class), grace_seconds)
        for key, resource_class in (classes or {}).items()
    }
    output_defaults = {"run-id": "", **(outputs or {})} if hands_over else {}
    return Container(
        name=name,
        image=image,
        image_pull_policy="IfNotPresent",
        command=["python", f"steps/{name.replace('-', '_')}.py"],
        args=[*words, *(["--out-dir", OUT_DIR] if hands_over else [])],
        env=[*environment(image, hands_over), *(signing_key() if name == SIGNER else [])],
        inputs=[Parameter(name=flag) for flag in inputs],
        outputs=[
            Parameter(
                name=output,
                value_from=models.ValueFrom(path=f"{OUT_DIR}/{output}", default=default),
            )
            for output, default in output_defaults.items()
        ],
        active_deadline_seconds=deadline,
        retry_strategy=RetryStrategy(
            limit=3,
            retry_policy="Always",
            expression=RETRY,
            backoff=models.Backoff(duration="15s", factor=models.IntOrString(root=3)),
        ),
        pod_spec_patch=entry_by_parameter(patches, "resources") if large else patch(SMALL),
        synchronization=guard(large, registry),
        metrics=metrics(name),
        labels={"app.kubernetes.io/component": name},
        security_context=models.SecurityContext(
            allow_privilege_escalation=False,
            capabilities=models.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        volumes=volumes,
        volume_mounts=[models.VolumeMount(name="models", mount_path=MODELS)] if hands_over else [],
    )


def one_card(resource_class: Class) -> Class:
    return resource_class.model_copy(update={"gpus": 1})


def guard(large: bool, registry: str) -> Any:
    """A semaphore of the resource class, or a mutex of the registered model."""
    from hera.workflows import models

    if large:
        queue = models.ConfigMapKeySelector(
            name="loraline-semaphores", key="{{workflow.parameters.resources}}"
        )
        return models.Synchronization(semaphores=[models.SemaphoreRef(config_map_key_ref=queue)])
    if registry:
        return models.Synchronization(mutexes=[models.Mutex(name=f"loraline-{registry}")])
    return None


def registered_models(settings: Settings) -> dict[str, str]:
    """Registered model by profile: those of the repository, and those sent with the workflow."""
    from loraline.profiles.loading import load_profile

    ours = sorted(file.stem for file in PROFILES.glob("*.yaml"))
    models = {name: load_profile(name, PROFILES).registered_model for name in ours} | dict(
        settings.sent_models
    )
    return dict(sorted(models.items()))


def model_of_profile(settings: Settings) -> str:
    """An expression for the registered model of the parameter `profile`."""
    return entry_by_parameter(registered_models(settings), "profile")


def metrics(name: str) -> Any:
    """Prometheus metrics: how often each step ended, by status, and how long it took."""
    from hera.workflows import models

    labels = [
        models.MetricLabel(key="step", value=name),
        models.MetricLabel(key="status", value="{{status}}"),
    ]
    return models.Metrics(
        prometheus=[
            models.Prometheus(
                name="loraline_steps_total",
                help="Steps that ended, by status",
                labels=labels,
                counter=models.Counter(value="1"),
            ),
            models.Prometheus(
                name="loraline_step_seconds",
                help="Seconds that a step took, from its start to its end",
                labels=labels,
                histogram=models.Histogram(
                    value="{{duration}}", buckets=[10, 60, 300, 1800, 7200, 28800, 86400]
                ),
            ),
        ]
    )


SIGNER = "quality-gate"
"""The one step that may sign."""

SIGNING_OBJECT, SIGNING_ENTRY = "loraline-signing", "signing-key"
"""The Secret with the private key, and the key's name in it."""


def signing_key() -> list[Any]:
    """The private key, from a Secret that only this step may read."""
    from hera.workflows import SecretEnv

    key = SecretEnv(
        name="LORALINE_SIGNING_KEY",
        secret_name=SIGNING_OBJECT,
        secret_key=SIGNING_ENTRY,
        optional=True,
    )
    return [key]


def environment(image: str, hands_over: bool) -> list[Any]:
    """Where MLflow is, from the namespace; which workflow this is, for the runs' tags."""
    from hera.workflows import ConfigMapEnv, Env, SecretEnv

    def setting(name: str, key: str, optional: bool = True) -> Any:
        return ConfigMapEnv(
            name=name, config_map_name=NAMESPACE_OBJECTS, config_map_key=key, optional=optional
        )

    def secret(name: str, key: str) -> Any:
        return SecretEnv(name=name, secret_name=NAMESPACE_OBJECTS, secret_key=key, optional=True)

    if not hands_over:
        return [secret("LORALINE_WEBHOOK_URL", "webhook-url")]
    return [
        setting("MLFLOW_TRACKING_URI", "mlflow-tracking-uri", optional=False),
        setting("MLFLOW_S3_ENDPOINT_URL", "mlflow-s3-endpoint-url"),
        setting("HF_HUB_OFFLINE", "hf-hub-offline"),
        *(secret(key, key) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        secret("HF_TOKEN", "hf-token"),
        # For an MLflow server with authentication.
        *(secret(key, key) for key in MLFLOW_CREDENTIALS),
        Env(name="HF_HOME", value=MODELS),
        Env(name="LORALINE_WORKFLOW_NAME", value="{{workflow.name}}"),
        Env(name="LORALINE_WORKFLOW_UID", value="{{workflow.uid}}"),
        Env(name="LORALINE_IMAGE", value=image),
    ]
