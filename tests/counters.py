"""Write the exact counters of every stone into profiles/ci.yaml: ``python tests/counters.py``, after a wanted change.

They are measured on the usual input of each. `stones run profiles/ci.yaml` then fails when one changes, even together
with the card: the change shows in the diff of that file.
"""

from __future__ import annotations

from pathlib import Path

from layers import catalog
from profiles import expect
from profiles.errors import Refusal
from profiles.inspecting import inspect, usual_shape
from profiles.subject import Setup, subject
from profiles.threads import using_threads

FILE = Path(__file__).resolve().parents[1] / "profiles" / "ci.yaml"
BEGIN, END = "  # Measured by tests/counters.py\n", "  # until here\n"
KEYS = (
    "params", "buffers", "flops.forward.executed", "flops.forward.kernels", "flops.backward.executed",
    "flops.backward.kernels", "memory.saved.measured", "memory.workspace.measured", "memory.workspace.backward",
)  # fmt: skip
OF_TRANSFORMS = ("params.total", "params.trainable", "params.set", "params.penalized")
LIBRARIES = ("convolution", "linalg")  # whose workspace may depend on the processor


def counters(record):
    """Every exact counter that ``record`` has, as an expectation spells it."""
    passes = [(record.get("flops") or {}).get(way) or {} for way in ("forward", "backward")]
    operations = [operation for each in passes for operation in each.get("by_op", ())]
    by_library = any(word in operation for operation in operations for word in LIBRARIES)
    for key in OF_TRANSFORMS if record["schema"].startswith("stones.transform/") else KEYS:
        if by_library and key.startswith("memory.workspace"):
            continue
        try:
            value = expect.find(record, key)
        except Refusal:
            continue
        if value is not None:
            yield f"{key}={value}"


def lines():
    """The entries of all stones of this library, in the order of the catalogue."""
    with using_threads(1):
        for stone in catalog.built_in().values():
            record = inspect(subject(stone, {}, Setup(shape=usual_shape(stone))), fvcore=False)
            found = list(counters(record))
            if not found:
                yield f"  - {stone.name}\n"
                continue
            yield f"  - stone: {stone.name}\n    expect:\n"
            yield from (f"      - {each}\n" for each in found)


def written(text):
    """``text`` with the entries between the two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "".join([before, BEGIN, *lines(), END, after])


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text(encoding="utf-8")), encoding="utf-8")
