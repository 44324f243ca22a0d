"""The command lines that stand at the end of every command's help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "mpsearch run --model mobilenetv2 --size-budget 1.5MB",
        "mpsearch run --model net.py:make --weights net.pt --data images --size-budget 300kB --out runs/mine",
        "mpsearch run --model net.py:make --data images --device npu-int4 --latency-budget 1ms --abits 4,8",
        "mpsearch run --model yolo.py:make --task detection --decode yolo.py:decode --data coco --size-budget 1MB",
    ),
    "reconstruct": (
        "mpsearch reconstruct --model mobilenetv2 --bits W4",
        "mpsearch reconstruct --model net.py:make --data images --bits W4A8 --out runs/uniform",
        "mpsearch reconstruct --model net.py:make --data images --bits bits.json",
    ),
    "sensitivity": ("mpsearch sensitivity --model net.py:make --data images --size-budget 300kB --out runs/mine",),
    "search": ("mpsearch search runs/mine",),
    "finalize": (
        "mpsearch finalize runs/mine",
        "mpsearch finalize runs/mine --pick knee",
        "mpsearch finalize runs/mine --pick all:6",
    ),
    "front": ("mpsearch front runs/mine", "mpsearch front runs/mine --points 20 --plot"),
    "explore": ("mpsearch explore runs/mine", "mpsearch explore runs/mine runs/other --out both.html"),
    "compare": ("mpsearch compare runs/mine runs/other --plot both.png",),
    "why": ("mpsearch why runs/mine budget", "mpsearch why runs/mine 12 --strongest 5"),
    "export": (
        "mpsearch export runs/mine --format csv --out bits.csv",
        "mpsearch export runs/mine --format onnx --out model.onnx",
    ),
    "check": ("mpsearch check model.onnx --run runs/mine",),
    "targets": ("mpsearch targets", "mpsearch targets onnxruntime"),
    "layers": (
        "mpsearch layers --model mobilenetv2",
        "mpsearch layers --model net.py:make --input 1x16000",
        "mpsearch layers --model mobilenetv2 --device npu-int4",
    ),
    "devices": ("mpsearch devices", "mpsearch devices npu-int4"),
    "profile": ("mpsearch profile --model mobilenetv2 --out here.csv",),
    "import-haq": ("mpsearch import-haq table.npy --model mobilenetv2 --unit 1ms --out haq.csv",),
    "demo-data": ("mpsearch demo-data --out demo",),
}


def epilog(name: str) -> str | None:
    """The end of a command's help; None for a command without examples."""
    lines = EXAMPLES.get(name, ())
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *lines)) if lines else None
