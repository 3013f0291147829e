"""k8s/injection/inject.yaml, written from the one pod spec: the component's addition to a pod as an admission policy.

A MutatingAdmissionPolicy is CEL, which spells each object with its type. This module spells the output of
`kubectl kustomize` so, for both variants, and a test compares: there is no second copy of the pod to keep in step.
"""

from __future__ import annotations

import json
from typing import Any

INIT, WATCHDOG = "init-wg", "init-wg-watchdog"
TYPES = {"containers": "Object.spec.initContainers", "volumes": "Object.spec.volumes"}
MAPS = ("requests", "limits")  # maps of strings, and no objects

# What an administrator or a pod decides stands for itself: (where it is in the pod spec) -> expression.
DECIDED = {
    "Object.spec.initContainers.image": "params.data.image",
    "Object.spec.volumes.secret.secretName": "variables.secret",
}


def literal(value: Any, kind: str, margin: int = 0) -> str:
    """A value as CEL. kind: its type, as `Object.spec.initContainers`; margin: of the lines after the first one."""
    if kind in DECIDED:
        return DECIDED[kind]
    if isinstance(value, dict):
        inner = " " * (margin + 2)
        if kind.rpartition(".")[2] in MAPS:
            return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value[key])}" for key in value) + "}"
        fields = [f"{inner}{key}: {literal(value[key], f'{kind}.{key}', margin + 2)}" for key in value]
        return f"{kind}{{\n" + ",\n".join(fields) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(literal(each, kind, margin) for each in value) + "]"
    return json.dumps(value)


def choice(plain: Any, userspace: Any, kind: str, margin: int) -> str:
    """The same for both variants: one literal where they do not differ, else a condition around each difference."""
    if plain == userspace:
        return literal(plain, kind, margin)
    if isinstance(plain, dict) and isinstance(userspace, dict) and kind.rpartition(".")[2] not in MAPS:
        inner = " " * (margin + 2)
        fields = []
        for key in [*userspace, *(key for key in plain if key not in userspace)]:
            nothing: list[Any] = []
            both = plain.get(key, nothing), userspace.get(key, nothing)
            fields.append(f"{inner}{key}: {choice(*both, f'{kind}.{key}', margin + 2)}")
        return f"{kind}{{\n" + ",\n".join(fields) + "}"
    yes, no = literal(userspace, kind, margin), literal(plain, kind, margin)
    return f"variables.userspace\n{' ' * margin}? {yes}\n{' ' * margin}: {no}"


def _named(items: list[Any], name: str) -> Any:
    return next(each for each in items if each["name"] == name)


def containers(plain: Any, userspace: Any) -> str:
    """The patch that puts our two containers in front, or moves them there. Arguments: pod specs."""
    patches = []
    for name in (WATCHDOG, INIT):  # each is put in front
        one, other = (_named(spec["initContainers"], name) for spec in (plain, userspace))
        value = choice(one, other, TYPES["containers"], 6)
        patches.append(f'    JSONPatch{{op: "add", path: "/spec/initContainers/0", value:\n      {value}}}')
    added = ",\n".join(patches)
    return f"""\
variables.here < 0
? (has(object.spec.initContainers) ? [] : [JSONPatch{{op: "add", path: "/spec/initContainers", value: []}}])
  + [
{added}]
: (variables.here == 0 ? [] : [
    JSONPatch{{op: "move", path: "/spec/initContainers/0",
      from: "/spec/initContainers/" + string(variables.here)}}])
  + (variables.watchdog <= 1 ? [] : [
    JSONPatch{{op: "move", path: "/spec/initContainers/1",
      from: "/spec/initContainers/" + string(variables.watchdog)}}])
"""


def volumes(plain: Any, userspace: Any) -> str:
    """The patch that adds the volumes that are not there."""
    lines = ['(has(object.spec.volumes) ? [] : [JSONPatch{op: "add", path: "/spec/volumes", value: []}])']
    always = [volume["name"] for volume in plain["volumes"]]
    for volume in userspace["volumes"]:
        name = volume["name"]
        unless = f'"{name}" in variables.volumes' + ("" if name in always else " || !variables.userspace")
        lines.append(
            f"+ ({unless} ? [] : [\n"
            '    JSONPatch{op: "add", path: "/spec/volumes/-", value:\n'
            f"      {literal(volume, TYPES['volumes'], 6)}}}])"
        )
    return "\n".join(lines) + "\n"


def render(template: str, plain: Any, userspace: Any) -> str:
    """inject.yaml: the template with both patches, each as an indented block of YAML."""
    for mark, expression in (("CONTAINERS", containers(plain, userspace)), ("VOLUMES", volumes(plain, userspace))):
        (line,) = [line for line in template.splitlines() if line.strip() == mark]
        margin = line[: -len(mark)]
        block = "".join(f"{margin}{each}".rstrip() + "\n" for each in expression.splitlines())
        template = template.replace(line + "\n", block)
    return template
