#!/usr/bin/env python3
"""Checks that VirtualMachine manifests use only fields that KubeVirt's CRD has, spelt as it spells them.

    fields.py check FILE...        each field of each VirtualMachine is in .ci/kubevirt-fields.txt
    fields.py update CRD FILE...   look the fields up in a CustomResourceDefinition of KubeVirt and write
                                   the list anew; fails when the CRD does not have one of them

The list holds the paths that our manifests use, `[]` for an entry of an array and `*` for a key of a
free map. A field that is not in it is either misspelt, or new here: then `update` adds it.
"""

import pathlib
import sys

import yaml

LIST = pathlib.Path(__file__).resolve().parent / "kubevirt-fields.txt"
META = {"apiVersion", "kind", "metadata", "status"}


def machines(paths):
    for path in paths:
        for document in yaml.safe_load_all(pathlib.Path(path).read_text()):
            items = document.get("items", [document]) if isinstance(document, dict) else []
            for item in items:
                if item.get("kind") == "VirtualMachine":
                    yield path, item


def walk(value, path, maps):
    """The paths of fields, leaves and inner ones, below `path`; keys of free maps become `*`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            child = f"{path}.*" if path in maps else f"{path}.{key}"
            yield child
            yield from walk(inner, child, maps)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, f"{path}[]", maps)


def fields(machine, maps):
    for key, inner in machine.items():
        if key not in META:
            yield key
            yield from walk(inner, key, maps)


def schema_maps_and_fields(crd):
    """Free maps and all fields of the stored version's schema."""
    versions = yaml.safe_load(pathlib.Path(crd).read_text())["spec"]["versions"]
    root = next(v for v in versions if v["storage"])["schema"]["openAPIV3Schema"]
    maps, known = set(), set()

    def descend(schema, path):
        if "additionalProperties" in schema:
            maps.add(path)
            known.add(f"{path}.*")
            if isinstance(schema["additionalProperties"], dict):
                descend(schema["additionalProperties"], f"{path}.*")
        elif schema.get("type") == "object" and "properties" not in schema:
            # such as template.metadata: any object, checked elsewhere
            maps.add(path)
            known.add(f"{path}.*")
        for key, inner in schema.get("properties", {}).items():
            child = f"{path}.{key}" if path else key
            known.add(child)
            descend(inner, child)
        if "items" in schema:
            descend(schema["items"], f"{path}[]")

    descend(root, "")
    return maps, known


def check(paths):
    allowed = set(LIST.read_text().split())
    maps = {path.removesuffix(".*") for path in allowed if path.endswith(".*")}
    wrong = 0
    count = 0
    for path, machine in machines(paths):
        count += 1
        for field in fields(machine, maps):
            if field not in allowed and not free(field, allowed):
                wrong += 1
                print(f"{path}: VirtualMachine {machine['metadata']['name']}: KubeVirt has no field {field}")
    print(f"{count} VirtualMachines checked against {len(allowed)} fields")
    return wrong == 0 and count > 0


def free(field, allowed):
    """Whether the field lies below a free object, whose inside the CRD does not describe."""
    parts = field.split(".*")
    return any(".*".join(parts[:n]) + ".*" in allowed for n in range(1, len(parts)))


def update(crd, paths):
    maps, known = schema_maps_and_fields(crd)
    used = set()
    for path, machine in machines(paths):
        used.update(fields(machine, maps))
    missing = sorted(field for field in used if field not in known and not free(field, known))
    for field in missing:
        print(f"the CRD has no field {field}")
    LIST.write_text("".join(f"{field}\n" for field in sorted(used & known)))
    print(f"{len(used & known)} fields written")
    return not missing


match sys.argv[1:]:
    case ["check", *paths] if paths:
        sys.exit(0 if check(paths) else 1)
    case ["update", crd, *paths] if paths:
        sys.exit(0 if update(crd, paths) else 1)
    case _:
        sys.exit(__doc__)
