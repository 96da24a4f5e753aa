"""What a compiled program does, counted from its optimised HLO with every turn of every loop.

XLA's own cost_analysis counts the body of a loop once, whatever its length.
"""

import dataclasses
import functools
import json
import math
import re

import numpy as np

FREE = set(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier add-dependency".split()
)
SLICES = {"dynamic-slice", "slice", "gather"}
COLLECTIVES = {
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
}
BITS = {"pred": 8, "s4": 4, "u4": 4}  # others carry their bits in their name


@dataclasses.dataclass(frozen=True)
class Counts:
    """Per device. flops: of matrix products and convolutions, two a multiplication, and of kernels
    as they declare. bytes: that instructions read and write, as XLA's cost_analysis has them, with
    the padding of tiles; hbm_bytes: those in the main memory, not on the chip. collective_bytes:
    sent to other devices."""

    flops: float = 0
    bytes: float = 0
    hbm_bytes: float = 0
    collective_bytes: float = 0

    def __add__(self, other):
        return Counts(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __mul__(self, times):
        return Counts(*(times * a for a in self.values))

    @property
    def values(self):
        return dataclasses.astuple(self)


def count(text):
    """Counts of a program, from `compiled.as_text()`. ValueError: a loop without known length."""
    return Program(text).counts()


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: bf16[25,196]{1,0:T(8,128)(2,1)S(1)}, S(0) is the main memory."""

    kind: str
    dims: tuple
    bytes: int
    main: bool

    PATTERN = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")

    @classmethod
    def parse(cls, kind, dims, order, layout):
        dims = tuple(int(d) for d in dims.split(",") if d)
        stored = [dims[int(i)] for i in reversed(order.split(","))] if order else list(dims)
        tile = re.match(r"T\(([\d,]+)\)", layout)
        for i, size in enumerate(reversed(tile[1].split(",")) if tile and stored else (), 1):
            if i <= len(stored):
                stored[-i] = -(-stored[-i] // int(size)) * int(size)
        bits = BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])
        space = re.search(r"S\((\d+)\)", layout)
        return cls(kind, dims, math.prod(stored) * bits // 8, space is None or space[1] == "0")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    inside: str  # what stands in the parentheses: operands, or a constant's value
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self):
        return [Array.parse(*found) for found in Array.PATTERN.findall(self.shape)]

    @functools.cached_property
    def operands(self):
        return re.findall(r"%([\w.-]+)", self.inside)

    @property
    def traffic(self):
        """[(bytes, whether in the main memory)] of its arrays."""
        return [(array.bytes, array.main) for array in self.arrays]

    def attribute(self, name):
        """The value after `name=`: a name, a number or what stands in braces."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|%?([^,\s]+))", self.attributes)
        return found and (found[1] if found[2] is None else found[2])


def _parse(line):  # one line of a computation -> Instruction or None
    found = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest) if rest[0] == "(" else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 2
    return Instruction(found[2], shape, opcode, rest[:end], rest[end + 1 :], bool(found[1]))


def _closing(text):  # the index after the parenthesis that closes the first one
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"unbalanced: {text[:80]}")


class Program:
    """The computations of a module, {name: {instruction name: Instruction}}, and their counts."""

    def __init__(self, text):
        self.computations, self.entry = {}, None
        found = dict(re.findall(r"(num_partitions|replica_count)=(\d+)", text.partition("\n")[0]))
        self._devices = math.prod(map(int, found.values()))
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if found := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
                here = self.computations[found[2]] = {}
                if found[1]:
                    self.entry = found[2]
            elif self.computations and (instruction := _parse(line)):
                here[instruction.name] = instruction
        self._known = {}

    def counts(self):
        return self._computation(self.entry)

    def _computation(self, name):
        if name not in self._known:
            here = self.computations[name]
            counts = (self._instruction(one, here) for one in here.values())
            self._known[name] = sum(counts, Counts())
        return self._known[name]

    def _instruction(self, one, here):
        if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
            return Counts()
        if one.attribute("custom_call_target") == '"ConcatBitcast"':  # slices that lie together
            return Counts()
        if one.opcode == "while":
            body, condition = one.attribute("body"), one.attribute("condition")
            turn = self._computation(body) + self._computation(condition)
            return turn * self._turns(one, here)
        if one.opcode == "conditional":
            branches = re.findall(r"%([\w.-]+)", one.attribute("branch_computations") or "")
            branches = branches or [one.attribute(f"{b}_computation") for b in ("true", "false")]
            return max((self._computation(b) for b in branches), key=lambda c: c.values)
        if one.opcode in ("call", "async-start"):
            return self._computation(one.attribute("to_apply") or one.attribute("calls"))
        if one.opcode == "fusion":
            inside = self._computation(one.attribute("calls"))
            traffic = self._fusion_traffic(one, here)
            sent = inside.collective_bytes / (2 if self._scatters(one) else 1)
            return Counts(inside.flops, *_totals(traffic), sent)
        traffic = self._traffic(one, here)
        return Counts(_flops(one, here), *_totals(traffic), self._sent(one, here))

    def _scatters(self, one):
        """Whether a fusion is a reduce-scatter: TPUs have it as a sum of which a part is kept."""
        inside = self.computations[one.attribute("calls")].values()
        sums = [i.name for i in inside if i.opcode == "all-reduce"]
        sums += [i.name for i in inside if i.operands and i.operands[0] in sums]
        return any(i.opcode == "dynamic-slice" and i.operands[0] in sums for i in inside)

    def _traffic(self, one, here):
        """[(bytes, whether in the main memory)] that an instruction reads and writes.

        An array given to a kernel several times counts once: each time it reads another part.
        """
        operands = [here[name] for name in one.operands]
        if one.opcode in SLICES:
            size = sum(array.bytes for array in one.arrays)
            others = [pair for operand in operands[1:] for pair in operand.traffic]
            return [(size, operands[0].arrays[0].main), *one.traffic, *others]
        if one.opcode == "slice-start":
            (whole, *_), part = operands[0].arrays, min(one.arrays, key=_elements)
            return [(part.bytes, whole.main), (part.bytes, part.main)]
        if one.opcode in ("copy-start", "all-gather-start", "collective-permute-start"):
            return [(array.bytes, array.main) for array in one.arrays[:2]]
        if one.opcode == "dynamic-update-slice":
            update = operands[1].traffic
            return [*update, (update[0][0], one.arrays[0].main)]
        if one.opcode == "custom-call":
            operands = [here[name] for name in dict.fromkeys(one.operands)]
        return [*one.traffic, *(pair for operand in operands for pair in operand.traffic)]

    def _fusion_traffic(self, one, here):
        """A fusion reads of an operand what it slices out, and writes what it updates."""
        name = one.attribute("calls")
        traffic = []
        for index, operand in enumerate(one.operands):
            for whole, main in here[operand].traffic:
                traffic.append((self._read(name, index, whole), main))
        root = next(i for i in self.computations[name].values() if i.root)
        parts = root.operands if root.opcode == "tuple" else [root.name] * len(one.arrays)
        for (whole, main), part in zip(one.traffic, parts, strict=True):
            traffic.append((self._written(name, part, whole), main))
        return traffic

    def _read(self, name, index, whole):
        """Bytes that computation `name` needs of its parameter `index`, a whole of so many."""
        inside = self.computations[name]
        at = next(i for i in inside.values() if (i.opcode, i.inside) == ("parameter", str(index)))
        total, names = 0, {at.name}
        for user in inside.values():
            if not names & set(user.operands):
                continue
            if user.opcode == "bitcast":
                names.add(user.name)
            elif user.opcode == "tuple" or _goes_on(user, inside):
                continue
            elif user.opcode == "fusion":
                for nested, operand in enumerate(user.operands):
                    if operand in names:
                        total += self._read(user.attribute("calls"), nested, whole)
            elif user.opcode in SLICES and user.operands[0] in names:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] not in names:
                return whole
        return min(total, whole)

    def _written(self, name, part, whole):
        """Bytes that computation `name` writes of its result `part`, a whole of so many."""
        inside = self.computations[name]
        found = inside[part]
        while found.opcode == "bitcast":
            found = inside[found.operands[0]]
        if found.opcode == "parameter":
            return 0
        if found.opcode == "fusion" and len(found.arrays) == 1:
            nested = self.computations[found.attribute("calls")]
            root = next(i for i in nested.values() if i.root)
            return self._written(found.attribute("calls"), root.name, whole)
        if found.opcode == "dynamic-update-slice":
            update = inside[found.operands[1]]
            return min(whole, sum(array.bytes for array in update.arrays))
        return whole

    def _sent(self, one, here):
        """Bytes that a device sends, by the usual algorithms on a ring."""
        kind = one.opcode.removesuffix("-start")
        if _goes_on(one, here):
            return 0
        if kind not in COLLECTIVES:
            return 0
        size = sum(sum(a.bytes for a in here[name].arrays) for name in one.operands)
        if kind == "collective-permute":
            return size
        group = _group_size(one, self._devices)
        return {"all-reduce": 2, "all-gather": group}.get(kind, 1) * (group - 1) / group * size

    def _turns(self, one, here):
        """How often a while runs: as XLA noted, or its counter goes from constant to constant."""
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', one.attributes):
            return int(noted[1])
        condition = self.computations[one.attribute("condition")]
        body = self.computations[one.attribute("body")]
        start = here[one.operands[0]]

        def constant(name, there):  # the value of a scalar, looked up outside the loop if need be
            found = there[name]
            while found.opcode in ("copy", "bitcast", "convert"):
                found = there[found.operands[0]]
            if found.opcode == "constant":
                return int(found.inside)
            if found.opcode == "get-tuple-element" and there is not here:
                return constant(start.operands[int(found.attribute("index"))], here)
            raise ValueError(f"{one.name}: {name} is no constant, its turns cannot be counted")

        test = next(i for i in condition.values() if i.root)
        counter, bound = (condition[name] for name in test.operands)
        if test.attribute("direction") != "LT" or counter.opcode != "get-tuple-element":
            raise ValueError(f"{one.name}: no loop from a constant up to a constant")
        index = int(counter.attribute("index"))
        bound = constant(bound.name, condition)
        first = constant(start.operands[index], here)
        root = next(i for i in body.values() if i.root)
        step = self._step(root.operands[index], body)
        return -(-(bound - first) // step)

    def _step(self, name, body):
        found = body[name]
        while found.opcode == "copy":
            found = body[found.operands[0]]
        if found.opcode == "fusion":
            inside = self.computations[found.attribute("calls")]
            root = next(i for i in inside.values() if i.root)
            return self._step(root.name, inside)
        if found.opcode == "add":
            for operand in found.operands:
                if body[operand].opcode == "constant":
                    return int(body[operand].inside)
        raise ValueError(f"{name}: no counter of a loop")


def _totals(traffic):  # -> bytes, those in the main memory
    return sum(size for size, _ in traffic), sum(size for size, main in traffic if main)


def _elements(array):
    return math.prod(array.dims) if array.dims else math.inf


def _flops(one, here):
    if one.opcode == "custom-call":
        return _declared(one)
    if one.opcode == "dot":
        left = here[one.operands[0]].arrays[0].dims
        contracted = one.attribute("lhs_contracting_dims")
        depth = math.prod(left[int(d)] for d in contracted.split(",") if d)
        return 2 * depth * math.prod(one.arrays[0].dims)
    if one.opcode == "convolution":
        return _convolution_flops(one, *(here[name].arrays[0].dims for name in one.operands))
    return 0


def _declared(one):
    """What a kernel says of itself, pallas_call's cost_estimate."""
    found = re.search(r'"cost_estimate":(\{[^}]*\})', one.attributes)
    return float(json.loads(found[1])["flops"]) if found else 0


def _convolution_flops(one, image, kernel):
    """Two for every pair of input and kernel that meet: not for padding, nor the holes of dilation.

    On TPUs matrix products are convolutions too, batches of them with a dilated spatial dimension.
    """
    left, right, out = re.split("_|->", one.attribute("dim_labels"))
    window = dict(part.split("=") for part in (one.attribute("window") or "").split())
    spatial = sorted(label for label in left if label.isdigit())

    def along(key, default, label):
        values = window.get(key)
        return values.split("x")[int(label)] if values else default

    pairs = 1
    for label in spatial:
        size = int(along("size", "1", label))
        stride = int(along("stride", "1", label))
        before, _ = (int(p) for p in along("pad", "0_0", label).split("_"))
        holes, spread = (int(along(f"{side}_dilate", "1", label)) for side in ("lhs", "rhs"))
        length = image[left.index(label)]
        output = one.arrays[0].dims[out.index(label)]
        at = stride * np.arange(output)[:, None] + spread * np.arange(size) - before
        pairs *= int(((at >= 0) & (at <= (length - 1) * holes) & (at % holes == 0)).sum())
    groups = int(one.attribute("batch_group_count") or 1)
    depth, features = kernel[right.index("i")], one.arrays[0].dims[out.index("f")]
    return 2 * pairs * depth * features * image[left.index("b")] // groups


def _goes_on(one, here):
    """Whether it is part of a collective that is spread over several fusions, not the last part."""
    if "chain_id=" not in one.attributes and "AsyncCollective" not in one.attributes:
        return False
    return not any("AsyncCollectiveDone" in other.attributes for other in here.values())


def _group_size(one, devices):
    """Devices that talk to each other, from any of the ways in which XLA writes groups."""
    groups = one.attributes.partition("replica_groups=")[2]
    if found := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(.*?\)\))? \{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.match(r"\[\d+,(\d+)\]", groups):
        return int(found[1])
    if found := re.match(r"\{\{([\d,]+)\}", groups):
        return len(found[1].split(","))
    if groups.startswith("{}"):
        return devices
    raise ValueError(f"{one.name}: whose collective is it? {groups[:200]}")
