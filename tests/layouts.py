"""Miniatures of labelled data sets in the layouts of their official downloads."""

import json

import numpy as np
from diffseg.formats.rle import compress, run_lengths
from diffseg.measure.evaluate import coco_stuff
from PIL import Image

from tests.labelled import draw_sample

IMAGES = 2
COCO_VALUES = (105, 123, 2)
"""Values of sky, grass and car in the label maps of COCO-Stuff."""


def drawn(values, void=255):
    """Yield small images, and label maps with these three values and some void."""
    for number in range(IMAGES):
        picture, truth = draw_sample(number)
        lookup = np.full(256, void, np.int64)
        lookup[:3] = values
        yield picture, lookup[truth]


def save(path, array):
    """Save an image or a label map, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def make_coco(folder, labels="stuffthingmaps/val2017"):
    """COCO val2017 with the label maps of COCO-Stuff, and the curated list."""
    names = []
    for number, (picture, truth) in enumerate(drawn(COCO_VALUES)):
        names.append(f"{number:012d}")
        save(folder / "val2017" / f"{names[-1]}.jpg", picture)
        save(folder / labels / f"{names[-1]}.png", truth)
    (folder / coco_stuff.LIST).write_text("\n".join(names))
    return folder


def make_coco_instances(folder):
    """COCO val2017 with the objects of COCO: cars as polygons, and a crowd of people as run lengths at the top."""
    images, annotations = [], []
    for number, (picture, truth) in enumerate(drawn(COCO_VALUES)):
        height, width = truth.shape
        save(folder / "val2017" / f"{number:012d}.jpg", picture)
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width})
        rows, columns = np.nonzero(truth == COCO_VALUES[2])
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        box = [float(x) for x in (left, top, right, top, right, bottom, left, bottom)]
        annotations.append({"segmentation": [box], "iscrowd": 0, "category_id": 3, "area": len(rows)})
        crowd = np.zeros(truth.shape, np.uint16)
        crowd[: top + 2] = 1
        counts = run_lengths(crowd, 2)[1]
        runs = {"size": list(truth.shape), "counts": compress(counts) if number else counts.tolist()}
        annotations.append({"segmentation": runs, "iscrowd": 1, "category_id": 1, "area": 9.0})
        for annotation in annotations[-2:]:
            annotation |= {"image_id": number, "bbox": [0, 0, 1, 1]}
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 3, "name": "car"}]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def make_cityscapes(folder):
    """Cityscapes val: road, sky, car."""
    for number, (picture, truth) in enumerate(drawn((23, 7, 26), void=0)):
        stem = f"lindau_{number:06d}_000019"
        save(folder / "leftImg8bit" / "val" / "lindau" / f"{stem}_leftImg8bit.png", picture)
        save(folder / "gtFine" / "val" / "lindau" / f"{stem}_gtFine_labelIds.png", truth)
    return folder


def make_voc(folder):
    """Pascal VOC 2012: aeroplane, background and car; borders are void."""
    names = []
    for number, (picture, truth) in enumerate(drawn((1, 0, 7))):
        names.append(f"2007_{number:06d}")
        save(folder / "JPEGImages" / f"{names[-1]}.jpg", picture)
        save(folder / "SegmentationClass" / f"{names[-1]}.png", truth)
    save(folder / "JPEGImages" / "2007_999999.jpg", picture)  # not in the list
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names) + "\n")
    return folder


def make_context(folder, form="original"):
    """Pascal Context in one of its forms: sky, grass, car, and background."""
    names = []
    values = {"original": (360, 187, 59), "mmsegmentation": (47, 29, 14), "diffcut": (49, 35, 6)}[form]
    for number, (picture, truth) in enumerate(drawn(values, void=255 if form == "diffcut" else 0)):
        names.append(f"2008_{number:06d}")
        if form == "diffcut":
            save(folder / "images" / "validation" / f"{names[-1]}.jpg", picture)
            save(folder / "annotations_ctx59" / "validation" / f"{names[-1]}.png", truth)
            continue
        save(folder / "JPEGImages" / f"{names[-1]}.jpg", picture)
        if form == "original":
            from scipy.io import savemat

            (folder / "trainval").mkdir(exist_ok=True)
            savemat(folder / "trainval" / f"{names[-1]}.mat", {"LabelMap": truth.astype(np.uint16)})
        else:
            save(folder / "SegmentationClassContext" / f"{names[-1]}.png", truth)
    if form != "diffcut":
        part = folder / "ImageSets" / ("Main" if form == "original" else "SegmentationContext")
        part.mkdir(parents=True)
        (part / "val.txt").write_text("\n".join(names) + "\n")
    return folder


def make_ade20k(folder, named=True):
    """ADE20K's SceneParse150: sky, grass, car; 0 is void."""
    for number, (picture, truth) in enumerate(drawn((3, 10, 21), void=0)):
        save(folder / "images" / "validation" / f"ADE_val_{number:08d}.jpg", picture)
        save(folder / "annotations" / "validation" / f"ADE_val_{number:08d}.png", truth)
    if named:
        rows = [f"{i}\t0.1\t1\t1\tname {i}, other name" for i in range(1, 151)]
        (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return folder
