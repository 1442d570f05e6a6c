"""What the service refuses: the status, the field, and a message that its client understands."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import pytest
import torch
from fastapi.testclient import TestClient
from helpers.models import tiny_pipeline
from PIL import Image
from pydantic import ValidationError

from vqvae2_fast.codec import encode_images
from vqvae2_fast.serve import schemas
from vqvae2_fast.serve.app import create_app


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "expected"),
    [
        ("images", {"temperature": -1}, 422, "temperature", "greater than or equal to 0"),
        ("images", {"label": "x"}, 422, "label", "expected a label below 3"),
        ("images", {"count": 17}, 422, "count", "at most 16"),
        ("fill", {"source": {"codes": []}, "candidates": 65}, 422, "candidates", "at most 64"),
        ("images", {"colour": 1}, 422, "colour", "not permitted"),
        ("images", {"first_sample": 2**32 - 1, "count": 2}, 422, "first_sample", "2^32"),
        (
            "fill",
            {"source": {"codes": []}, "first_sample": 2**31, "candidates": 2},
            422,
            "first_sample",
            "2^32 / 2",
        ),
        ("images", {"label": [1] * 17}, 422, "label", "a list of at most 16, got 17"),
        ("images", {"known": [[[1, 2]], None]}, 422, "known.0", "4 rows of 4, got 1 row of"),
        ("images", {"known": [[[13] * 4] * 4, None]}, 422, "known.0", "codes in -1..12"),
        ("decode", {"codes": [[[-1] * 4] * 4, [[0] * 8] * 8]}, 422, "codes.0", "codes in 0..12"),
        ("decode", {}, 422, "codes", "either codes or a vq2 file"),
        ("decode", {"vq2": "AAAA"}, 400, "vq2", "VQ2C"),
        ("decode", {"vq2": "?"}, 422, "vq2", "base64"),
        ("complete", {"keep": 0.5}, 422, "source", "this field"),
        ("complete", {"source": {}}, 422, "source", "either an image or its codes"),
        ("complete", {"source": {"image": "AAAA"}}, 400, "source.image", "an image"),
        ("fill", {"source": {"codes": []}}, 422, "mask", "either mask or code_masks"),
        ("cross", {"sources": []}, 422, "sources", "2 maps"),
    ],
)
def test_an_error_names_the_field_what_was_expected_and_the_remedy(
    client, path, body, status, field, expected
):
    answer = client.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (status, field), error
    assert expected in error["expected"]
    assert error["remedy"]


@pytest.mark.parametrize(
    ("path", "body", "begins"),
    [
        ("images", {str(n): 0 for n in range(40)}, "expected only the fields count, label"),
        ("images", [1], "expected a JSON object, got [1]"),
        ("complete", {"seed": 1}, "expected this field, got none."),
    ],
)
def test_an_error_speaks_of_the_request_and_not_of_python(client, path, body, begins):
    expected = client.post(f"/v1/{path}", json=body).json()["error"]["expected"]
    assert expected.startswith(begins)


def test_a_file_of_another_pipeline_is_refused_without_the_remedies_of_python(client):
    file = encode_images(tiny_pipeline(2), torch.zeros(1, 3, 16, 16))
    answer = client.post("/v1/decode", json={"vq2": base64.b64encode(file).decode()})
    error = answer.json()["error"]
    assert re.fullmatch(r"the file was encoded with pipeline \w+, this is \w+\.", error["expected"])


def test_a_number_in_json_is_never_the_name_of_a_class(pipeline):
    served = replace(pipeline, class_names=("7", "8", "9"))
    with TestClient(create_app(served), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/images", json={"label": 9})
    expected = "expected a label below 3 or the beginning of a class name, got 9."
    assert (answer.status_code, answer.json()["error"]["expected"]) == (422, expected)


def test_a_body_that_is_no_json_is_refused(client):
    answer = client.post("/v1/images", content=b"{", headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, "")
    assert error["expected"].startswith("expected JSON: Expecting property name")


@pytest.mark.parametrize("size", [(8, 8), (5000, 4000)])
def test_an_upload_of_another_size_is_refused(client, size):
    file = io.BytesIO()
    Image.new("1", size).save(file, format="PNG")
    answer = client.post("/v1/encode", content=file.getvalue())
    assert answer.status_code == (400 if size == (8, 8) else 413)
    assert f"{size[0]}x{size[1]}" in answer.json()["error"]["expected"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/images", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_ones_there_are(client, method, path, allowed):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/v1/unknown", "/v1/images/", "/v1/../app.py", "//etc/passwd"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_found_where_nothing_is(client, method, path):
    answer = client.request(method, "http://127.0.0.1" + path)
    assert (answer.status_code, "allow" in answer.headers) == (404, False)


@pytest.mark.parametrize(
    "body",
    [
        {"label": "x" * 2**20},
        {"label": "x" * 1000},
        {"x" * 2**20: 1},
        {"source": {"x" * 2**20: 1}},
        {"known": [[[0] * width for width in range(100)], None]},
    ],
    ids=["label", "shorter label", "field", "inner field", "rows"],
)
def test_an_error_does_not_send_the_request_back(client, body):
    path = "complete" if "source" in body else "images"
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 422
    assert max(map(len, answer.json()["error"].values())) <= 400


@pytest.mark.parametrize("value", [b"[]", b"0"])
def test_json_of_more_values_than_any_request_has_is_not_parsed(client, value):
    content = b'{"known": [' + b",".join([value] * 2**20) + b"]}"
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/images", content=content, headers=headers)
    assert answer.status_code == 413
    assert "values" in answer.json()["error"]["expected"]


def test_a_mask_and_codes_of_every_pixel_are_few_enough(client):
    info = client.get("/v1/info").json()
    mask = [[True] * info["image"]["width"]] * info["image"]["height"]
    codes = [[[0] * level["width"]] * level["height"] for level in info["levels"]]
    answer = client.post("/v1/fill", json={"source": {"codes": codes}, "mask": mask})
    assert answer.status_code == 200


MANY = 10_000


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        (schemas.ImagesRequest, {"known": [[[-2] * MANY], None]}),
        (schemas.ImagesRequest, {"known": [[[-2]] * MANY, None]}),
        (schemas.ImagesRequest, {"known": ["x"] * MANY}),
        (schemas.FillRequest, {"source": {}, "mask": [[0] * MANY]}),
        (schemas.FillRequest, {"source": {}, "code_masks": [[[0]] * MANY]}),
        (schemas.FillRequest, {"source": {"codes": [[[-2]] * MANY]}}),
        (schemas.CrossRequest, {"sources": ["x"] * MANY}),
        (schemas.DecodeRequest, {"codes": ["x"] * MANY}),
        (schemas.DrawRequest, {"temperature": [-1] * MANY}),
        (schemas.DrawRequest, {"temperature": [1] * MANY}),
        (schemas.DrawRequest, {str(n): 0 for n in range(MANY)}),
    ],
)
def test_errors_do_not_grow_with_the_request(model, request_):
    with pytest.raises(ValidationError) as refused:
        model.model_validate(request_)
    assert refused.value.error_count() < 20
