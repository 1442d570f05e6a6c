"""Quantisers whose codes gradients reach."""

import pytest
import torch
import torch.nn.functional as F

import vqvae2_fast as vq2

K, D = 50, 6


def ibq_by_definition(quantizer, z):
    """z_q, indices and loss of rows `[N, D]` with all matrices of N×K."""
    codes, tau = quantizer.codebook, quantizer.temperature
    logits = z @ codes.t()
    soft = logits.softmax(1)
    indices = soft.argmax(1)
    hard = F.one_hot(indices, len(codes)).to(soft)
    z_q, rows = (hard + soft - soft.detach()) @ codes, hard @ codes
    loss = F.mse_loss(z_q, z) + F.mse_loss(z, rows.detach())
    loss = loss + quantizer.commitment_cost * F.mse_loss(rows, z.detach())
    sharp = (logits / tau).softmax(1)
    of_rows = -(sharp * (logits / tau).log_softmax(1)).sum(1).mean()
    mean = sharp.mean(0)
    return z_q, indices, loss + quantizer.entropy_weight * (of_rows + (mean * mean.log()).sum())


@pytest.mark.parametrize("masked", [False, True])
def test_ibq_is_its_definition(masked):
    torch.manual_seed(0)
    quantizer = vq2.IBQ(K, D, entropy_weight=0.3, temperature=0.5).double()
    z = torch.randn(4, 10, D, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 10) > 0.3 if masked else torch.ones(4, 10, dtype=torch.bool)
    upstream = torch.randn(int(mask.sum()), D, dtype=torch.float64)
    leaves = [z, quantizer.codebook]

    def with_gradients(z_q, indices, loss):
        grads = torch.autograd.grad((z_q * upstream).sum() + loss, leaves)
        return z_q, indices, loss, grads

    z_q, indices, loss = quantizer(z, mask=mask) if masked else quantizer(z)
    ours = with_gradients(z_q[mask], indices[mask], loss)
    theirs = with_gradients(*ibq_by_definition(quantizer, z[mask]))
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[2], theirs[2].float())
    torch.testing.assert_close(ours[3], theirs[3])


def by_cosine(vectors, codes):
    """Indices of the codes of largest cosine, from float64."""
    unit, units = (F.normalize(x.detach().double(), dim=1) for x in (vectors, codes))
    return (unit @ units.t()).argmax(1)


def losses(rows, z, commitment_cost):
    return F.mse_loss(rows, z.detach()) + commitment_cost * F.mse_loss(z, rows.detach())


@pytest.mark.parametrize("metric", ["cosine", "direction"])
def test_codes_chosen_by_cosine(metric):
    """As in LlamaGen, where all is of unit vectors, and as in DAC, where only the choice is."""
    torch.manual_seed(0)
    quantizer = vq2.VectorQuantizer(K, D, metric=metric)
    torch.nn.init.normal_(quantizer.codebook)
    z = (3 * torch.randn(200, D)).requires_grad_()
    leaves, upstream = [z, quantizer.codebook], torch.randn(200, D)

    indices = by_cosine(z, quantizer.codebook)
    of = (lambda x: F.normalize(x, dim=1)) if metric == "cosine" else (lambda x: x)
    vectors, rows = of(z), of(quantizer.codebook)[indices]
    loss = losses(rows, vectors, quantizer.commitment_cost)
    z_q = vectors + (rows - vectors).detach()
    expected = torch.autograd.grad((z_q * upstream).sum() + loss, leaves)

    ours = quantizer(z)
    grads = torch.autograd.grad((ours[0] * upstream).sum() + ours[2], leaves)
    assert torch.equal(ours[1], indices)
    assert torch.equal(quantizer.encode(z), indices)
    assert torch.equal(ours[0], rows)
    assert torch.equal(quantizer.lookup(indices), rows)
    torch.testing.assert_close(ours[2], loss)
    torch.testing.assert_close(grads, expected)


def test_the_entropies_in_pieces_are_those_of_all_rows(monkeypatch):
    torch.manual_seed(0)
    quantizer, z = vq2.IBQ(K, D), torch.randn(40, D)
    expected = quantizer(z)[2]
    monkeypatch.setattr("vqvae2_fast.modules.learnt_codes._MOST_LOGITS", 3 * K)
    torch.testing.assert_close(quantizer(z)[2], expected)


def test_a_folded_bridge_gives_the_same_codes():
    torch.manual_seed(0)
    bridge = vq2.VQBridge(K, D, codes_per_token=5, hidden_dim=16)
    optimizer = torch.optim.SGD(bridge.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        bridge(torch.randn(40, D))[2].backward()
        optimizer.step()
    assert len(bridge.codes().unique(dim=0)) > 1
    bridge.eval()
    folded, z = bridge.folded(), torch.randn(40, D)
    with torch.no_grad():
        for ours, theirs in zip(folded(z), bridge(z), strict=True):
            assert torch.equal(ours, theirs)
    assert [*folded.state_dict()] == ["codebook"]


def test_a_step_of_a_bridge_moves_codes_that_no_vector_chose():
    torch.manual_seed(0)
    bridge = vq2.VQBridge(K, D, codes_per_token=5, hidden_dim=16)
    torch.nn.init.normal_(bridge.recover.weight)
    before = bridge.codes().detach()
    _, indices, loss = bridge(torch.randn(3, D))
    loss.backward()
    with torch.no_grad():
        for weight in bridge.parameters():
            weight -= 0.1 * weight.grad
    moved = (bridge.codes() != before).any(1)
    assert len(indices.unique()) <= 3
    assert moved.all()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"codes_per_token": 7}, "codes_per_token"), ({"hidden_dim": 6}, "hidden_dim")],
)
def test_sizes_of_a_bridge_that_do_not_fit(options, name):
    with pytest.raises(ValueError, match=name):
        vq2.VQBridge(K, D, **{"codes_per_token": 5, **options})


def test_an_unknown_metric():
    with pytest.raises(ValueError, match="metric.*'l2'"):
        vq2.VectorQuantizer(K, D, metric="l2")
