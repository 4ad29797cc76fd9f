"""Annotations of photos, as COCO and Pascal VOC write them, right ones and those that lie."""

import json

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import Objects
from condconv_serve.errors import DataSetError
from condconv_serve.inputs.annotations import AnnotatedImage, Tally, load_annotations, place

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def photo(directory, name="a.png", size=(60, 40)):
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file)
    return file


def box(at=(10, 5, 20, 30), *, number=1, image=1, category=7, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(at), **more}


def coco(directory, *annotations, images=None, categories=CATEGORIES, name="boxes.json"):
    images = [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}] if images is None else images
    document = {"images": images, "annotations": list(annotations), "categories": categories}
    (directory / name).write_text(json.dumps(document))
    return directory / name


def voc(directory, *objects, name="a", size=(60, 40), filename=None, root="annotation"):
    items = "".join(
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), at, strict=True))
        + "</bndbox></object>"
        for kind, at, difficult in objects
    )
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    file = directory / "Annotations" / f"{name}.xml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"<{root}><filename>{filename or name + '.png'}</filename>{said}{items}</{root}>")
    return file


def left_out(found):
    return {one.what: (one.count, one.examples) for one in found.left_out}


def test_coco(tmp_path):
    photo(tmp_path, "images/a.png")
    photo(tmp_path, "empty.png")
    images = [
        {"id": 1, "file_name": "a.png", "width": 60, "height": 40},
        {"id": "two", "file_name": "empty.png"},
        {"id": 3, "file_name": "gone.png"},
    ]
    crowd = box((0, 0, 5.5, 4), number=2, category=3, iscrowd=1)
    found = load_annotations(tmp_path, coco(tmp_path, box(), crowd, images=images))
    assert found.names == ("dog", "cat"), "in the order of their ids"
    one, empty = found.images
    assert (one.file, one.size) == (tmp_path / "images" / "a.png", (60, 40))
    assert one.objects.boxes.tolist() == [[5, 10, 35, 30], [0, 0, 4, 5.5]]
    assert one.objects.classes.tolist() == [1, 0]
    assert one.objects.crowd.tolist() == [False, True]
    assert (empty.file.name, empty.size, len(empty.objects)) == ("empty.png", None, 0), "photos of nothing are kept"
    assert left_out(found) == {"images that aren't there": (1, ("gone.png",))}


def test_coco_beside_other_folders(tmp_path):
    photo(tmp_path, "train2017/a.png")
    (tmp_path / "annotations").mkdir()
    coco(tmp_path / "annotations", box(), name="instances_train2017.json")
    assert [image.file for image in load_annotations(tmp_path).images] == [tmp_path / "train2017" / "a.png"]


def test_voc(tmp_path):
    photo(tmp_path, "JPEGImages/a.png")
    photo(tmp_path, "JPEGImages/b.png")
    voc(tmp_path, ("cat", (1, 1, 60, 40), 0), ("ant", (11, 6, 30, 35), 1))
    voc(tmp_path, name="b", size=None)
    found = load_annotations(tmp_path)
    one, empty = found.images
    assert found.names == ("ant", "cat")
    assert one.objects.boxes.tolist() == [[0, 0, 40, 60], [5, 10, 35, 30]], "pixels are counted from 1"
    assert (one.objects.classes.tolist(), one.objects.crowd.tolist()) == ([1, 0], [False, True])
    assert (empty.size, len(empty.objects)) == (None, 0)

    listed = tmp_path / "ImageSets" / "Main" / "train.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("a 1\n\n")
    assert [image.file.name for image in load_annotations(tmp_path, listed).images] == ["a.png"]


@pytest.mark.parametrize(
    ("annotation", "what"),
    [
        (box((10, 5, 0, 30)), "boxes without an area"),
        (box((10, 5, 20, -30)), "boxes without an area"),
        (box((10, 5, float("nan"), 30)), "boxes that are no four finite numbers"),
        (box((10, 5, float("inf"), 30)), "boxes that are no four finite numbers"),
        (box((10, 5, 1e300, 30)), "boxes that are no four finite numbers"),
        (box((10, 5, "20", 30)), "boxes that are no four finite numbers"),
        (box((10, 5, True, 30)), "boxes that are no four finite numbers"),
        (box((10, 5, 20)), "boxes that are no four finite numbers"),
        ({"id": 1, "image_id": 1, "category_id": 7}, "boxes that are no four finite numbers"),
        (box(image=99), "boxes of images that `images` doesn't list"),
        (box(image=[1]), "boxes of images that `images` doesn't list"),
        (box(number=1), "boxes that are there twice"),
    ],
)
def test_boxes_of_coco_that_are_left_out(annotation, what, tmp_path):
    photo(tmp_path)
    found = load_annotations(tmp_path, coco(tmp_path, box(number=5), annotation))
    assert len(found.images[0].objects) == 1
    assert left_out(found) == {what: (1, ("annotation 1",)), "classes without a box": (1, ("dog",))}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"annotations": [box(category=9)]}, "annotation 1 has the category_id 9, which `categories` doesn't list"),
        ({"annotations": [box(category=None)]}, "annotation 1 has the category_id None"),
        ({"annotations": [5]}, "annotation no. 1 is no object"),
        ({"annotations": []}, "holds no box"),
        ({"annotations": {}}, "it has no list `annotations`"),
        ({"images": []}, "describes no image that is there"),
        ({"images": [{"id": 1}]}, "image 1 has no file_name"),
        ({"images": [{"file_name": "a.png"}]}, "no. 1 of `images` has no id"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "two of `images` have the id 1"),
        ({"images": [{"id": n, "file_name": "a.png"} for n in (1, 2)]}, "images 1 and 2 are the same file a.png"),
        ({"images": [{"id": 1, "file_name": "../a.png"}]}, "lead out of the data set: 1 (../a.png)"),
        ({"images": [{"id": 1, "file_name": "/etc/hosts"}]}, "lead out of the data set: 1 (/etc/hosts)"),
        ({"images": [{"id": 1, "file_name": "a\0.png"}]}, "lead out of the data set"),
        ({"categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "cat"}]}, "two categories are called cat"),
        ({"categories": [{"id": 7, "name": "cat"}] * 2}, "two of `categories` have the id 7"),
        ({"categories": [{"id": 7, "name": " "}]}, "category 7 has no name that a class can have"),
        ({"categories": None}, "it has no list `categories`"),
    ],
)
def test_coco_documents_that_are_refused(given, says, tmp_path):
    photo(tmp_path)
    file = coco(tmp_path, box())
    file.write_text(json.dumps(json.loads(file.read_text()) | given))
    with pytest.raises(DataSetError) as error:
        load_annotations(tmp_path, file)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "holds no COCO annotations"),
        (f'{{"images": [{"9" * 5000}]}}', "is not valid JSON"),
    ],
)
def test_other_json_is_refused(text, says, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataSetError, match=says):
        load_annotations(tmp_path)


def test_huge_documents_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("condconv_serve.inputs.annotations.coco.MAX_BYTES", 100)
    with pytest.raises(DataSetError, match="the most is 100"):
        load_annotations(tmp_path, coco(tmp_path, box()))


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "it declares a document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/hosts"><annotation/>', "it declares a document type"),
        ("<annotation>", "no XML"),
        ("", "no XML"),
        ('<?xml version="1.0" encoding="nothing"?><annotation/>', "no XML"),
        ("<html/>", "its root is 'html'"),
    ],
)
def test_xml_that_is_left_out(text, says, tmp_path):
    photo(tmp_path)
    photo(tmp_path, "b.png")
    voc(tmp_path, ("cat", (1, 1, 9, 9), 0), name="b")
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    found = load_annotations(tmp_path)
    assert [image.file.name for image in found.images] == ["b.png"]
    ((count, (example,)),) = left_out(found).values()
    assert count == 1
    assert example.startswith("a.xml: ")
    assert says in example


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (("cat", (9, 1, 9, 9), 0), "boxes without an area"),
        (("cat", (1, 9, 9, 1), 0), "boxes without an area"),
        (("cat", ("nan", 1, 9, 9), 0), "boxes that are no four finite numbers"),
        (("cat", ("", 1, 9, 9), 0), "boxes that are no four finite numbers"),
        (("", (1, 1, 9, 9), 0), "objects without a name that a class can have"),
        (("ant", (1, 1, 20, 20), 0), "boxes that are there twice"),
    ],
)
def test_objects_of_voc_that_are_left_out(item, what, tmp_path):
    photo(tmp_path)
    voc(tmp_path, ("ant", (1, 1, 20, 20), 0), item)
    found = load_annotations(tmp_path)
    assert left_out(found) == {what: (1, ("a.xml",))}
    assert len(found.images[0].objects) == 1


def test_two_files_for_one_photo(tmp_path):
    photo(tmp_path)
    voc(tmp_path, ("ant", (1, 1, 20, 20), 0))
    voc(tmp_path, name="b", filename="a.png")
    with pytest.raises(DataSetError, match=r"are both for the photo a\.png"):
        load_annotations(tmp_path)


def test_where_no_annotations_are(tmp_path):
    with pytest.raises(DataSetError, match="holds no annotations: they are COCO's JSON file"):
        load_annotations(tmp_path)
    with pytest.raises(DataSetError, match="is no directory"):
        load_annotations(tmp_path / "gone")
    with pytest.raises(DataSetError, match="There are no annotations"):
        load_annotations(tmp_path, tmp_path / "gone.csv")
    for name in ("train.json", "val.json"):
        coco(tmp_path, box(), name=name)
    with pytest.raises(DataSetError, match=r"several files that may be annotations: train\.json, val\.json"):
        load_annotations(tmp_path)
    (tmp_path / "names.txt").write_text("../../x\n")
    with pytest.raises(DataSetError, match="is no name of an XML file"):
        load_annotations(tmp_path, tmp_path / "names.txt")


def known(*boxes):
    return Objects(np.array(boxes, float), np.arange(len(boxes)), np.zeros(len(boxes), bool))


def test_boxes_are_cut_at_the_edges_of_their_photo(tmp_path):
    image = AnnotatedImage(tmp_path / "a.png", (60, 40), known([-5, 0, 20, 20], [0, 0, 40.8, 60], [50, 0, 60, 9]))
    tally = Tally()
    placed = place(image, 60, 40, tally)
    assert placed.boxes.tolist() == [[0, 0, 20, 20], [0, 0, 40, 60]]
    assert placed.classes.tolist() == [0, 1]
    assert [(one.count, str(one)) for one in tally.result()] == [
        (1, "boxes outside of their photo: 1 (a.png)"),
        (1, "boxes that reach beyond their photo, which are cut at its edge: 1 (a.png)"),
    ]


@pytest.mark.parametrize(("size", "says"), [((61, 40), "for 61 x 40 pixels"), ((40, 60), "Its EXIF data turn it")])
def test_annotations_for_a_photo_of_another_size(size, says, tmp_path):
    with pytest.raises(DataSetError, match=says):
        place(AnnotatedImage(tmp_path / "a.png", size, known()), 60, 40, Tally())


def test_classes_by_their_names(tmp_path):
    photo(tmp_path)
    found = load_annotations(tmp_path, coco(tmp_path, box()))
    assert found.names == ("cat",)
    again = found.named(["ant", "cat"], source="here")
    assert again.names == ("ant", "cat")
    assert again.images[0].objects.classes.tolist() == [1]
    assert again.fingerprint() != found.fingerprint()
    again.images[0].file.unlink()
    with pytest.raises(DataSetError, match="can't be read"):
        again.fingerprint()
    with pytest.raises(DataSetError, match=r"here: unknown classes cat\. Known are ant\."):
        found.named(["ant"], source="here")


def test_many_are_counted_and_few_named():
    tally = Tally()
    for number in range(9):
        tally.add("boxes without an area", f"annotation {number}")
    (one,) = tally.result()
    named = "annotation 0, annotation 1, annotation 2, annotation 3"
    assert str(one) == f"boxes without an area: 9 ({named} and 5 more)"
