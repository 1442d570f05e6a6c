"""Runs pages of user code before and after changing their import, and compares numbers and times.

    python benchmarks/before_after.py [page ...] [--rounds 5]

Each page is text in which only the import differs. Both versions run in this process, in turns; the
first round of each is not counted. Prints the largest relative difference of what the pages
compute, the median seconds of each with their range, and no ratios. `lucidrains` runs the package
itself as "before". The pages of the port run `shared/plain_port.py`, its arithmetic in plain
PyTorch, because the port is not on a registry.
"""

from __future__ import annotations

import statistics
import time

from shared import measure

PORT, OURS = "shared.plain_port", "vqvae2_fast.compat.rosinality"
PAGES = {
    "lucidrains": (
        "from vector_quantize_pytorch import VectorQuantize",
        "from vqvae2_fast.compat.lucidrains import VectorQuantize",
        """
import torch
from torch import nn

torch.manual_seed(0)
encoder, decoder = nn.Linear(48, 64), nn.Linear(64, 48)
vq = VectorQuantize(dim=64, codebook_size=1024, decay=0.8, commitment_weight=1.0)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
numbers = []
for step in range(5):
    x = torch.randn(8, 1024, 48)
    quantized, indices, commit_loss = vq(encoder(x))
    loss = (decoder(quantized) - x).square().mean() + commit_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    numbers.append(loss.item())
""",
    ),
    "train_vqvae": (
        f"from {PORT} import VQVAE",
        f"from {OURS} import VQVAE",
        """
import torch
from torch import nn, optim

torch.manual_seed(0)
model = VQVAE()
optimizer = optim.Adam(model.parameters(), lr=3e-4)
criterion = nn.MSELoss()
numbers = []
for step in range(3):
    img = torch.rand(4, 3, 128, 128) * 2 - 1
    model.zero_grad()
    out, latent_loss = model(img)
    recon_loss = criterion(out, img)
    loss = recon_loss + 0.25 * latent_loss.mean()
    loss.backward()
    optimizer.step()
    numbers += [recon_loss.item(), latent_loss.item()]
""",
    ),
    "train_pixelsnail": (
        f"from {PORT} import PixelSNAIL",
        f"from {OURS} import PixelSNAIL",
        """
import torch
from torch import nn, optim

torch.manual_seed(0)
model = PixelSNAIL([32, 32], 512, 64, 5, 2, 2, 64, dropout=0.0)
optimizer = optim.Adam(model.parameters(), lr=3e-4)
criterion = nn.CrossEntropyLoss()
numbers = []
for step in range(3):
    top = torch.randint(512, (2, 32, 32))
    model.zero_grad()
    out, _ = model(top)
    loss = criterion(out, top)
    loss.backward()
    optimizer.step()
    numbers.append(loss.item())
""",
    ),
    "sample": (
        f"from {PORT} import PixelSNAIL",
        f"from {OURS} import PixelSNAIL",
        """
import torch

torch.manual_seed(0)
model = PixelSNAIL([6, 6], 512, 64, 5, 2, 2, 64).eval()
row, cache = torch.zeros(2, 6, 6, dtype=torch.int64), {}
with torch.no_grad():
    for i in range(6):
        for j in range(6):
            out, cache = model(row[:, : i + 1, :], condition=None, cache=cache)
            prob = torch.softmax(out[:, :, i, j] / 1.0, 1)
            row[:, i, j] = torch.multinomial(prob, 1).squeeze(-1)
numbers = row.flatten().tolist()
""",
    ),
}


def run(page: str) -> tuple[list[float], float]:
    scope: dict[str, object] = {}
    code = compile(page, "<page>", "exec")
    start = time.perf_counter()
    exec(code, scope)  # the pages above, nothing from outside
    return scope["numbers"], time.perf_counter() - start  # type: ignore[return-value]


def main() -> None:
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("pages", nargs="*", default=list(PAGES), help=f"of {', '.join(PAGES)}")
    options = measure.parse(parser)
    if unknown := sorted(set(options.pages) - set(PAGES)):
        parser.error(f"expected pages of {', '.join(PAGES)}, got {', '.join(unknown)}")
    print(f"{measure.machine()}, {options.rounds} rounds")
    for name in options.pages:
        before, after, text = PAGES[name]
        versions = (before + text, after + text)
        results = [run(page)[0] for page in versions]
        difference = max(abs(a - b) / (abs(a) or 1.0) for a, b in zip(*results, strict=True))
        times: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for each, page in zip(times, versions, strict=True):
                each.append(run(page)[1])
        described = [
            f"{statistics.median(each):.3f} s ({min(each):.3f}-{max(each):.3f})" for each in times
        ]
        print(
            f"{name}: relative difference {difference:.1e}; before {described[0]}, after "
            f"{described[1]}"
        )


if __name__ == "__main__":
    main()
