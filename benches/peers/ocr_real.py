"""Photographs and scans of text, beside the rendered text that `ocr_data.py` makes: lines and pieces of pages.

    v/bin/pip download --no-deps scikit-image==0.26.0 -d PACKAGES
    v/bin/pip download --no-deps --no-binary :all: ocrmypdf==16.10.4 -d PACKAGES
    v/bin/pip install scipy==1.17.1
    v/bin/python benches/peers/ocr_real.py OUT PACKAGES

Nothing of the two packages is installed: their pictures are read from the archives. OUT is the folder that
`ocr_data.py` wrote. The lines are what PP-OCR's own dense detector finds in the pictures, cut to 48 x 320 between
words; the pieces of pages are 320 x 320. Into OUT go `rec_real.npz`, `det_real.npz` and `rec_real.txt`, what the
dense recogniser reads: nobody has written down what stands in the pictures.
"""

import io
import pathlib
import re
import sys
import tarfile
import zipfile

import numpy as np
import onnxruntime
from PIL import Image
from scipy import ndimage

from ocr_data import LINE, PAGE

# Each picture, and by what it is made smaller for the detector, so that letters are as large as on its pages.
PICTURES = {
    "page.png": 1.0,  # a page of a book, photographed in bad light (scikit-image; the others are of ocrmypdf)
    "linn.png": 0.4,  # a brochure in two columns, scanned
    "typewriter.png": 0.2,  # a typewritten page, scanned
    "baiona_color.jpg": 1.0,  # labels on a map
    "c02-22.pdf": 0.5,  # a page of an old book, scanned
}
THRESHOLD, GROW = 0.3, 1.6  # of PP-OCR's detector: text, and by what its areas grow
LEAST_TEXT = 0.02  # of a piece's area


def members(folder):
    """(name, bytes) of every file in the archives."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                yield from ((name, archive.read(name)) for name in archive.namelist())
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                yield from ((m.name, archive.extractfile(m).read()) for m in archive if m.isfile())


def picture(name, data):
    if name.endswith(".pdf"):  # the largest JPEG in it
        found = re.findall(rb"\xff\xd8\xff.*?\xff\xd9(?=\s*endstream)", data, re.S)
        data = max(found, key=len)
    return Image.open(io.BytesIO(data)).convert("RGB")


def pictures(folder):
    found = {}
    for path, data in members(folder):
        name = path.rsplit("/", 1)[-1]
        if name in PICTURES and name not in found and ("/data/" in path or "/resources/" in path):
            found[name] = picture(name, data)
    missing = sorted(set(PICTURES) - set(found))
    if missing:
        sys.exit(f"not in the packages of {folder}: {', '.join(missing)}")
    return {name: found[name] for name in PICTURES}


def normalised(image, mean, spread):
    return ((np.asarray(image) / 255 - mean) / spread).transpose(2, 0, 1).astype(np.float32)


def for_detector(image):
    return normalised(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Dense:
    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)

    def __call__(self, x):
        return self.session.run(None, {"x": x})[0]


def boxes(image, scale, detector):
    """Where lines of text are in the picture, from top to bottom."""
    size = [max(32, round(side * scale / 32) * 32) for side in image.size]
    found = detector(for_detector(image.resize(size, Image.BICUBIC))[None])[0, 0] > THRESHOLD
    back = [before / after for before, after in zip(image.size, size)]
    for rows, columns in ndimage.find_objects(ndimage.label(found)[0]):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        grow = GROW * height * width / (2 * (height + width))
        left, top = (columns.start - grow) * back[0], (rows.start - grow) * back[1]
        right, bottom = (columns.stop + grow) * back[0], (rows.stop + grow) * back[1]
        if height >= 3 and width >= height:
            yield max(0, left), max(0, top), min(image.size[0], right), min(image.size[1], bottom)


def lines(image, scale, detector):
    """Lines of the recogniser's size; longer ones are cut where the fewest strokes are."""
    width, height = LINE
    for box in boxes(image, scale, detector):
        line = image.crop([round(side) for side in box])
        line = line.resize((max(1, round(line.size[0] * height / line.size[1])), height), Image.BICUBIC)
        while line.size[0] > 8:
            end = line.size[0]
            if end > width:
                strokes = np.asarray(line.convert("L"), float)[:, :width].std(0)
                quiet = np.convolve(strokes, np.ones(5) / 5, "same")
                end = width * 2 // 3 + int(quiet[width * 2 // 3 : width - 2].argmin())
            part = np.zeros((3, height, width), np.float32)
            part[:, :, :end] = normalised(line.crop((0, 0, end, height)), 0.5, 0.5)
            yield part
            line = line.crop((end, 0, line.size[0], height))


def pieces(image, scale, detector):
    """Pieces of the detector's size in which dense finds text."""
    width, height = PAGE
    image = image.resize([max(PAGE[0], round(side * scale)) for side in image.size], Image.BICUBIC)
    for top in range(0, image.size[1] - height // 2, height):
        for left in range(0, image.size[0] - width // 2, width):
            left, top = min(left, image.size[0] - width), min(top, image.size[1] - height)
            piece = for_detector(image.crop((left, top, left + width, top + height)))
            if (detector(piece[None]) > THRESHOLD).mean() > LEAST_TEXT:
                yield piece


def main():
    out, packages = map(pathlib.Path, sys.argv[1:3])
    detector, recogniser = Dense(out / "det.onnx"), Dense(out / "rec.onnx")
    letters = recogniser.session.get_modelmeta().custom_metadata_map["character"].splitlines()
    letters = ["", *letters, " "]
    kept, texts, areas = [], [], []
    for name, image in pictures(packages).items():
        found = list(lines(image, PICTURES[name], detector))
        read = []
        for line in found:
            steps = recogniser(line[None])[0].argmax(1)
            text = "".join(
                letters[c] for at, c in enumerate(steps) if c and (at == 0 or c != steps[at - 1])
            )
            # Of a line in which dense reads next to nothing there is nothing to agree on.
            if len(text.strip()) >= 3:
                kept.append(line)
                read.append(text)
        texts += read
        own = list(pieces(image, PICTURES[name], detector))
        areas += own
        print(f"{name}: {len(read)} of {len(found)} lines, {len(own)} pieces; {read[:2]}")
    np.savez(out / "rec_real.npz", x=np.stack(kept))
    np.savez(out / "det_real.npz", x=np.stack(areas))
    (out / "rec_real.txt").write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
