"""PixelSNAIL: causal in every form, and each part where it should be."""

import pytest
import torch
from helpers.models import prior_inputs, tiny_configs, tiny_prior

from vqvae2_fast.models.prior import without_variants
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.modules.gated import GatedResidual

CONFIGS = tiny_configs()


def logits_of(prior, inputs):
    with torch.no_grad():
        return prior(inputs["codes"], inputs["condition"], inputs["labels"])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_up_to_a_position_do_not_see_its_code(name):
    prior = tiny_prior(**CONFIGS[name])
    inputs = prior_inputs(prior, 1)
    before = logits_of(prior, inputs).flatten(2)  # [1, K, H·W]
    last = before.shape[2] - 1
    for position in range(last + 1):
        codes = inputs["codes"].clone()
        codes.view(-1)[position] = (codes.view(-1)[position] + 1) % prior.config.num_embeddings
        after = logits_of(prior, {**inputs, "codes": codes}).flatten(2)
        same = (before == after).all(dim=1)[0]
        assert same[: position + 1].all(), f"a logit at or before {position} changed"
        # The next position in the row always sees it through the stem; the end of a row is seen
        # from below.
        assert position == last or not same.all(), f"no logit sees position {position}"


@pytest.mark.parametrize("name", CONFIGS)
def test_first_rows_alone_give_their_logits(name):
    prior = tiny_prior(**CONFIGS[name])
    inputs = prior_inputs(prior, 2)
    whole = logits_of(prior, inputs)
    for rows in range(1, prior.config.size[0] + 1):
        part = logits_of(prior, {**inputs, "codes": inputs["codes"][:, :rows]})
        torch.testing.assert_close(part, whole[:, :, :rows])


def test_background_is_the_position_from_minus_half_to_half():
    background = tiny_prior(size=(4, 6)).background
    assert background.shape == (1, 2, 4, 6)
    torch.testing.assert_close(background[0, 0, :, 2], torch.tensor([-0.5, -0.25, 0.0, 0.25]))
    torch.testing.assert_close(background[0, 1, 1, :3], torch.tensor([-1 / 2, -1 / 3, -1 / 6]))


@pytest.mark.parametrize("level", [0, 1])
def test_every_coarser_map_conditions_the_logits(level):
    prior = tiny_prior(condition_sizes=((1, 3), (2, 3)))
    inputs = prior_inputs(prior, 1)
    before = logits_of(prior, inputs)
    inputs["condition"][level] = (inputs["condition"][level] + 1) % 13
    assert (logits_of(prior, inputs) != before).all(dim=1).all()


def test_a_tensor_stands_for_a_list_of_one_map():
    prior = tiny_prior(condition_sizes=((2, 3),))
    inputs = prior_inputs(prior, 2)
    listed = prior(inputs["codes"], inputs["condition"])
    assert torch.equal(prior(inputs["codes"], inputs["condition"][0]), listed)


def test_each_label_and_no_class_give_their_own_logits():
    prior = tiny_prior(num_classes=3)
    codes = prior_inputs(prior, 1)["codes"].expand(4, -1, -1)
    logits = prior(codes, labels=torch.arange(4))  # the first code is drawn by its label too
    for a in range(4):
        for b in range(a):
            assert not torch.equal(logits[a, :, 0, 0], logits[b, :, 0, 0])


def test_a_prior_without_its_variants_gives_the_same_logits_for_every_other_label():
    kind = {"num_classes": 2, "num_subclasses": 2, "condition_sizes": ((1, 3),)}
    prior = tiny_prior(num_variants=2, **kind)
    prior.vqvae_hash, prior.class_names = "sha256:1", ("a", "b")
    lean = without_variants(prior)
    count = lean.config.num_labels
    assert (count, prior.config.num_labels) == (3 + 4, 3 + 4 + 2 * 3)
    inputs = {**prior_inputs(prior, count), "labels": torch.arange(count)}
    assert torch.equal(logits_of(lean, inputs), logits_of(prior, inputs))
    assert (lean.vqvae_hash, lean.class_names, lean.training) == ("sha256:1", ("a", "b"), False)


def test_the_words_of_a_prior_without_its_variants_keep_their_logits():
    prior = tiny_prior(num_classes=2, num_variants=2, num_words=3)
    lean = without_variants(prior)
    inputs = prior_inputs(prior, 4)
    words = torch.tensor([[0, -1], [1, -1], [2, 0], [-1, -1]])

    def logits(model):
        numbers = torch.where(words < 0, -1, words + model.config.label_layout.first_word)
        told = torch.cat([torch.tensor([[0], [1], [2], [0]]), numbers], dim=1)
        return logits_of(model, {**inputs, "labels": told})

    assert torch.equal(logits(lean), logits(prior))


def test_a_label_with_words_is_the_sum_of_their_rows():
    prior = tiny_prior(num_classes=2, num_words=3)
    inputs = prior_inputs(prior, 1)
    told = logits_of(prior, {**inputs, "labels": torch.tensor([[1, 3, 5, -1]])})
    with torch.no_grad():
        for layer in prior.modules():
            if isinstance(layer, GatedResidual) and layer.classes is not None:
                rows = layer.classes.weight
                rows[0] = rows[1] + rows[3] + rows[5]
    assert torch.equal(told, logits_of(prior, {**inputs, "labels": torch.tensor([0])}))


def test_the_order_of_absent_words_is_of_no_consequence():
    prior = tiny_prior(num_classes=2, num_words=3)
    inputs = prior_inputs(prior, 1)
    one = logits_of(prior, {**inputs, "labels": torch.tensor([[1, -1, 4]])})
    assert torch.equal(one, logits_of(prior, {**inputs, "labels": torch.tensor([[1, 4, -1]])}))


@pytest.mark.parametrize("wrong", [[3, -1], [0, 1], [0, 6], [0, -2]], ids=str)
def test_a_class_and_words_in_one_anothers_place_are_refused(wrong):
    prior = tiny_prior(num_classes=2, num_words=3)
    with pytest.raises(ValueError, match="expected (labels|words) in"):
        logits_of(prior, {**prior_inputs(prior, 1), "labels": torch.tensor([wrong])})


def test_a_prior_without_words_refuses_labels_with_some():
    prior = tiny_prior(num_classes=2)
    with pytest.raises(ValueError, match=r"expected labels \[1\], got \[1, 2\]"):
        logits_of(prior, {**prior_inputs(prior, 1), "labels": torch.tensor([[0, -1]])})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name):
    prior = tiny_prior(num_output_layers=1, **CONFIGS[name]).train()
    inputs = prior_inputs(prior, 4)
    prior.loss(inputs["codes"], inputs["condition"], inputs["labels"]).backward()
    unused = [n for n, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_loss_is_nats_per_code():
    prior = tiny_prior()
    codes = prior_inputs(prior, 3)["codes"]
    log_prob = prior(codes).log_softmax(dim=1).gather(1, codes[:, None])
    torch.testing.assert_close(prior.loss(codes), -log_prob.mean())


def test_weight_norm_is_optional():
    names = [name for name, _ in tiny_prior(weight_norm=False).named_parameters()]
    assert not [name for name in names if name.endswith("weight_g")]


def test_dead_taps_of_a_loaded_file_change_nothing():
    prior = tiny_prior(mask="exclude")
    inputs = prior_inputs(prior, 1)
    before = logits_of(prior, inputs)
    state = prior.state_dict()
    for name in [name for name in state if "layers" in name and name.endswith("weight_v")]:
        state[name][:, :, -1, 1:] = 3.0
    prior.load_state_dict(state)
    assert torch.equal(logits_of(prior, inputs), before)


def test_dropout_leaves_evaluation_alone():
    prior = tiny_prior(dropout=0.5, attention_dropout=0.5)
    inputs = prior_inputs(prior, 1)
    assert torch.equal(logits_of(prior, inputs), logits_of(prior, inputs))
    prior.train()
    assert not torch.equal(logits_of(prior, inputs), logits_of(prior, inputs))


@pytest.mark.parametrize(
    ("dropout_on", "shares"), [("logits", {1.0}), ("probabilities", {0.0, 2.0})]
)
def test_attention_drops_what_the_config_says(dropout_on, shares):
    prior = tiny_prior(dropout=0.0, attention_dropout=0.5, attention_dropout_on=dropout_on)
    attention, seen = prior.blocks[0].attention, []
    attention.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    torch.manual_seed(0)
    prior.train()(prior_inputs(prior, 8)["codes"])
    ((_, key, output),) = seen
    # The second position sees the first alone. Its one weight is the softmax of one logit, which is
    # 1 whatever the logit; of a dropped probability nothing is left, and a kept one is doubled.
    share = output[:, :, 0, 1] / attention.value(key)[:, :, 0, 0]  # [B, C]
    assert set(share.detach().round(decimals=4).flatten().tolist()) == shares


@pytest.mark.parametrize(
    "name",
    ["include, attention, alone, classes", "exclude, no attention, conditioned twice"],
)
def test_traces_as_one_graph(name):
    prior = tiny_prior(**CONFIGS[name])
    inputs = prior_inputs(prior, 2)
    traced = torch.compile(prior, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits_of(traced, inputs), logits_of(prior, inputs))


@pytest.mark.inductor
def test_compiled_equals_eager():
    # One layer of each kind, because compiling takes seconds per layer.
    prior = tiny_prior(
        num_blocks=1,
        layers_per_block=1,
        num_classes=2,
        condition_sizes=((2, 3),),
        num_condition_layers=0,
    )
    inputs = prior_inputs(prior, 2)
    compiled = torch.compile(prior, fullgraph=True)
    torch.testing.assert_close(logits_of(compiled, inputs), logits_of(prior, inputs))


def test_logits_are_channels_last():
    prior = tiny_prior()
    logits = prior(prior_inputs(prior, 2)["codes"])
    assert logits.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_gets_its_maps_channels_last(name):
    prior = tiny_prior(**CONFIGS[name])
    inputs = prior_inputs(prior, 2)
    wrong = []

    def look(layer, arguments):
        x = arguments[0]
        if not x.is_contiguous(memory_format=torch.channels_last):
            wrong.append((type(layer).__name__, list(x.shape), x.stride()))

    for layer in prior.modules():
        if isinstance(layer, GatedResidual | SameConv2d | CausalConv2d):
            layer.register_forward_pre_hook(look)
    prior.loss(inputs["codes"], inputs["condition"], inputs["labels"])
    assert wrong == []


def test_even_kernel_of_downright_is_allowed():
    prior = tiny_prior(mask="downright", kernel_size=2)
    assert logits_of(prior, prior_inputs(prior, 1)).shape == (1, 13, 4, 6)


def _call(prior, codes=None, **changes):
    inputs = {**prior_inputs(prior, 2), **changes}
    return prior(inputs["codes"] if codes is None else codes, inputs["condition"], inputs["labels"])


BAD_CALLS = {
    "code too large": (
        {},
        {"codes": torch.full((2, 4, 6), 13)},
        ValueError,
        r"codes in 0\.\.12, got .*13",
    ),
    "code negative": ({}, {"codes": torch.full((2, 4, 6), -1)}, ValueError, r"codes in 0\.\.12"),
    "codes of float": ({}, {"codes": torch.zeros(2, 4, 6)}, TypeError, "codes int64"),
    "too many rows": (
        {},
        {"codes": torch.zeros(2, 5, 6, dtype=torch.int64)},
        ValueError,
        r"codes \[B, 1\.\.4, 6\].*got \[2, 5, 6\]",
    ),
    "labels missing": ({"num_classes": 3}, {"labels": None}, ValueError, "labels are missing"),
    "labels not wanted": (
        {},
        {"labels": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        "no labels",
    ),
    "label too large": (
        {"num_classes": 3},
        {"labels": torch.tensor([0, 4])},
        ValueError,
        r"labels in 0\.\.3, got values in 0\.\.4",
    ),
    "labels of another batch": (
        {"num_classes": 3},
        {"labels": torch.tensor([0])},
        ValueError,
        r"labels \[2\], got \[1\]",
    ),
    "condition missing": (
        {"condition_sizes": ((2, 3),)},
        {"condition": None},
        ValueError,
        r"condition to be 1 map",
    ),
    "condition of wrong size": (
        {"condition_sizes": ((2, 3),)},
        {"condition": torch.zeros(2, 3, 3, dtype=torch.int64)},
        ValueError,
        r"condition\[0\] \[2, 2, 3\], got \[2, 3, 3\]",
    ),
    "condition code too large": (
        {"condition_sizes": ((2, 3),)},
        {"condition": torch.full((2, 2, 3), 13)},
        ValueError,
        r"condition\[0\] in 0\.\.12",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(name):
    config, changes, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        _call(tiny_prior(**config), **changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": (12, 12), "condition_sizes": ((4, 4), (6, 6))}, "must divide the next"),
        (
            {"condition_sizes": ((2, 3),), "condition_kernel_size": 2},
            "condition_kernel_size, got 2",
        ),
    ],
)
def test_bad_config_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_prior(**config)


def test_gradients_of_each_sample_by_vmap_equal_a_loop():
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),))
    inputs = prior_inputs(prior, 3)
    weights = {name: p.detach() for name, p in prior.named_parameters()}

    def loss(weights, codes, coarser, label):
        arguments = (codes[None], coarser[None], label[None])
        return torch.func.functional_call(prior, weights, arguments, {"as_loss": True})

    samples = (inputs["codes"], inputs["condition"][0], inputs["labels"])
    slope = torch.func.grad(loss)
    of_all = torch.func.vmap(slope, in_dims=(None, 0, 0, 0))(weights, *samples)
    for number, sample in enumerate(zip(*samples, strict=True)):
        for name, expected in slope(weights, *sample).items():
            torch.testing.assert_close(of_all[name][number], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", [True, False])
def test_stacked_priors_by_vmap_equal_a_loop(attention):
    priors = [tiny_prior(seed, attention=attention, condition_sizes=((2, 3),)) for seed in (0, 1)]
    inputs = prior_inputs(priors[0], 3)
    stacked = torch.func.stack_module_state(priors)

    def logits(*state):
        arguments = (inputs["codes"], inputs["condition"])
        return torch.func.functional_call(priors[0], state, arguments)

    of_all = torch.func.vmap(logits)(*stacked)
    for found, prior in zip(of_all, priors, strict=True):
        expected = prior(inputs["codes"], inputs["condition"])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
