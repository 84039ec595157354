# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What files, folders, globs and manifests become, and which of them are refused."""

import json

import pytest

from examples.extraction.inputs import collect_inputs, inputs_digest, kind_of
from tests import media


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a/c.mp4", "a/notes.txt", "top.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        media.image(8, 8).save(tmp_path / name, format="PNG")
    return tmp_path


def ids(*entries) -> list[str]:
    return [item.id for item in collect_inputs([str(entry) for entry in entries])]


def test_folders_are_searched_in_order_and_ids_do_not_depend_on_where_they_are(folder, tmp_path_factory):
    assert ids(folder) == ["top.png", "a/c.mp4", "b/1.jpg", "b/2.PNG"]
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(moved)
    assert ids(moved) == ["top.png", "a/c.mp4", "b/1.jpg", "b/2.PNG"]
    moved.rename(folder)


def test_files_and_globs(folder):
    assert ids(folder / "top.png", folder / "b" / "*") == ["top.png", "1.jpg", "2.PNG"]
    assert ids(folder / "**" / "*.jpg") == ["b/1.jpg"]
    assert ids(folder / "a" / "notes.txt") == ["notes.txt"]
    assert ids(folder / "b", folder / "b" / "1.jpg") == ["1.jpg", "2.PNG"]


def test_manifests(folder):
    rows = [{"path": "b/1.jpg"}, {"path": "a/c.mp4", "id": 7, "num_frames": 4, "kind": "video"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    items = collect_inputs([str(folder / "list.jsonl")], num_frames=16)
    assert [(item.id, item.kind, item.num_frames) for item in items] == [("b/1.jpg", None, 16), ("7", "video", 4)]
    assert items[0].path == str(folder / "b" / "1.jpg")
    (folder / "list.csv").write_text("id,path,num_frames,kind\n,b/1.jpg,,\n7,a/c.mp4,4,video\n")
    assert collect_inputs([str(folder / "list.csv")], num_frames=16) == items
    assert inputs_digest(items) != inputs_digest(items[:1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"path": "x"}\n{"path": ', "a.jsonl, row 2: not JSON"),
        ("a.jsonl", '{"file": "x"}', "row 1: expected a field path"),
        ("a.jsonl", '["x"]', "row 1: expected a field path"),
        ("a.csv", "path,num_frames\nx,none\n", "row 1: num_frames must be"),
        ("a.csv", "path,num_frames\nx,0\n", "row 1: num_frames must be"),
        ("a.csv", "path,kind\nx,audio\n", "row 1: kind must be one of image, video"),
        ("a.csv", "id,path\n1,x\n1,y\n", "row 2: the id '1' stands for"),
        ("a.csv", "path\n", "no images or videos"),
    ],
)
def test_wrong_manifests_are_refused_by_row(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        collect_inputs([str(tmp_path / name)])


def test_two_files_of_one_name_need_ids(folder):
    media.image(8, 8).save(folder / "a" / "1.jpg")
    with pytest.raises(ValueError, match="'1.jpg' stands for .* in a manifest"):
        ids(folder / "a" / "1.jpg", folder / "b" / "1.jpg")


@pytest.mark.parametrize("entry", ["nowhere.jpg", "*.nothing", "nowhere.jsonl"])
def test_what_names_nothing_is_refused(tmp_path, entry):
    with pytest.raises(ValueError, match="--inputs"):
        ids(tmp_path / entry)


def test_content_decides_what_a_file_is(folder):
    items = {item.id: item for item in collect_inputs([str(folder)])}
    assert kind_of(items["a/c.mp4"]) == "image"
    media.write_video(folder / "a" / "c.mp4", media.frames(3))
    assert kind_of(items["a/c.mp4"]) == "video"
