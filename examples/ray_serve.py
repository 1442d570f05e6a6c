"""The service on many machines: every replica of a Ray Serve deployment draws by itself.

    pip install 'vqvae2_fast[serve]' 'ray[serve]'
    serve run examples.ray_serve:app      # in a Ray cluster, or on this machine alone
    python examples/ray_serve.py          # two replicas here, compared with the library

An image depends only on its seed, its number and its settings. So any replica may answer a request,
and draws the card of an image from another one bit for bit. docs/ray-serve.md says more.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from ray import serve

import vqvae2_fast as vq2
from vqvae2_fast.sampling import draw_batch
from vqvae2_fast.sampling.series import resolved_settings
from vqvae2_fast.serve.app import create_app
from vqvae2_fast.serve.images import as_png

if TYPE_CHECKING:
    from starlette.types import ASGIApp

ADDRESS = "http://127.0.0.1:8000"


def service() -> ASGIApp:
    """What each replica runs. Ray's proxies are reached by other names than those of loopback."""
    pipeline = vq2.from_preset(os.environ.get("VQVAE2_FAST_PRESET", "emoji32"))
    return create_app(pipeline, token=os.environ.get("VQVAE2_FAST_TOKEN"), loopback=False)


# A replica draws what it has together; requests beyond `max_ongoing_requests` wait in the proxy.
app = serve.deployment(
    serve.ingress(service)(),
    name="vqvae2",
    num_replicas=2,
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 1},
).bind()


def ask(request: dict[str, Any]) -> bytes:
    sent = urllib.request.Request(
        f"{ADDRESS}/v1/images",
        data=json.dumps(request).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(sent, timeout=300) as answer:
        return answer.read()


def main() -> int:
    """Asks two replicas on this machine many times for the same images, and compares them all."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False)
    serve.run(app)
    request = {"label": 3, "count": 2, "seed": 7}
    with ThreadPoolExecutor(8) as pool:
        answers = [json.loads(answer)["images"] for answer in pool.map(ask, [request] * 16)]
    events = ask({**request, "stream": True}).decode().split("\n\n")
    serve.shutdown()
    pipeline = vq2.from_preset("emoji32")
    settings = resolved_settings(pipeline, **pipeline.recommended, seed=7)
    drawn = draw_batch(pipeline, range(2), settings, labels=torch.tensor([3, 3]))
    expected = [as_png(image) for image in drawn.images]
    same = sum([image["png"] for image in answer] == expected for answer in answers)
    streamed = [json.loads(e.split("\ndata: ")[1])["png"] for e in events if "event: image" in e]
    rows = sum(event.startswith("event: row") for event in events)
    print(f"{same} of {len(answers)} answers are the library's images")
    print(f"streamed: {rows} rows, the same images: {streamed == expected}")
    return 0 if same == len(answers) and streamed == expected else 1


if __name__ == "__main__":
    sys.exit(main())
