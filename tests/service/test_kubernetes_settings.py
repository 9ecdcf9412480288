"""The `kubernetes:` section: what is refused when a job is read, and the time a last checkpoint gets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.models.errors import ConfigError
from sparta.service.config import parse_job
from sparta.service.kubernetes_settings import MARGIN_SECONDS, KubernetesSettings

JOB = {"name": "toy", "data": {"path": "x", "batch_size": 64}, "model": {"name": "deepfm"}}


def test_nothing_needs_to_be_said() -> None:
    assert parse_job(JOB, "job").kubernetes == KubernetesSettings()


@pytest.mark.parametrize(
    "section, words",
    [
        (
            {"grace_seconds": 22},
            "22: a last checkpoint needs 23 (checkpoint.grace_seconds and 15 more); give 23 or drop it",
        ),
        ({"secret_env": {"KEY": "storage"}}, "KEY: storage is not of the form secret/key"),
        ({"secret_env": {"KEY": "a/b/c"}}, "KEY: a/b/c is not of the form secret/key"),
        ({"tolerations": [{"value": "x"}]}, "value x: Exists asks for none; write operator: Equal"),
        ({"tolerations": [{"key": "a", "operator": "Equal"}]}, "Equal compares a key with a value"),
        ({"tolerations": [{"seconds": 3}]}, "seconds 3 is only heard with effect: NoExecute"),
        ({"tolerations": [{"effect": "NoSchedul"}]}, "did you mean NoSchedule?"),
        ({"toleration": []}, "kubernetes.toleration: unknown key; did you mean kubernetes.tolerations?"),
        ({"user": 0}, "kubernetes.user: 0: input should be greater than 0"),
        ({"labels": {"a": 1}}, "kubernetes.labels.a: 1: input should be a valid string"),
    ],
)
def test_a_mistake_is_one_line(section: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_job({**JOB, "kubernetes": section}, "job")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.floats(0.1, 3600), st.one_of(st.none(), st.integers(1, 4000)))
def test_a_pod_never_has_less_time_than_its_checkpoint(checkpoint: float, said: int | None) -> None:
    need = math.ceil(checkpoint) + MARGIN_SECONDS
    settings = KubernetesSettings(grace_seconds=said)
    if said is not None and said < need:
        with pytest.raises(ValueError, match=f"needs {need}"):
            settings.grace(checkpoint)
    else:
        assert settings.grace(checkpoint) == (said or need)
