"""A PyTorch step of the same pair, for `gpu_parts.py`: WRN teacher and student, feature distillation of the last block of each group.

    python benchmarks/torch_step.py TEACHER STUDENT BATCH

prints one line of JSON: the device, and the seconds of T (the teacher's forward pass), S (the student's plain step) and of a
distillation step.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

REPETITIONS, STEPS = 10, 2


class Block(nn.Module):
    """Pre-activation block: BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 3x3."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        return kept + self.conv2(functional.relu(self.bn2(self.conv1(y))))


class WideResNet(nn.Module):
    """`wrn_D_W` for images of 32x32x3 and 100 classes. Gives the logits and the output of each group."""

    def __init__(self, name: str) -> None:
        super().__init__()
        depth, width = (int(part) for part in name.split("_")[1:])
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.widths, self.stem = widths[1:], nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.groups = nn.ModuleList(
            nn.Sequential(
                *(Block(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i and j == 0 else 1) for j in range((depth - 4) // 6))
            )
            for i in range(3)
        )
        self.bn, self.head = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 100)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x, features = self.stem(x), []
        for group in self.groups:
            x = group(x)
            features.append(x)
        return self.head(functional.relu(self.bn(x)).mean((2, 3))), features


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Median seconds of a step."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / STEPS

    once()
    return statistics.median(once() for _ in range(REPETITIONS))


def main(teacher_name: str, student_name: str, batch: int) -> None:
    """Prints the line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher, student = WideResNet(teacher_name).to(device).eval(), WideResNet(student_name).to(device)
    connectors = nn.ModuleList(
        nn.Sequential(nn.Conv2d(ours, theirs, 1, bias=False), nn.BatchNorm2d(theirs))
        for ours, theirs in zip(student.widths, teacher.widths, strict=True)
    ).to(device)
    images, labels = torch.rand(batch, 3, 32, 32, device=device), torch.arange(batch, device=device) % 100
    parameters = [*student.parameters(), *connectors.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def teach() -> list[torch.Tensor]:
        with torch.no_grad():
            return teacher(images)[1]

    def step(distils: bool) -> None:
        logits, features = student(images)
        loss = functional.cross_entropy(logits, labels)
        if distils:
            for i, (ours, theirs, connector) in enumerate(zip(features, teach(), connectors, strict=True)):
                feature, target = connector(ours), theirs.clamp(min=-1.0)
                counts = (feature > target) | (target > 0)
                loss = loss + 1e-3 / 2 ** (2 - i) * ((feature - target) ** 2 * counts).sum() / batch
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    seconds = {
        "T": timed(lambda: (teach(), None)[1], device),
        "S": timed(lambda: step(False), device),
        "step": timed(lambda: step(True), device),
    }
    print(json.dumps({"device": torch.cuda.get_device_name(0) if device.type == "cuda" else "the processor", **seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
