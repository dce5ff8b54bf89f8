"""Kubernetes objects decoded strictly by the models of its client: an unknown field is an error, as for its server."""

import re
from typing import Any

from kubernetes.client import models

_PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": (int, float),
    "object": object,
}


class DecodeError(ValueError):
    """A field that the model does not have, or a value that is not of its type."""


def decode(kind: str, raw: Any, where: str) -> Any:
    """`raw` (of a YAML file) as a value of type `kind`: 'V1PodSpec', 'List[str]', 'Dict[str, str]', 'int'.

    DecodeError names the first field at fault.
    """
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(raw, list):
            raise DecodeError(f"{where}: {raw!r} is not a list")
        return [decode(match[1], v, f"{where}[{i}]") for i, v in enumerate(raw)]
    if match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        if not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
            raise DecodeError(f"{where}: {raw!r} is not a mapping of texts")
        return {k: decode(match[1], v, f"{where}.{k}") for k, v in raw.items()}
    if kind in _PLAIN:
        if not isinstance(raw, _PLAIN[kind]) or (kind == "int" and isinstance(raw, bool)):
            raise DecodeError(f"{where}: {raw!r} is not of type {kind}")
        return raw
    model = getattr(models, kind)
    if not isinstance(raw, dict):
        raise DecodeError(f"{where}: {raw!r} is not a {kind}")
    fields = {json: python for python, json in model.attribute_map.items()}
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise DecodeError(f"{where} has no field {unknown[0]!r}: {kind} has {', '.join(sorted(fields))}")
    values = {fields[k]: decode(model.openapi_types[fields[k]], v, f"{where}.{k}") for k, v in raw.items()}
    try:
        return model(**values)
    except ValueError as err:  # a field that must be there, or a value out of its range
        raise DecodeError(f"{where}: {err}") from None


# JobSet's own types (jobset.x-k8s.io/v1alpha2), which the client lacks: field -> type; those with ! must be there.
JOBSET: dict[str, dict[str, str]] = {
    "JobSet": {"apiVersion!": "str", "kind!": "str", "metadata!": "V1ObjectMeta", "spec!": "JobSetSpec"},
    "JobSetSpec": {
        "replicatedJobs!": "List[ReplicatedJob]",
        "network": "Network",
        "successPolicy": "SuccessPolicy",
        "failurePolicy": "FailurePolicy",
        "suspend": "bool",
        "coordinator": "Coordinator",
        "managedBy": "str",
        "ttlSecondsAfterFinished": "int",
    },
    "ReplicatedJob": {"name!": "str", "groupName": "str", "template!": "V1JobTemplateSpec", "replicas": "int"},
    "Network": {"enableDNSHostnames": "bool", "subdomain": "str", "publishNotReadyAddresses": "bool"},
    "SuccessPolicy": {"operator!": "All|Any", "targetReplicatedJobs": "List[str]"},
    "FailurePolicy": {
        "maxRestarts": "int",
        "restartStrategy": "Recreate|BlockingRecreate",
        "rules": "List[FailurePolicyRule]",
    },
    "FailurePolicyRule": {
        "name!": "str",
        "action!": "FailJobSet|RestartJobSet|RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": "List[str]",
        "targetReplicatedJobs": "List[str]",
    },
    "Coordinator": {"replicatedJob!": "str", "jobIndex": "int", "podIndex": "int"},
}


def check_jobset(raw: Any, kind: str = "JobSet", where: str = "jobset") -> None:
    """DecodeError names the first field of a JobSet that is unknown, missing or of another type."""
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(raw, list):
            raise DecodeError(f"{where}: {raw!r} is not a list")
        for i, v in enumerate(raw):
            check_jobset(v, match[1], f"{where}[{i}]")
    elif "|" in kind:
        if raw not in kind.split("|"):
            raise DecodeError(f"{where}: {raw!r} is none of {kind}")
    elif kind in JOBSET:
        if not isinstance(raw, dict):
            raise DecodeError(f"{where}: {raw!r} is not a {kind}")
        fields = {name.rstrip("!"): of for name, of in JOBSET[kind].items()}
        for name in raw:
            if name not in fields:
                raise DecodeError(f"{where} has no field {name!r}: {kind} has {', '.join(fields)}")
        for name in JOBSET[kind]:
            if name.endswith("!") and name[:-1] not in raw:
                raise DecodeError(f"{where} lacks {name[:-1]}")
        for name, value in raw.items():
            check_jobset(value, fields[name], f"{where}.{name}")
    else:
        decode(kind, raw, where)
