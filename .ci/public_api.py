"""Lists the public API of patkit with all features, one line per item, for scripts/public-api.

The list is made from rustdoc's JSON, which is unstable: RUSTC_BOOTSTRAP lets a stable compiler
write it. Blanket and automatic implementations are left out.
"""

import difflib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = ROOT / "public-api.txt"
QUIET = {
    "Send", "Sync", "Unpin", "Freeze", "UnwindSafe", "RefUnwindSafe", "StructuralPartialEq",
    "UnsafeUnpin",
}


def main():
    environment = dict(os.environ, RUSTC_BOOTSTRAP="1")
    command = ["cargo", "rustdoc", "--locked", "--quiet", "--lib", "--all-features", "--"]
    command += ["-Z", "unstable-options", "--output-format", "json"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    metadata = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
    target = json.loads(subprocess.check_output(metadata, cwd=ROOT))["target_directory"]
    document = json.loads((pathlib.Path(target) / "doc" / "patkit.json").read_text())
    lines = Listing(document).lines()
    if "--write" in sys.argv[1:]:
        LIST.write_text("".join(line + "\n" for line in lines))
        return
    kept = LIST.read_text().splitlines() if LIST.exists() else []
    changes = list(difflib.unified_diff(kept, lines, LIST.name, "the code", lineterm="", n=0))
    if changes:
        print("\n".join(changes))
        sys.exit("The public API differs from public-api.txt. If that is meant, run "
                 "`scripts/public-api --write`, and tell of it in CHANGELOG.md.")
    print(f"{len(lines)} public items, as in {LIST.name}")


class Listing:
    """Walks the public items of a rustdoc document."""

    def __init__(self, document):
        self.index = document["index"]
        self.root = str(document["root"])
        self.found = set()
        self.paths = {}

    def lines(self):
        # The items of the modules come before those of the root, so that an item has its longer
        # path, and the root only uses it.
        self.module(self.root, "patkit", only_modules=True)
        self.module(self.root, "patkit")
        return sorted(self.found)

    def item(self, identity):
        return self.index.get(str(identity))

    def module(self, identity, path, only_modules=False):
        for child in self.item(identity)["inner"]["module"]["items"]:
            item = self.item(child)
            if item is None or item["visibility"] != "public":
                continue
            if not only_modules or "module" in item["inner"]:
                self.visit(item, path)

    def visit(self, item, path):
        kind, inner = next(iter(item["inner"].items()))
        if kind == "use":
            self.use(inner, path)
            return
        name = f"{path}::{item['name']}"
        if self.paths.setdefault(item["id"], name) != name:
            self.found.add(f"use {name} = {self.paths[item['id']]}")
        elif kind == "module":
            self.found.add(f"mod {name}")
            self.module(item["id"], name)
        elif kind == "function":
            self.found.add(signature(name, inner))
        elif kind in ("constant", "static"):
            self.found.add(f"{kind} {name}: {text(inner['type'])}")
        elif kind == "type_alias":
            self.found.add(f"type {name} = {text(inner['type'])}")
        elif kind == "macro":
            self.found.add(f"macro {name}!")
        elif kind == "struct":
            self.struct(item, inner, name)
        elif kind == "enum":
            self.enum(item, inner, name)
        elif kind == "trait":
            self.trait(item, inner, name)
        else:
            raise SystemExit(f"a public item of the unknown kind {kind}: {name}")

    def use(self, inner, path):
        target = self.item(inner["id"])
        if inner["is_glob"]:
            self.module(inner["id"], path)
        elif target is None or target["name"] != inner["name"]:
            self.found.add(f"use {path}::{inner['name']} = {inner['source']}")
        else:
            self.visit(target, path)

    def struct(self, item, inner, name):
        self.found.add(f"struct {name}{generics(inner['generics'])}{marks(item)}")
        kind = inner["kind"]
        if isinstance(kind, dict):
            self.fields(kind, name)
        self.implementations(inner["impls"], name)

    def fields(self, kind, name):
        shape = kind.get("plain") or kind.get("struct")
        fields = shape["fields"] if shape else kind["tuple"]
        for identity in fields:
            field = self.item(identity) if identity is not None else None
            if field and field["visibility"] in ("public", "default"):
                value = text(field["inner"]["struct_field"])
                self.found.add(f"field {name}.{field['name']}: {value}")

    def enum(self, item, inner, name):
        self.found.add(f"enum {name}{generics(inner['generics'])}{marks(item)}")
        for identity in inner["variants"]:
            variant = self.item(identity)
            self.found.add(f"variant {name}::{variant['name']}")
            kind = variant["inner"]["variant"]["kind"]
            if isinstance(kind, dict):
                self.fields(kind, f"{name}::{variant['name']}")
        self.implementations(inner["impls"], name)

    def trait(self, item, inner, name):
        bounds = " + ".join(bound(each) for each in inner["bounds"])
        self.found.add(f"trait {name}{generics(inner['generics'])}" + (f": {bounds}" * bool(bounds)))
        for identity in inner["items"]:
            method = self.item(identity)
            if is_hidden(method):
                continue
            kind, part = next(iter(method["inner"].items()))
            if kind == "function":
                provided = " (provided)" if part["has_body"] else ""
                self.found.add(signature(f"{name}::{method['name']}", part) + provided)
            else:
                self.found.add(f"{kind} {name}::{method['name']}")

    def implementations(self, identities, name):
        for identity in identities:
            item = self.item(identity)
            inner = item["inner"]["impl"]
            if inner["is_synthetic"] or inner["blanket_impl"] or is_hidden(item):
                continue
            trait = inner["trait"]
            if trait is None:
                for method in map(self.item, inner["items"]):
                    self.method(method, name)
            elif trait["path"].split("::")[-1] not in QUIET:
                self.found.add(f"impl {path_of(trait)} for {text(inner['for'])}")

    def method(self, method, name):
        if method["visibility"] != "public" or is_hidden(method):
            return
        kind, inner = next(iter(method["inner"].items()))
        if kind == "function":
            self.found.add(signature(f"{name}::{method['name']}", inner))
        else:
            value = inner.get("type")
            self.found.add(f"const {name}::{method['name']}: {text(value)}")


def is_hidden(item):
    return any("hidden" in str(attribute) for attribute in item["attrs"])


def marks(item):
    exhaustive = any("non_exhaustive" in str(attribute) for attribute in item["attrs"])
    return " (non-exhaustive)" if exhaustive else ""


def signature(name, function):
    parameters = ", ".join(parameter(each) for each in function["sig"]["inputs"])
    output = function["sig"]["output"]
    header = function["header"]
    words = ("const " * header["is_const"]) + ("async " * header["is_async"])
    result = f" -> {text(output)}" if output is not None else ""
    return f"{words}fn {name}{generics(function['generics'])}({parameters}){result}"


def parameter(pair):
    name, value = pair
    if name != "self":
        return f"{name}: {text(value)}"
    reference = value.get("borrowed_ref")
    if reference:
        return "&mut self" if reference["is_mutable"] else "&self"
    return "self" if value.get("generic") == "Self" else f"self: {text(value)}"


def generics(value):
    shown = []
    for each in value["params"]:
        kind, part = next(iter(each["kind"].items()))
        if kind == "lifetime":
            shown.append(each["name"])
        elif kind == "type" and not part["is_synthetic"]:
            bounds = " + ".join(bound(one) for one in part["bounds"])
            shown.append(each["name"] + (f": {bounds}" * bool(bounds)))
        elif kind == "const":
            shown.append(f"const {each['name']}: {text(part['type'])}")
    return f"<{', '.join(shown)}>" if shown else ""


def bound(value):
    kind, part = next(iter(value.items())) if isinstance(value, dict) else (value, None)
    if kind == "trait_bound":
        prefix = "?" if part["modifier"] == "maybe" else ""
        return prefix + path_of(part["trait"])
    if kind == "outlives":
        return part
    return str(part)


def path_of(value):
    return value["path"].split("::")[-1] + arguments(value.get("args"))


def arguments(value):
    if not value:
        return ""
    if "parenthesized" in value:
        part = value["parenthesized"]
        output = f" -> {text(part['output'])}" if part["output"] else ""
        return f"({', '.join(map(text, part['inputs']))}){output}"
    part = value.get("angle_bracketed")
    if part is None:
        return "(..)"
    shown = [argument(each) for each in part["args"]]
    for each in part["constraints"]:
        kind, binding = next(iter(each["binding"].items()))
        if kind == "equality":
            shown.append(f"{each['name']} = {argument(binding) if 'type' in binding else binding}")
        else:
            shown.append(f"{each['name']}: {' + '.join(map(bound, binding))}")
    return f"<{', '.join(shown)}>" if shown else ""


def argument(value):
    kind, part = next(iter(value.items())) if isinstance(value, dict) else (value, None)
    if kind == "type":
        return text(part)
    if kind == "const":
        return part["expr"]
    return part or "_"


def text(value):
    if value is None:
        return "()"
    kind, part = next(iter(value.items())) if isinstance(value, dict) else (value, None)
    if kind == "resolved_path":
        return path_of(part)
    if kind in ("generic", "primitive"):
        return part
    if kind == "borrowed_ref":
        lifetime = f"{part['lifetime']} " if part["lifetime"] else ""
        return f"&{lifetime}{'mut ' if part['is_mutable'] else ''}{text(part['type'])}"
    if kind == "tuple":
        return f"({', '.join(map(text, part))})"
    if kind == "slice":
        return f"[{text(part)}]"
    if kind == "array":
        return f"[{text(part['type'])}; {part['len']}]"
    if kind == "impl_trait":
        return "impl " + " + ".join(map(bound, part))
    if kind == "dyn_trait":
        traits = [path_of(each["trait"]) for each in part["traits"]]
        return "dyn " + " + ".join(traits + ([part["lifetime"]] if part["lifetime"] else []))
    if kind == "qualified_path":
        owner = text(part["self_type"])
        trait = part["trait"]
        return f"<{owner} as {path_of(trait)}>::{part['name']}" if trait else f"{owner}::{part['name']}"
    if kind == "function_pointer":
        inputs = ", ".join(text(each[1]) for each in part["sig"]["inputs"])
        return f"fn({inputs})" + (f" -> {text(part['sig']['output'])}" if part["sig"]["output"] else "")
    raise SystemExit(f"a type of the unknown kind {kind}: {part}")


if __name__ == "__main__":
    main()
