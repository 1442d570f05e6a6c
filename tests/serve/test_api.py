"""What the service answers: the images of the library, and its codes."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from helpers.compare import needs_kernels

from vqvae2_fast import sample_images
from vqvae2_fast.codec import encode_images
from vqvae2_fast.data.images import to_float
from vqvae2_fast.data.pixels import decode_image, pictures
from vqvae2_fast.sampling import draw_batch, level_settings
from vqvae2_fast.serve.app import create_app
from vqvae2_fast.serve.limits import Limits
from vqvae2_fast.serve.orders import Desk

DRAWING = {
    "count": 3,
    "label": 1,
    "seed": 5,
    "first_sample": 2,
    "temperature": [0.9, 0.8],
    "top_k": [0, 7],
    "guidance_scale": 1.5,
}


def library_images(pipeline, **changes):
    """What the library draws for DRAWING, one image at a time, as uint8 `[H, W, C]`."""
    values = {**DRAWING, **changes}
    count, first = values.pop("count"), values.pop("first_sample")
    values["top_k"] = [k or None for k in values["top_k"]]
    label = values.pop("label")
    return [
        np.asarray(
            pictures(sample_images(pipeline, 1, labels=[label], first_sample=first + n, **values))[
                0
            ]
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def encoded(client, photograph):
    answer = client.post("/v1/encode", content=photograph)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_images_are_those_of_the_library(client, pipeline, pixels):
    answer = client.post("/v1/images", json=DRAWING).json()
    expected = library_images(pipeline)
    assert [image["sample"] for image in answer["images"]] == [2, 3, 4]
    for image, own in zip(answer["images"], expected, strict=True):
        assert np.array_equal(pixels(image["png"]), own)


def test_a_stream_tells_every_row_and_then_the_same_images(client, events):
    whole = client.post("/v1/images", json=DRAWING).json()["images"]
    told = events(client.post("/v1/images", json={**DRAWING, "stream": True}).text)
    assert [name for name, _ in told] == ["start"] + ["row"] * 12 + ["image"] * 3 + ["done"]
    maps = {"top": np.full((3, 4, 4), -1), "bottom": np.full((3, 8, 8), -1)}
    for name, content in told:
        if name == "row":
            maps[content["level"]][content["images"], content["row"]] = content["codes"]
    images = [content for name, content in told if name == "image"]
    assert images == whole
    for image in images:
        for level, codes in zip(("top", "bottom"), image["codes"], strict=True):
            assert np.array_equal(maps[level][image["index"]], codes)


@needs_kernels
def test_a_card_draws_its_image_again(client):
    image = client.post("/v1/images", json=DRAWING).json()["images"][1]
    card = image["card"]
    again = client.post(card["endpoint"], json=card["request"]).json()["images"][0]
    assert again["png"] == image["png"]
    assert again["log_prob"] == image["log_prob"]


def test_what_is_left_out_is_what_the_pipeline_recommends(pipeline, client):
    recommended = replace(pipeline, recommended={"temperature": [0.5, 0.25]})
    with TestClient(create_app(recommended), base_url="http://127.0.0.1") as other:
        card = other.post("/v1/images", json={}).json()["images"][0]["card"]
    assert card["request"]["temperature"] == [0.5, 0.25]
    assert card["request"]["guidance_scale"] == [1.0, 1.0]


def test_classes_are_used_in_turn(client, pipeline, pixels):
    answer = client.post("/v1/images", json={**DRAWING, "label": [2, "none"]}).json()
    for n, label in enumerate([2, None, 2]):
        image = answer["images"][n]
        assert image["card"]["request"]["label"] == label
        expected = library_images(pipeline, label=label)[n]
        assert np.array_equal(pixels(image["png"]), expected)


def test_classes_of_a_group_are_used_in_turn(pipeline):
    grouped = replace(pipeline, class_names=("Pet - cat", "Cow", "Pet - dog"))
    with TestClient(create_app(grouped), base_url="http://127.0.0.1") as other:
        answer = other.post("/v1/images", json={"count": 5, "label": ["pet", "cow"]}).json()
        labels = [image["card"]["request"]["label"] for image in answer["images"]]
        assert labels == [0, 1, 2, 1, 0]
        upload = other.post("/v1/encode", params={"label": "pet"}, content=b"")
        assert upload.status_code == 422
        assert "one class" in upload.json()["error"]["expected"]


@pytest.mark.parametrize(("names", "expected"), [(("cat", "none", "dog"), 1), ((), None)])
def test_none_is_a_class_of_this_name_or_no_class(pipeline, names, expected):
    desk = Desk(replace(pipeline, class_names=names), Limits())
    assert desk.labels(["none"], 1) == (expected,)


def test_known_codes_are_kept(client):
    top = [[3] * 4, [-1] * 4, [5] * 4, [-1] * 4]
    image = client.post("/v1/images", json={"known": [top, None]}).json()["images"][0]
    assert image["codes"][0][0] == [3] * 4
    assert image["codes"][0][2] == [5] * 4
    assert image["card"]["request"]["known"] == [top, None]


@needs_kernels
def test_an_upload_is_scaled_and_encoded_as_by_the_library(
    client, encoded, pipeline, photograph, pixels
):
    image = to_float(decode_image(io.BytesIO(photograph), "it", (3, 16, 16), True))
    codes = pipeline.vqvae.encode(image[None])
    assert encoded["codes"] == [level[0].tolist() for level in codes]
    back = pipeline.vqvae.decode(codes).clamp(-1, 1)
    assert np.array_equal(pixels(encoded["reconstruction"]), np.asarray(pictures(back)[0]))
    assert base64.b64decode(encoded["vq2"]) == encode_images(pipeline, image[None])
    error = pixels(encoded["reconstruction"]).astype(float) - pixels(encoded["image"])
    assert encoded["psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)))


@needs_kernels
def test_a_compressed_file_and_its_codes_decode_to_the_reconstruction(client, encoded):
    for given in ({"vq2": encoded["vq2"]}, {"codes": encoded["codes"]}):
        answer = client.post("/v1/decode", json=given).json()
        assert answer["images"] == [encoded["reconstruction"]]


@needs_kernels
@pytest.mark.parametrize(("count", "said"), [(1, "1 image or tile"), (16, "16 images or tiles")])
def test_a_compressed_file_of_more_images_than_a_request_may_have_is_refused(pipeline, count, said):
    file = encode_images(pipeline, torch.zeros(count + 1, 3, 16, 16))
    app = create_app(pipeline, replace(Limits(), count=count))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/decode", json={"vq2": base64.b64encode(file).decode()})
    assert answer.status_code == 413
    expected = answer.json()["error"]["expected"]
    assert expected == f"expected a file of at most {said}, got one of more."


def test_completion_keeps_the_upper_rows(client, encoded, photograph):
    source = {"image": base64.b64encode(photograph).decode()}
    answer = client.post("/v1/complete", json={"source": source, "keep": 0.5, "count": 2}).json()
    for image in answer["images"]:
        known = image["card"]["request"]["known"]
        for level, codes, told in zip(encoded["codes"], image["codes"], known, strict=True):
            half = len(level) // 2
            assert codes[:half] == told[:half] == level[:half]
            assert told[half:] == [[-1] * len(level)] * half
    first, second = (image["codes"] for image in answer["images"])
    assert first != second


def test_a_hole_is_drawn_where_its_pixels_are(client, encoded):
    mask = np.zeros((16, 16), bool)
    mask[5, 6] = True  # pixel of code (1, 1) of the top map and of code (2, 3) of the bottom map
    request = {"source": {"codes": encoded["codes"]}, "mask": mask.tolist(), "count": 8}
    request |= {"temperature": 5.0}
    for level, places in enumerate([(1, 1), (2, 3)]):
        maps = np.array(
            [i["codes"][level] for i in client.post("/v1/fill", json=request).json()["images"]]
        )
        changed = (maps != encoded["codes"][level]).any(0)
        assert changed[places]
        assert changed.sum() == 1


def test_variations_keep_the_top(client, encoded):
    request = {"source": {"codes": encoded["codes"]}, "count": 2}
    images = client.post("/v1/variations", json=request).json()["images"]
    assert all(image["codes"][0] == encoded["codes"][0] for image in images)
    assert images[0]["codes"][1] != images[1]["codes"][1]


def test_crossing_takes_each_level_from_its_image(client, encoded):
    other = client.post("/v1/images", json=DRAWING).json()["images"][0]
    sources = [{"codes": other["codes"]}, {"codes": encoded["codes"]}]
    image = client.post("/v1/cross", json={"sources": sources}).json()["images"][0]
    assert image["codes"] == [other["codes"][0], encoded["codes"][1]]


def test_candidates_are_the_fillings_of_the_library(client, encoded, pipeline):
    mask = np.zeros((16, 16), bool)
    mask[4:9, 3:12] = True
    request = {"source": {"codes": encoded["codes"]}, "mask": mask.tolist()}
    request |= {"candidates": 5, "label": 2, "seed": 9, "count": 2}
    images = client.post("/v1/fill", json=request).json()["images"]
    for n, image in enumerate(images):
        known = [torch.tensor([codes]) for codes in encoded["codes"]]
        for codes in known:
            cell = 16 // codes.shape[1]
            codes[:, 4 // cell : -(-9 // cell), 3 // cell : -(-12 // cell)] = -1
        drawn = draw_batch(
            pipeline,
            range(n, n + 1),
            level_settings(2, seed=9),
            labels=torch.tensor([2]),
            known=known,
            candidates=5,
        )
        assert image["codes"] == [codes[0].tolist() for codes in drawn.codes]
        assert list(image["effective_candidates"].values()) == drawn.effective[0]
        card = image["card"]
        assert (
            client.post(card["endpoint"], json=card["request"]).json()["images"][0]["png"]
            == (image["png"])
        )


def test_previews_show_what_is_drawn(client, events):
    request = {**DRAWING, "stream": True, "previews": True}
    told = events(client.post("/v1/images", json=request).text)
    names = [name for name, _ in told if name != "row"]
    # One after the top level; the image itself follows the bottom level.
    assert names == ["start"] + ["preview"] * 3 + ["image"] * 3 + ["done"]
    assert {content["index"] for name, content in told if name == "preview"} == {0, 1, 2}


def test_codebooks_are_described(client, pipeline):
    for level, quantizer in zip(
        client.get("/v1/codebooks").json()["levels"], pipeline.vqvae.quantizers, strict=True
    ):
        assert len(level["palette"]) == len(level["use"]) == 13
        assert len(set(level["palette"])) == 13
        assert sum(level["use"]) == pytest.approx(1, abs=1e-4)
        distances = torch.cdist(quantizer.codebook, quantizer.codebook).fill_diagonal_(torch.inf)
        assert [near[0] for near in level["neighbours"]] == distances.argmin(1).tolist()


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v1/info"])
def test_what_can_be_got_has_a_head(client, path):
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_unknown_codes_are_shown_as_the_mean_of_the_codebook(pipeline):
    vqvae = pipeline.vqvae
    codes = [torch.full((1, 4, 4), 3), torch.full((1, 8, 8), 5)]
    with torch.no_grad():
        assert torch.equal(vqvae.decode_partly(codes), vqvae.decode(codes))
    codes[1][:, 4:] = -1
    partly = vqvae.decode_partly(codes)
    codebook = vqvae.quantizers[1].codebook
    before, codes[1][:, 4:] = codebook[7].clone(), 7
    codebook[7] = codebook.mean(0)
    expected = vqvae.decode(codes)
    codebook[7] = before
    torch.testing.assert_close(partly, expected)
