"""What is pruned and how it is judged. A further subject (a sentence encoder, a text detector) is one more
entry of `subjects`: a file, calibration and test arrays, and `score` of a session."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from walker import Walker, batched
import latency

OWN = Path(__file__).resolve().parents[2] / "tests" / "models"
# Outputs of the torch module and of ONNX Runtime on the same file may differ by this.
EQUAL = 1e-4


@dataclass
class Subject:
    name: str
    label: str
    model: Path
    calibration: Path
    test: Path
    input: str = "input"

    def load(self):
        test = np.load(self.test)
        self.images, self.labels = test[self.input], test["labels"]
        self.samples = np.load(self.calibration)[self.input]
        self.feed = {self.input: self.images[:1]}
        self.walker = Walker(str(self.model))
        dense = latency.session(str(self.model))
        expected = self.outputs(dense, self.images[:64])
        seen = batched(self.walker, torch.from_numpy(self.images[:64])).numpy()
        gap = float(np.abs(expected - seen).max())
        if gap > EQUAL:
            raise SystemExit(
                f"{self.model}: torch and ONNX Runtime differ by {gap:.1e}, {EQUAL} is allowed"
            )
        self.dense_score = self.score(dense)
        return self

    def outputs(self, session, images, size=32):
        parts = [
            session.run(None, {self.input: images[i : i + size]})[0]
            for i in range(0, len(images), size)
        ]
        return np.concatenate(parts)

    def score(self, session):
        """Accuracy on the test images, %."""
        answers = self.outputs(session, self.images).argmax(1)
        return 100.0 * float((answers == self.labels).mean())

    def chosen(self, count, seed):
        """Indices of the calibration samples that everybody gets for this count and seed."""
        return np.random.default_rng(seed).permutation(len(self.samples))[:count]


def subjects(folder):
    """All subjects; those of CIFAR-10 only where `folder` (or its variable) names their files."""
    found = {}
    if folder:
        folder = Path(folder)
        for depth in (56, 20):
            name = f"resnet{depth}"
            found[name] = Subject(
                name,
                f"ResNet-{depth}, CIFAR-10",
                folder / f"{name}_cifar10.onnx",
                folder / "cifar10_calibration.npz",
                folder / "cifar10_test.npz",
            )
    for name, label in (
        ("digits_resnet", "ResNet with 1×1 shortcuts, digits"),
        ("digits_mobile", "MobileNetV2-like, digits"),
    ):
        for suffix, note in (("", ""), ("_bn", ", BatchNormalization kept")):
            found[name + suffix] = Subject(
                name + suffix,
                label + note,
                OWN / f"{name}{suffix}.onnx",
                OWN / "digits_calibration.npz",
                OWN / "digits_test.npz",
            )
    return found
