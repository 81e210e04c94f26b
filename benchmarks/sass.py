"""What NVIDIA's machine code tells of a kernel: its loops, its accesses, its divisions."""

import re
from typing import NamedTuple

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"(?:\bBRA|\bCALL)(?:\.\w+)*\s.*?\b0x([0-9a-f]+)$")
_ACCESS = re.compile(r"\b(LDG|STG)\.E(?:\.\w+)*?(?:\.(S8|U8|S16|U16|64|128))?(?:\.\w+)*\s")
_BYTES = {"S8": 1, "U8": 1, "S16": 2, "U16": 2, "64": 8, "128": 16, None: 4}


class Instruction(NamedTuple):
    address: int
    text: str  # with its predicate

    @property
    def target(self) -> int | None:
        """Of a branch or call."""
        found = _BRANCH.search(self.text)
        return int(found.group(1), 16) if found else None

    def access(self, kind: str) -> int:
        """Bytes that a thread loads ("LDG") from global memory or stores ("STG") to it."""
        found = _ACCESS.search(self.text)
        return _BYTES[found.group(2)] if found and found.group(1) == kind else 0


Code = list[Instruction]


def parse(body: str) -> Code:
    """The instructions of a function in cuobjdump's text."""
    return [Instruction(int(at, 16), text) for at, text in _LINE.findall(body)]


def loops(code: Code) -> list[Code]:
    """The outermost loops: instructions from each of which control can come back to itself.

    A function that is called is none's part, and an indirect branch goes on as if not taken.
    """
    places = {instruction.address: i for i, instruction in enumerate(code)}
    successors: list[list[int]] = []
    for i, (_, text) in enumerate(code):
        always = not text.startswith("@")
        operation = text.split()[0 if always else 1]
        name = operation.partition(".")[0]
        after = [] if always and name in ("EXIT", "RET", "KILL") else [i + 1]
        if name == "BRA":
            target = code[i].target
            if always and operation.count(".DIV") == 0:
                after = []
            if target in places and places[target] != i:
                after.append(places[target])
        successors.append([at for at in after if at < len(code)])
    return [[code[i] for i in sorted(part)] for part in _components(successors) if len(part) > 1]


def _components(successors: list[list[int]]) -> list[list[int]]:
    """Tarjan's strongly connected components, without recursion."""
    order, low = [-1] * len(successors), [0] * len(successors)
    on_stack = [False] * len(successors)
    stack: list[int] = []
    found: list[list[int]] = []
    count = 0
    for root in range(len(successors)):
        if order[root] >= 0:
            continue
        work = [(root, 0)]
        while work:
            node, child = work.pop()
            if child == 0:
                order[node] = low[node] = count
                count += 1
                stack.append(node)
                on_stack[node] = True
            else:
                low[node] = min(low[node], low[successors[node][child - 1]])
            for i in range(child, len(successors[node])):
                other = successors[node][i]
                if order[other] < 0:
                    work += [(node, i + 1), (other, 0)]
                    break
                if on_stack[other]:
                    low[node] = min(low[node], order[other])
            else:
                if low[node] == order[node]:
                    part = []
                    while True:
                        part.append(stack.pop())
                        on_stack[part[-1]] = False
                        if part[-1] == node:
                            break
                    found.append(part)
    return found


def long_divisions(code: Code, part: Code) -> int:
    """Divisions of 64-bit integers in a part of the code, called or in line."""
    places = {instruction.address: i for i, instruction in enumerate(code)}
    count = 0
    for instruction in part:
        if "CALL.REL" in instruction.text and instruction.target in places:
            callee = code[places[instruction.target] :]
            # Compilers for 8.0 also leave a loop by a call, which comes to the kernel's end.
            ends = (i for i, other in enumerate(callee) if re.search(r"\b(RET|EXIT)\b", other.text))
            end = next(ends, len(callee))
            count += any("I2F.U64" in other.text for other in callee[:end])
        count += "I2F.U64" in instruction.text
    return count


def moved(part: Code, least: int = 1) -> int:
    """Bytes of global memory that a thread moves, by accesses of so many bytes or more."""
    sizes = [x.access("LDG") + x.access("STG") for x in part]
    return sum(size for size in sizes if size >= least)


def hot(code: Code) -> Code:
    """The loop that moves most bytes by the widest accesses, or all of a kernel without one."""
    widest_bytes = max(widest(code, "LDG"), widest(code, "STG")) // 8
    inner = max(
        loops(code), key=lambda part: (moved(part, widest_bytes), moved(part)), default=code
    )
    return inner if moved(inner, widest_bytes) else code


def widest(code: Code, kind: str) -> int:
    """Bits of the widest access of a kind, 0 without any."""
    return 8 * max((instruction.access(kind) for instruction in code), default=0)


def instructions_per_byte(code: Code) -> float:
    """Of the hot part, for each byte that it moves between global memory and a thread."""
    part = hot(code)
    return sum("NOP" not in x.text for x in part) / max(moved(part), 1)
