"""Rendered text for the text detector and the text recogniser of PP-OCRv4.

    python -m venv v
    v/bin/pip install --no-deps rapidocr-onnxruntime==1.4.4
    v/bin/pip install onnxruntime==1.32.0 numpy==2.4.6 pillow==13.0.0
    v/bin/python benches/peers/ocr_data.py OUT

writes into OUT `det.onnx` and `rec.onnx` (as they are in the wheel, Apache-2.0) and for each of them
`NAME_calibration.npz` (three parts of the same size, one a seed) and `NAME_evaluation.npz`: pages of 320 x 320 and
lines of 48 x 320, dark sentences on bright ground in the font that Pillow brings, some blurred, all with noise,
normalised as PP-OCR does; and `rec_evaluation.txt`, what stands in the lines. `ocr_real.py` adds real text,
`foreign.py` prunes the networks and prints what is left.
"""

import importlib.util
import pathlib
import random
import shutil
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sentences import sentences

LINE, PAGE = (320, 48), (320, 320)
LINES, PAGES = (128, 200), (48, 32)  # calibration, evaluation
SEEDS = {"calibration": (0, 2, 3), "evaluation": (1,)}
NOISE = 0.02


def package():
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is None:
        sys.exit("rapidocr-onnxruntime is not installed: see the head of this file")
    return pathlib.Path(found.submodule_search_locations[0]) / "models"


class Printer:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.sentences = sentences()

    def words(self, count):
        words = self.chance.choice(self.sentences).split()
        start = self.chance.randrange(max(1, len(words) - count))
        return " ".join(words[start : start + count])

    def shade(self, low, high):
        return tuple(self.chance.randint(low, high) for _ in range(3))

    def line(self):
        """A line, and what stands in it: cut to the words that fit."""
        width, height = LINE
        image = Image.new("RGB", LINE, self.shade(150, 255))
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(self.chance.randint(height // 2, height * 3 // 4))
        left, text = self.chance.randint(2, 8), self.words(6)
        while " " in text and left + draw.textlength(text, font) > width - 4:
            text = text.rsplit(" ", 1)[0]
        draw.text((left, self.chance.randint(-4, 3)), text, self.shade(0, 90), font)
        if self.chance.random() < 0.4:
            image = image.filter(ImageFilter.GaussianBlur(self.chance.random()))
        return self.normalised(image, 0.5, 0.5), text

    def page(self):
        image = Image.new("RGB", PAGE, self.shade(150, 255))
        draw = ImageDraw.Draw(image)
        top = 5
        while top < PAGE[1] - 20:
            size = self.chance.randint(12, 32)
            place = (self.chance.randint(2, 60), top)
            text = self.words(self.chance.randint(1, 6))
            draw.text(place, text, self.shade(0, 90), ImageFont.load_default(size))
            top += size + self.chance.randint(4, 40)
        return self.normalised(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def normalised(self, image, mean, spread):
        values = np.asarray(image) / 255 + NOISE * self.noise.standard_normal((*image.size[::-1], 3))
        return ((values - mean) / spread).transpose(2, 0, 1).astype(np.float32)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in ("det", "rec"):
        shutil.copyfile(package() / f"ch_PP-OCRv4_{name}_infer.onnx", out / f"{name}.onnx")
    for number, (part, seeds) in enumerate(SEEDS.items()):
        lines, pages = [], []
        for seed in seeds:
            printer = Printer(seed)
            lines += [printer.line() for _ in range(LINES[number])]
            pages += [printer.page() for _ in range(PAGES[number])]
        np.savez(out / f"rec_{part}.npz", x=np.stack([image for image, _ in lines]))
        (out / f"rec_{part}.txt").write_text("\n".join(text for _, text in lines) + "\n")
        np.savez(out / f"det_{part}.npz", x=np.stack(pages))
    print("as", lines[0][1])


if __name__ == "__main__":
    main()
