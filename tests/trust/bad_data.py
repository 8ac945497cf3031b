"""Bad folders, images, list files, annotations and texts, and data that does not fit a method."""

import json

from bad_case import Case, annotations, bomb, cut, deep, floats, folder, link, picture


def json_of(**changes):
    return json.dumps({**annotations(), **changes})


FOLDERS = {
    "no such root": Case("{folder} --data.root nowhere", ("nowhere",)),
    "root in the environment": Case(
        "fit --config folder.yaml --data.root null",
        ("train", "--data.root"),
        {},
        {"LTBENCH_DATA": "nowhere"},
    ),
    "an empty folder": Case(
        "{folder} --data.root empty",
        ("empty",),
        {"empty": lambda p: p.mkdir()},
    ),
    "train is a file": Case("{folder}", ("images/train",), {"images/train": "x"}),
    "an empty class": Case(
        "{folder}",
        ("images/train/dog",),
        {"images/train/dog": lambda p: p.mkdir()},
    ),
    "a class that only test has": Case(
        "{folder}",
        ("images/test/dog",),
        {"images/test/dog": lambda p: p.mkdir()},
    ),
    "one class": Case(
        "{folder} --data.profile exp",
        ("images",),
        {"images/train/bee": None, "images/train/cat": None, "images/test": None},
    ),
    "one class natural": Case(
        "{folder}",
        ("images",),
        {"images/train/bee": None, "images/train/cat": None, "images/test": None},
    ),
    "a class name that is not UTF-8": Case(
        "{folder}", ("class folder",), {"images/train/b\udce9e/0.png": b"x"}
    ),
    "an image name that is not UTF-8": Case(
        "{folder}",
        ("bee",),
        {"images/train/bee/b\udce9e.png": b"x"},
    ),
    "every image left out": Case(
        "{folder} --data.on_bad_image skip",
        ("cat",),
        {f"images/train/cat/{n:03}.png": "x" for n in range(2)},
    ),
    "no unlabelled": Case(
        "{folder}",
        ("images/unlabelled",),
        {"images/unlabelled": lambda p: p.mkdir()},
    ),
    "an empty validation set": Case(
        "{folder}", ("no val images found",), {"images/val": lambda p: p.mkdir()}
    ),
    "a test set without classes": Case(
        "{folder}",
        ("no test images found",),
        {"images/test": None, "images/test/notes.txt": "none"},
    ),
    "a class name that a terminal obeys": Case(
        "{folder}",
        ("class '\\x1b[31mred'",),
        {"images/train/\x1b[31mred/0.png": picture},
    ),
    "a class name of two lines": Case(
        "{folder}", ("class 'a\\nb'",), {"images/train/a\nb/0.png": picture}
    ),
    "an exponential tail too long": Case(
        "{folder} --data.profile exp --data.imbalance_factor 100",
        ("profile",),
    ),
}
FIRST = "images/train/ant/000.png"
OTHER = "images/train/cat/001.png"
IMAGES = {
    "cut off": Case("{folder}", ("images/train/cat/001.png",), {OTHER: cut}),
    "in test": Case(
        "{folder}",
        ("images/test/bee/000.png",),
        {"images/test/bee/000.png": cut},
    ),
    "a folder": Case("{folder}", ("images/train/cat/001.png",), {OTHER: folder}),
    "16 bits": Case("{folder}", ("images/train/cat/001.png",), {OTHER: deep}),
    "a broken link": Case(
        "{folder}",
        ("images/train/cat/001.png",),
        {OTHER: link("gone.png")},
    ),
    "links in a circle": Case(
        "{folder}",
        ("images/train/cat/001.png",),
        {OTHER: lambda path: link(path.name)(path)},
    ),
    "of more pixels than memory holds": Case(
        "{folder}", ("images/train/cat/001.png",), {OTHER: bomb}
    ),
    "an image name that a terminal obeys": Case(
        "{folder}",
        ("\\x1b[2J.png",),
        {"images/train/ant/\x1b[2J.png": "none"},
    ),
    "floats": Case("{folder}", ("009.tiff",), {"images/train/ant/009.tiff": floats}),
    "no png bytes": Case(
        "{folder}",
        ("images/train/cat/001.png",),
        {OTHER: b"\xff\xd8\xff\xd9"},
    ),
    "resize": Case("{folder} --data.decoding.resize 4", ("resize",)),
    "crop share": Case(
        "{folder} --data.decoding.random_crop [0.5,0.2]",
        ("random_crop",),
    ),
    "in the data report": Case(
        "data --config folder.yaml --output tail.png",
        ("images/train/ant/000.png",),
        {FIRST: "no image"},
    ),
}
TRAIN = "lists/train.txt"
LISTS = {
    "no list": Case("{lists}", ("train.txt",), {TRAIN: None}),
    "a folder": Case("{lists}", ("train.txt",), {TRAIN: folder}),
    "an image with two labels": Case(
        "{lists}",
        ("lists/train.txt: all/000.png", "0 and 1"),
        {TRAIN: "all/000.png 0\nall/001.png 0\nall/000.png 1\n"},
    ),
    "a null byte": Case(
        "{lists}",
        ("lists/train.txt", "a\\x00b.png"),
        {TRAIN: b"all/000.png 0\na\0b.png 1\n"},
    ),
    "binary": Case("{lists}", ("lists/train.txt",), {TRAIN: bytes(range(256))}),
    "no label": Case("{lists}", ("lists/train.txt",), {TRAIN: "all/000.png\n"}),
    "commas": Case("{lists}", ("lists/train.txt",), {TRAIN: "all/000.png,0\n"}),
    "a negative label": Case(
        "{lists}",
        ("lists/train.txt",),
        {TRAIN: "all/000.png 0\nall/001.png -1\n"},
    ),
    "a huge label": Case(
        "{lists}",
        ("lists/train.txt",),
        {TRAIN: "all/000.png 0\nall/001.png 99999999999999999999\n"},
    ),
    "a label that memory cannot hold": Case(
        "{lists}",
        ("lists/train.txt",),
        {TRAIN: "all/000.png 0\nall/001.png 4000000000000\n"},
    ),
    "a class without an image": Case(
        "{lists}",
        ("lists/train.txt",),
        {TRAIN: "all/000.png 0\nall/001.png 2\n"},
    ),
    "a test label that training lacks": Case(
        "{lists}",
        ("lists/test.txt",),
        {"lists/test.txt": "all/004.png 7\n"},
    ),
    "missing images": Case(
        "{lists}",
        ("lists/train.txt",),
        {TRAIN: "".join(f"all/{n}.png {n % 2}\n" for n in range(9))},
    ),
    "a damaged image": Case("{lists}", ("002.png",), {"lists/all/002.png": cut}),
    "nothing left": Case(
        "{lists} --data.on_bad_image skip",
        ("lists/train.txt",),
        {TRAIN: "a.png 0\nb.png 1\n"},
    ),
}
NAME = "inat/train2018.json"
ANNOTATIONS = {
    "neither file": Case("{inat}", ("train2018.json",), {NAME: None}),
    "cut off": Case("{inat}", ("inat/train2018.json",), {NAME: cut}),
    "a list": Case("{inat}", ("inat/train2018.json",), {NAME: "[]"}),
    "not UTF-8": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: b'{"images": "\xe9"}'},
    ),
    "empty lists": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(annotations=[], images=[])},
    ),
    "an image that is not listed": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(images=[])},
    ),
    "a gap in the categories": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(categories=[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}])},
    ),
    "a category that is unknown": Case(
        "{inat}",
        ("train_val2018/000.png",),
        {NAME: json_of(annotations=[{"image_id": 0, "category_id": 9}])},
    ),
    "a category that is a word": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(annotations=[{"image_id": 0, "category_id": "moth"}])},
    ),
    "a file name that is null": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(images=[{"id": n, "file_name": None} for n in range(4)])},
    ),
    "mixed ids": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(categories=[{"id": 0, "name": "a"}, {"id": "1", "name": "b"}])},
    ),
    "an image id twice": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(images=[*annotations()["images"], {"id": 0, "file_name": "other.png"}])},
    ),
    "a category id twice": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: json_of(categories=[*annotations()["categories"], {"id": 0, "name": "ant"}])},
    ),
    "deep nesting": Case(
        "{inat}",
        ("inat/train2018.json",),
        {NAME: "[" * 100_000},
    ),
}
TABLE = "text/train.csv"
TEXTS = {
    "no table": Case("{text}", ("text/train.csv",), {TABLE: None}),
    "no label column": Case("{text}", ("text/train.csv",), {TABLE: "text\nhello\n"}),
    "no text column": Case("{text}", ("text/train.csv",), {TABLE: "words,label\nhello,a\n"}),
    "ragged rows": Case(
        "{text}",
        ("text/train.csv",),
        {TABLE: "text,label\na,b\nc,d,e\n"},
    ),
    "not UTF-8": Case(
        "{text}",
        ("text/train.csv",),
        {TABLE: "text,label\né,b\n".encode("latin1")},
    ),
    "broken jsonl": Case(
        "{text}",
        ("text/train.jsonl",),
        {TABLE: None, "text/train.jsonl": '{"text": \n'},
    ),
    "jsonl of null texts": Case(
        "{text}",
        ("text/train.jsonl",),
        {
            TABLE: None,
            "text/train.jsonl": '{"text": null, "label": "a"}\n{"text": "x", "label": "b"}\n',
        },
    ),
    "jsonl without a label": Case(
        "{text}",
        ("text/train.jsonl, row 1",),
        {
            TABLE: None,
            "text/train.jsonl": '{"text": "x", "label": null}\n{"text": "y", "label": "b"}\n',
        },
    ),
    "jsonl with a label of two parts": Case(
        "{text}",
        ("text/train.jsonl, row 1",),
        {TABLE: None, "text/train.jsonl": '{"text": "x", "label": {"a": 1}}\n'},
    ),
    "no tokens": Case("{text} --data.max_length 0", ("data.max_length is 0",)),
    "a label that a terminal obeys": Case(
        "{text} --config few.yaml",
        ("class '\\x1b[2Jb'",),
        {
            TABLE: "text,label\n" + "a,\x1b[2Jb\nc,d\n" * 9,
            "few.yaml": "data: {init_args: {protocol: {class_path: ReleasedProtocol, init_args: "
            "{n1: 2, m1: 2, rho_l: 1, rho_u: 1, val_per_class: 1}}}}\n",
        },
    ),
    "broken parquet": Case(
        "{text}",
        ("text/train.parquet",),
        {TABLE: None, "text/train.parquet": b"PAR1"},
    ),
    "a label that training lacks": Case(
        "{text}",
        ("wasps",),
        {"text/test.csv": "text,label\na,wasps\n"},
    ),
    "a folder": Case("{text}", ("text/train.csv",), {TABLE: folder}),
    "images": Case("{text} --data.source digits", ("digits",)),
    "tokenizer": Case("{text} --data.tokenizer tiny.yaml", ("tokenizer",)),
    "texts as images": Case("{fit} --data.source phrases", ("phrases",)),
}
SEMI = {
    "more than there are": Case("{semi} --data.protocol.n1 5000", ("5000",)),
    "no image of a class": Case("{semi} --data.protocol.rho_l 5000", ("5000",)),
    "ratio of 0": Case("{semi} --data.protocol.rho_u 0", ("rho_u",)),
    "no held-out images": Case("{semi} --data.protocol.val_per_class -1", ("-1",)),
    "unknown protocol": Case(
        "{semi} --data.protocol RelasedProtocol",
        ("RelasedProtocol", "Did you mean 'ReleasedProtocol'?"),
    ),
    "no steps": Case("{semi} --data.steps_per_epoch 0", ("data.steps_per_epoch",)),
    "no unlabelled images": Case("{fit} --model FixMatch", ("FixMatch",)),
    "no held-out set": Case(
        "{semi} --model CSST --model.backbone tiny_net --data.protocol.val_per_class 0",
        ("min_recall",),
    ),
    "unknown objective": Case(
        "{semi} --model CSST --model.objective min_recal",
        ("objective", "Did you mean 'min_recall'?"),
    ),
    "interval": Case(
        "{semi} --model CSST --model.update_interval 0",
        ("update_interval",),
    ),
    "no second view": Case("{fit} --model PaCo", ("PaCo",)),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "folder": FOLDERS,
        "image": IMAGES,
        "list": LISTS,
        "annotations": ANNOTATIONS,
        "text": TEXTS,
        "semi": SEMI,
    }.items()
    for name, case in cases.items()
}
