"""The codebook of `compat.lucidrains`: what decides that it has started, and the package's
names."""

import pytest
import torch
import vector_quantize_pytorch
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast.compat.lucidrains import ResidualVQ, VectorQuantize
from vqvae2_fast.modules import host

DIM, NUM_CODES = 12, 20


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pair(**arguments):
    """The package's module and ours with the same codebook."""
    theirs = vector_quantize_pytorch.VectorQuantize(DIM, NUM_CODES, **arguments)
    ours = VectorQuantize(DIM, NUM_CODES, **arguments)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture(params=["cpu", "as_on_a_gpu"])
def _reading(request, monkeypatch):
    """Buffers are read in every step on a CPU, and on a GPU until the codebook has started."""
    if request.param == "as_on_a_gpu":
        monkeypatch.setattr(host, "reading_synchronises", lambda _: True)


def set_buffers(module: VectorQuantize, codes: torch.Tensor) -> None:
    module.codebook = codes
    module._codebook.initted.fill_(True)


def set_data(module: VectorQuantize, codes: torch.Tensor) -> None:
    module._codebook.embed.data.copy_(codes[None])
    module._codebook.initted.data.copy_(torch.tensor([True]).squeeze())


def replace_buffers(module: VectorQuantize, codes: torch.Tensor) -> None:
    module._codebook.embed = codes[None].clone()
    module._codebook.initted = torch.tensor(True)


def load(module: VectorQuantize, codes: torch.Tensor) -> None:
    started = {"_codebook.embed": codes[None], "_codebook.initted": torch.tensor(True)}
    module.load_state_dict(module.state_dict() | started)


def copy_buffers(module: VectorQuantize, codes: torch.Tensor) -> None:
    other = VectorQuantize(DIM, NUM_CODES)
    other.codebook = codes
    for mine, theirs in zip(module.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)


@pytest.mark.usefixtures("_reading")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("put", [set_buffers, set_data, replace_buffers, load, copy_buffers])
def test_a_codebook_set_by_hand_is_not_started_again(put, training) -> None:
    module = VectorQuantize(DIM, NUM_CODES, kmeans_init=True, ema_update=False).train(training)
    codes = torch.randn(NUM_CODES, DIM)
    put(module, codes)
    module(torch.randn(2, 9, DIM) + 100)
    assert torch.equal(module.codebook, codes)


class ReadNoFlag(TorchDispatchMode):
    """Fails when the host reads one of the flags, because on a GPU it would wait for it."""

    def __init__(self, flags: list[torch.Tensor]) -> None:
        super().__init__()
        self.flags = [flag.data_ptr() for flag in flags]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = func is torch.ops.aten._local_scalar_dense.default
        assert not reads or args[0].data_ptr() not in self.flags
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_started_residual_quantiser_waits_for_no_flag_on_a_gpu(training, monkeypatch) -> None:
    monkeypatch.setattr(host, "reading_synchronises", lambda _: True)
    module = ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=NUM_CODES, kmeans_init=True)
    x = torch.randn(2, 30, DIM)
    module(x)
    module.train(training)(x)
    with ReadNoFlag([layer._codebook.initted for layer in module.layers]):
        module(x)


@pytest.mark.usefixtures("_reading")
def test_a_residual_quantiser_starts_again_where_its_flags_were_replaced() -> None:
    module = ResidualVQ(dim=DIM, num_quantizers=2, codebook_size=NUM_CODES, kmeans_init=True)
    module(torch.randn(2, 30, DIM))
    for layer in module.layers:
        layer._codebook.initted = torch.tensor(False)
    module(torch.randn(2, 30, DIM))
    assert all(layer._codebook.initted for layer in module.layers)


@pytest.mark.usefixtures("_reading")
def test_an_averaged_model_keeps_the_codebook_that_it_was_given() -> None:
    module = VectorQuantize(DIM, NUM_CODES, kmeans_init=True)
    averaged = AveragedModel(module)
    codes = torch.randn(NUM_CODES, DIM)
    set_buffers(module, codes)
    averaged.update_parameters(module)
    averaged.eval()(torch.randn(2, 9, DIM) + 100)
    assert torch.equal(averaged.module.codebook, codes)


def test_buffers_can_be_averaged() -> None:
    module = VectorQuantize(DIM, NUM_CODES)
    averaged = AveragedModel(module, use_buffers=True)
    first = module.codebook.clone()
    averaged.update_parameters(module)
    module.codebook = torch.randn(NUM_CODES, DIM)
    averaged.update_parameters(module)
    torch.testing.assert_close(averaged.module.codebook, (first + module.codebook) / 2)


@pytest.mark.usefixtures("_reading")
def test_a_functional_call_uses_the_buffers_that_it_is_given() -> None:
    module = VectorQuantize(DIM, NUM_CODES, kmeans_init=True).eval()
    codes = torch.randn(1, NUM_CODES, DIM)
    started = {name: buffer.clone() for name, buffer in module.named_buffers()}
    started |= {"_codebook.embed": codes, "_codebook.initted": torch.tensor(True)}
    functional_call(module, started, torch.randn(2, 9, DIM) + 100)
    assert torch.equal(started["_codebook.embed"], codes)
    module(torch.randn(2, 9, DIM) + 100)
    assert module.codebook.max() > 50


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (2, 9, DIM)),
        ({"use_cosine_sim": True}, (2, 9, DIM)),
        ({"heads": 2, "codebook_dim": 6, "separate_codebook_per_head": True}, (2, 2, 9, 6)),
    ],
    ids=["one", "cosine", "heads"],
)
def test_calling_the_codebook_itself(arguments, shape, training) -> None:
    theirs, ours = (module.train(training)._codebook for module in pair(**arguments))
    x = theirs.transform_input(torch.randn(shape))
    for actual, expected in zip(ours(x), theirs(x), strict=True):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.embed, theirs.embed, rtol=1e-4, atol=1e-5)


def test_attributes_of_the_package() -> None:
    theirs, ours = pair(threshold_ema_dead_code=2, eps=1e-4, kmeans_init=True)
    assert ours.eps == theirs.eps
    for name in (
        "codebook_size",
        "decay",
        "ema_update",
        "eps",
        "has_dead_code_replacement",
        "kmeans_iters",
        "num_codebooks",
        "reset_cluster_size",
        "threshold_ema_dead_code",
        "use_cosine_sim",
        "use_ddp",
    ):
        assert getattr(ours._codebook, name) == getattr(theirs._codebook, name), name


@pytest.mark.parametrize("threshold", [0, 1.5])
def test_assigning_the_threshold_of_dead_codes_acts(threshold) -> None:
    theirs, ours = pair(threshold_ema_dead_code=3)
    x = torch.randn(2, 40, DIM)
    for module in (theirs, ours):
        module._codebook.threshold_ema_dead_code = threshold
        torch.manual_seed(1)
        module(x)
    torch.testing.assert_close(ours._codebook.cluster_size, theirs._codebook.cluster_size)
    torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
def test_replacing_chosen_codes(cosine) -> None:
    theirs, ours = pair(threshold_ema_dead_code=2, use_cosine_sim=cosine)
    samples, chosen = torch.randn(1, 30, DIM), torch.rand(1, NUM_CODES) < 0.5
    for module in (theirs, ours):
        torch.manual_seed(1)
        module._codebook.replace(samples, chosen)
    for name, expected in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (0, 9, DIM)),
        ({}, (0, DIM)),
        ({"kmeans_init": True, "threshold_ema_dead_code": 2}, (0, 9, DIM)),
        ({"heads": 2}, (0, 9, DIM)),
        ({"heads": 2, "separate_codebook_per_head": True}, (0, 9, DIM)),
        ({"accept_image_fmap": True, "use_cosine_sim": True}, (0, DIM, 3, 3)),
    ],
    ids=["sequence", "vectors", "kmeans", "heads", "heads_apart", "image"],
)
def test_an_empty_batch_gives_empty_results(arguments, shape, training) -> None:
    module = VectorQuantize(DIM, NUM_CODES, **arguments).train(training)
    quantized, indices, loss = module(torch.zeros(shape))
    assert quantized.shape == shape
    assert indices.shape[0] == 0
    assert loss == 0
    assert module._codebook.initted == (not arguments.get("kmeans_init", False))


@pytest.mark.parametrize("shape", [(0, 9, DIM), (2, 0, DIM)], ids=["batch", "positions"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"codebook_diversity_loss_weight": 0.1},
        {"commitment_use_cross_entropy_loss": True},
        {"orthogonal_reg_weight": 0.1, "orthogonal_reg_active_codes_only": True},
    ],
    ids=["commitment", "diversity", "cross_entropy", "orthogonal"],
)
def test_each_loss_of_an_empty_batch_is_zero(arguments, shape) -> None:
    assert VectorQuantize(DIM, NUM_CODES, **arguments)(torch.zeros(shape))[2] == 0


@pytest.mark.parametrize("kmeans_init", [True, False])
def test_a_batch_that_is_masked_everywhere_teaches_nothing(kmeans_init) -> None:
    module = VectorQuantize(DIM, NUM_CODES, kmeans_init=kmeans_init)
    before = module.codebook.clone()
    loss = module(torch.randn(2, 9, DIM), mask=torch.zeros(2, 9).bool())[2]
    assert loss == 0
    assert torch.isfinite(module.codebook).all()
    assert module._codebook.initted == (not kmeans_init)
    torch.testing.assert_close(module.codebook, before)


@pytest.mark.parametrize("shape", [(0, 9, DIM), (2, 0, DIM)], ids=["batch", "positions"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"beam_size": 2}, {"shared_codebook": True, "threshold_ema_dead_code": 2}],
    ids=["plain", "beam", "shared"],
)
def test_an_empty_batch_passes_a_residual_quantiser(arguments, shape) -> None:
    module = ResidualVQ(dim=DIM, codebook_size=NUM_CODES, num_quantizers=3, **arguments)
    quantized, indices, losses = module(torch.zeros(shape))
    assert quantized.shape == shape
    assert indices.shape == (*shape[:2], 3)
    assert torch.equal(losses, torch.zeros(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantize(DIM, NUM_CODES, kmeans_init=True, threshold_ema_dead_code=2),
        lambda: VectorQuantize(
            DIM, NUM_CODES, use_cosine_sim=True, heads=2, codebook_dim=5, rotation_trick=False
        ),
        lambda: ResidualVQ(dim=DIM, codebook_size=NUM_CODES, num_quantizers=3),
        lambda: ResidualVQ(dim=DIM, codebook_size=NUM_CODES, num_quantizers=3, kmeans_init=True),
    ],
    ids=["kmeans", "cosine_heads", "residual", "residual_kmeans"],
)
def test_one_graph_holds_a_training_step(make) -> None:
    torch._dynamo.reset()
    eager, traced = make(), make()
    traced.load_state_dict(eager.state_dict())
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for step in range(3):
        x = torch.randn(2, 30, DIM)
        gradients = []
        for module in (eager, compiled):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(step)
            quantized, _, loss = module(leaf)
            (quantized.square().sum() + loss.sum()).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
    for name, expected in eager.state_dict().items():
        torch.testing.assert_close(traced.state_dict()[name], expected)


@pytest.mark.parametrize("kmeans_init", [False, True])
def test_a_compiled_residual_quantiser_starts_the_codebooks_that_have_not(kmeans_init) -> None:
    torch._dynamo.reset()
    sizes = {"dim": DIM, "codebook_size": NUM_CODES, "num_quantizers": 2}
    module = ResidualVQ(**sizes, kmeans_init=kmeans_init)
    module.load_state_dict(ResidualVQ(**sizes, kmeans_init=True).state_dict())
    torch.compile(module, fullgraph=True, backend="eager")(torch.randn(2, 30, DIM))
    assert all(layer._codebook.initted for layer in module.layers)
    assert module.codebooks.abs().sum() > 0


def test_a_compiled_residual_quantiser_that_has_started_searches_all_codebooks_at_once() -> None:
    torch._dynamo.reset()
    module = ResidualVQ(dim=DIM, codebook_size=NUM_CODES, num_quantizers=3).eval()
    called = []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(module, fullgraph=True, backend=backend)(torch.randn(2, 9, DIM))
    assert sum("residual_nearest_code" in name for name in called) == 1


def test_vmap_evaluates_an_ensemble() -> None:
    modules = [VectorQuantize(DIM, NUM_CODES).eval() for _ in range(3)]
    state, x = torch.func.stack_module_state(modules)[1], torch.randn(3, 1, 9, DIM)
    found = torch.func.vmap(lambda b, x: functional_call(modules[0], b, (x,))[1])(state, x)
    assert torch.equal(
        found, torch.stack([module(z)[1] for module, z in zip(modules, x, strict=True)])
    )
