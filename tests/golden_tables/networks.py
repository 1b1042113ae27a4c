"""Heads, norms, position tables and whole steps on toy backbones, of set A."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.ema import ema_of_params
from cl_jax.core.numerics import unit
from cl_jax.encoders import positions, shuffle
from cl_jax.encoders.norm import BatchNorm
from cl_jax.encoders.resnet import SKConv, _conv
from cl_jax.heads import mlp, predictor
from cl_jax.heads.weight_norm import DINOHead
from cl_jax.losses import assignments, nce, no_negatives
from cl_jax.memory import queue
from cl_jax.training import optim
from tests.goldens import Golden


def _pullback(module, params, stats, x, cotangent):
    """Train-mode output, running statistics after, and gradients of sum(y * cotangent) by (params,
    x)."""

    def run(params, x):
        y, state = module.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        y = y[0] if isinstance(y, tuple) else y
        return jnp.sum(y * cotangent), (y, state.get("batch_stats", {}))

    (_, (y, after)), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, x)
    return y, after, *grads


def _simclr_head(case):
    layers = case["num_proj_layers"]
    head = mlp.make(variant="simclr", num_layers=layers, out_dim=case["proj_out_dim"], dtype=None)
    names = {}  # ours -> theirs
    for i in range(layers):
        names[f"dense{i + 1}", "kernel"] = f"nl_{i}.kernel"
        names[f"norm{i + 1}", "scale"] = f"nl_{i}.gamma"
        if i < layers - 1:
            names[f"norm{i + 1}", "bias"] = f"nl_{i}.beta"
    stats = {
        f"norm{i + 1}": {
            "mean": case[f"w.nl_{i}.moving_mean"],
            "var": case[f"w.nl_{i}.moving_variance"],
        }
        for i in range(layers)
    }
    params = {}
    for (layer, name), theirs in names.items():
        params.setdefault(layer, {})[name] = case[f"w.{theirs}"]
    y, after, grads, grad_x = _pullback(head, params, stats, case["x"], case["cotangent"])
    y_eval, _ = head.apply({"params": params, "batch_stats": stats}, case["x"], train=False)
    outputs = {"y_train": y, "y_eval": y_eval, "grad_x": grad_x}
    for (layer, name), theirs in names.items():
        outputs[f"grad_w.{theirs}"] = grads[layer][name]
    for i in range(layers):
        outputs[f"after.nl_{i}.moving_mean"] = after[f"norm{i + 1}"]["mean"]
        outputs[f"after.nl_{i}.moving_variance"] = after[f"norm{i + 1}"]["var"]
    return outputs


_SK = {
    ("conv", "kernel"): "conv.kernel",
    ("norm", "scale"): "bn.gamma",
    ("norm", "bias"): "bn.beta",
    ("squeeze_conv", "kernel"): "conv_a.kernel",
    ("squeeze_norm", "scale"): "bn_a.gamma",
    ("squeeze_norm", "bias"): "bn_a.beta",
    ("mix_conv", "kernel"): "conv_b.kernel",
}


def _skconv(case):
    conv = partial(_conv, same=False, kernel_init="lecun", dtype=None)
    module = SKConv(
        case["filters"], case["strides"], case["sk_ratio"], conv, BatchNorm, min_dim=case["min_dim"]
    )
    params = {}
    for (layer, name), theirs in _SK.items():
        params.setdefault(layer, {})[name] = case[f"w.{theirs}"]
    norms = {"norm": "bn", "squeeze_norm": "bn_a"}
    stats = {
        ours: {"mean": case[f"w.{theirs}.moving_mean"], "var": case[f"w.{theirs}.moving_variance"]}
        for ours, theirs in norms.items()
    }
    y, after, grads, grad_x = _pullback(module, params, stats, case["x"], case["cotangent"])
    y_eval = module.apply({"params": params, "batch_stats": stats}, case["x"], train=False)
    outputs = {"y_train": y, "y_eval": y_eval, "grad_x": grad_x}
    outputs |= {f"grad_w.{theirs}": grads[layer][name] for (layer, name), theirs in _SK.items()}
    for ours, theirs in norms.items():
        outputs |= {
            f"after.{theirs}.moving_mean": after[ours]["mean"],
            f"after.{theirs}.moving_variance": after[ours]["var"],
        }
    return outputs


def _strided_groups(batch, splits):
    """Their split s holds the rows n with n mod splits == s, ours consecutive rows: (order, its
    inverse)."""
    order = jnp.arange(batch).reshape(batch // splits, splits).T.reshape(-1)
    return order, jnp.argsort(order)


def _splitbn(case):
    splits = case["splits"]
    module = BatchNorm(splits=splits, unbiased_running_variance=True)
    params = {"scale": case["w.weight"], "bias": case["w.bias"]}
    stats = {"mean": case["w.running_mean"], "var": case["w.running_var"]}
    order, back = _strided_groups(case["x"].shape[0], splits)

    def ours(x):
        return x[order].transpose(0, 2, 3, 1)

    def theirs(y):
        return y.transpose(0, 3, 1, 2)[back]

    y, after, grads, grad_x = _pullback(
        module, params, stats, ours(case["x"]), ours(case["cotangent"])
    )
    y_eval = module.apply({"params": params, "batch_stats": stats}, ours(case["x"]), train=False)
    return {
        "y_train": theirs(y),
        "y_eval": theirs(y_eval),
        "grad_x": theirs(grad_x),
        "grad_weight": grads["scale"],
        "grad_bias": grads["bias"],
        "running_mean_after": after["mean"],
        "running_var_after": after["var"],
    }


def _dino_head(case):
    layers, use_bn = case["nlayers"], bool(case["use_bn"])
    weights = case.group("p.")
    out_dim = weights["last_layer.weight_v"].shape[0]
    head = DINOHead(
        out_dim,
        case["hidden"],
        case["bottleneck"],
        layers,
        use_bn=use_bn,
        norm_last_layer=bool(case["norm_last_layer"]),
    )
    names = {}  # ours -> theirs
    # nn.Sequential numbers activations and norms too; a single layer is a bare nn.Linear.
    per_layer = 3 if use_bn else 2
    for i in range(layers):
        where = f"mlp.{i * per_layer}" if layers > 1 else "mlp"
        names["mlp", f"dense{i + 1}", "kernel"] = f"{where}.weight"
        names["mlp", f"dense{i + 1}", "bias"] = f"{where}.bias"
        if use_bn and i < layers - 1:
            names["mlp", f"norm{i + 1}", "scale"] = f"mlp.{i * per_layer + 1}.weight"
            names["mlp", f"norm{i + 1}", "bias"] = f"mlp.{i * per_layer + 1}.bias"
    names["last_layer", "v"] = "last_layer.weight_v"
    if not case["norm_last_layer"]:
        names["last_layer", "g"] = "last_layer.weight_g"
    params = _tree(
        {
            path: weights[theirs].T if path[-1] == "kernel" else weights[theirs]
            for path, theirs in names.items()
        }
    )
    stats = _fresh_stats(head, case["x"])
    y, after, grads, grad_x = _pullback(head, params, stats, case["x"], case["cotangent"])
    outputs = {"y": y, "grad_x": grad_x}
    for path, theirs in names.items():
        grad = _leaf(grads, path)
        outputs[f"grad_p.{theirs}"] = grad.T if path[-1] == "kernel" else grad
    for i in range(layers - 1 if use_bn else 0):
        outputs[f"bn_after.mlp.{i * per_layer + 1}.running_mean"] = after["mlp"][f"norm{i + 1}"][
            "mean"
        ]
        outputs[f"bn_after.mlp.{i * per_layer + 1}.running_var"] = after["mlp"][f"norm{i + 1}"][
            "var"
        ]
    return outputs


def _tree(leaves):
    """{("a", "b"): leaf} -> {"a": {"b": leaf}}."""
    tree = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


def _leaf(tree, path):
    for part in path:
        tree = tree[part]
    return tree


def _fresh_stats(module, x):
    """Running statistics as they start (mean 0, variance 1), in the float type of x."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x).get(
        "batch_stats", {}
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (jnp.ones if path[-1].key == "var" else jnp.zeros)(leaf.shape, x.dtype),
        shapes,
    )


# Whole steps --------------------------------------


def _in_training(module):
    """(params, stats, x) -> (output, stats), for calls on several views: traced once."""

    @jax.jit
    def apply(params, stats, x):
        y, new = module.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return y, new["batch_stats"]

    return apply


def _torch_tree(weights, names):
    """Our tree from their arrays: linear [out, in] and convolution OIHW kernels to [in, out] and
    HWIO."""

    def ours(name, array):
        return (
            array
            if name != "kernel"
            else array.T
            if array.ndim == 2
            else array.transpose(2, 3, 1, 0)
        )

    return _tree(
        {
            path: ours(path[-1], weights[theirs])
            for path, theirs in names.items()
            if theirs in weights
        }
    )


def _torch_names(tree, names, prefix):
    """The reverse: {prefix + their name: array} of every leaf of ours."""

    def theirs(name, array):
        return (
            array
            if name != "kernel"
            else array.T
            if array.ndim == 2
            else array.transpose(3, 2, 0, 1)
        )

    paths = [
        (path, tuple(part.key for part in path))
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    return {prefix + names[path]: theirs(path[-1], _leaf(tree, path)) for _, path in paths}


def _linear(module, theirs):
    """The names of one dense layer."""
    return {(*module, "kernel"): f"{theirs}.weight", (*module, "bias"): f"{theirs}.bias"}


def _sequential(module, theirs, layers, *, norm):
    """The names of an `MLP` that is an nn.Sequential of linear (, batch norm), ReLU."""
    names, per_layer = {}, 3 if norm else 2
    for i in range(layers):
        names |= _linear((*module, f"dense{i + 1}"), f"{theirs}{i * per_layer}")
        names |= {
            (*module, f"norm{i + 1}", "scale"): f"{theirs}{i * per_layer + 1}.weight",
            (*module, f"norm{i + 1}", "bias"): f"{theirs}{i * per_layer + 1}.bias",
        }
    return names


def _running(stats, module, theirs, layers, prefix):
    """Running statistics of a sequential head under their names."""
    return {
        f"{prefix}{theirs}{3 * i + 1}.running_{name}": _leaf(stats, module)[f"norm{i + 1}"][name]
        for i in range(layers)
        if f"norm{i + 1}" in _leaf(stats, module)
        for name in ("mean", "var")
    }


class Toy(nn.Module):
    """Linear, ReLU (the backbone), then a head of the library."""

    width: int
    head: nn.Module

    @nn.compact
    def __call__(self, x, *, train):
        h, _ = mlp.MLP((self.width,), name="body")(x, train=train)
        return self.head(nn.relu(h), train=train)[0]


_BODY = _linear(("body", "dense1"), "body")


def _moco_step(case, layers):
    """MoCo(mlp=...).forward: EMA, key forward, logits, loss, enqueue."""
    out_dim, width = case["queue"].shape[0], case["q.body.weight"].shape[0]
    head = mlp.make(variant="moco_v2" if layers == 2 else "linear", out_dim=out_dim, dtype=None)
    net = Toy(width, head)
    names = _BODY | (
        _sequential(("head",), "fc.", 2, norm=False)
        if layers == 2
        else _linear(("head", "dense1"), "fc")
    )
    q_params, k_params = (_torch_tree(case.group(prefix), names) for prefix in ("q.", "k."))
    k_params = _moved(q_params, k_params, case["m"])
    ring = _ring(case)

    @jax.jit
    def forward(params, x):
        return unit(net.apply({"params": params}, x, train=True))

    k = forward(k_params, case["im_k"])

    def loss(params):
        q = forward(params, case["im_q"])
        knobs = {"temperature": case["temperature"]}
        return nce.queue_softmax(q, k, ring.rows, **knobs), nce.queue_logits(
            q, k, ring.rows, **knobs
        )

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(q_params)
    return {
        "loss": value,
        "logits": logits,
        "labels": jnp.zeros(len(k), int),
        **_ring_after(queue.enqueue(ring, k)),
        **_torch_names(grads, names, "grad_q."),
        **_torch_names(k_params, names, "k_after."),
    }


def _moved(params, target, momentum):
    """One step of the momentum encoder's parameters."""
    target, _ = ema_of_params(momentum).update(
        params, optax.EmaState(jnp.zeros([], jnp.int32), target)
    )
    return target


def _ring(case):
    """Their queue [D, K] as ours."""
    rows = case["queue"].T
    return queue.Queue(rows, jnp.asarray(case["queue_ptr"]), jnp.asarray(len(rows)))


def _ring_after(ring):
    return {"queue_after": ring.rows.T, "queue_ptr_after": ring.pointer}


class ToyNorm(nn.Module):
    """Linear or 3x3 convolution, batch norm, ReLU, mean over space if any, linear."""

    width: int
    out_dim: int
    splits: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        if x.ndim == 4:
            x = nn.Conv(self.width, (3, 3), use_bias=False, padding=1, name="conv")(x)
        else:
            x = nn.Dense(self.width, name="body")(x)
        x = nn.relu(
            BatchNorm(splits=self.splits, unbiased_running_variance=True, name="bn")(x, train=train)
        )
        x = x.mean((1, 2)) if x.ndim == 4 else x
        return unit(mlp.make(variant="linear", out_dim=self.out_dim, dtype=None)(x, train=train)[0])


_NORMED = {
    **_linear(("body",), "body"),
    ("conv", "kernel"): "conv.weight",
    ("bn", "scale"): "bn.weight",
    ("bn", "bias"): "bn.bias",
    **_linear(("MLP_0", "dense1"), "fc"),
}


def _shufflebn(case):
    """R processes as a mapped axis; batch norm stays on each."""
    out_dim, width = case["queue"].shape[0], case["q.body.weight"].shape[0]
    net = ToyNorm(width, out_dim)
    q_params, k_params = (_torch_tree(case.group(prefix), _NORMED) for prefix in ("q.", "k."))
    k_params = _moved(q_params, k_params, case["m"])
    ring = _ring(case)
    stats = _fresh_stats(net, case["im_q"][0])

    @jax.jit
    def forward(params, x):
        z, state = net.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return z, state["batch_stats"]["bn"]

    def step(im_q, im_k):
        shuffled = shuffle.shuffle_by(case["permutation"], im_k, "ranks")
        k, bn_k = forward(k_params, shuffled)
        k = shuffle.unshuffle_batch(k, case["permutation"], "ranks")

        def loss(params):
            q, bn_q = forward(params, im_q)
            knobs = {"temperature": case["temperature"]}
            return nce.queue_softmax(q, k, ring.rows, **knobs), (
                nce.queue_logits(q, k, ring.rows, **knobs),
                bn_q,
            )

        (value, (logits, bn_q)), grads = jax.value_and_grad(loss, has_aux=True)(q_params)
        keys = jax.lax.all_gather(k, "ranks", tiled=True)
        return (
            value,
            jax.lax.pmean(value, "ranks"),
            logits,
            bn_q,
            bn_k,
            jax.lax.pmean(grads, "ranks"),
            keys,
        )

    per_rank, value, logits, bn_q, bn_k, grads, keys = jax.vmap(step, axis_name="ranks")(
        case["im_q"], case["im_k"]
    )
    grads = jax.tree.map(lambda g: g[0], grads)
    outputs = {
        "loss_per_rank": per_rank,
        "loss": value[0],
        "logits": logits,
        **_ring_after(queue.enqueue(ring, keys[0])),
        **_torch_names(grads, _NORMED, "grad_q."),
        **_torch_names(k_params, _NORMED, "k_after."),
    }
    for name, bn in (("bn_q", bn_q), ("bn_k", bn_k)):
        outputs |= {f"{name}.bn.running_{part}": bn[part] for part in ("mean", "var")}
    return outputs


def _cifarstep(case):
    out_dim, width, splits = case["queue"].shape[0], case["q.conv.weight"].shape[0], case["splits"]
    net = ToyNorm(width, out_dim, splits)
    q_params, k_params = (_torch_tree(case.group(prefix), _NORMED) for prefix in ("q.", "k."))
    k_params = _moved(q_params, k_params, case["m"])
    ring = _ring(case)
    images = [case[name].transpose(0, 2, 3, 1) for name in ("im1", "im2")]
    order, back = _strided_groups(len(images[0]), splits)
    fresh = _fresh_stats(net, images[0])

    @jax.jit
    def forward(params, stats, x):
        z, state = net.apply(
            {"params": params, "batch_stats": stats}, x[order], train=True, mutable=["batch_stats"]
        )
        return z[back], state["batch_stats"]

    def keys(stats, x, permutation):
        z, stats = forward(k_params, stats, shuffle.shuffle_by(permutation, x, None))
        return shuffle.unshuffle_batch(z, permutation, None), stats

    def loss(params):
        total, new, q_stats, k_stats = 0, [], fresh, fresh
        for i, (im_q, im_k) in enumerate([images, images[::-1]] if case["symmetric"] else [images]):
            q, q_stats = forward(params, q_stats, im_q)
            k, k_stats = keys(k_stats, im_k, case["permutations"][i])
            total += nce.queue_softmax(q, k, ring.rows, temperature=case["temperature"])
            new = [k, *new]
        return total, (jnp.concatenate(new), q_stats["bn"], k_stats["bn"])

    (value, (new, bn_q, bn_k)), grads = jax.value_and_grad(loss, has_aux=True)(q_params)
    outputs = {
        "loss": value,
        **_ring_after(queue.enqueue(ring, new)),
        **_torch_names(grads, _NORMED, "grad_q."),
        **_torch_names(k_params, _NORMED, "k_after."),
    }
    for name, bn in (("bn_q", bn_q), ("bn_k", bn_k)):
        outputs |= {f"{name}.bn.running_{part}": bn[part] for part in ("mean", "var")}
    return outputs


def _simsiam_step(case):
    width = case["w.encoder.body.weight"].shape[0]
    # With the frozen bias of the last linear layer, which batch norm cancels but for its running
    # mean.
    projector = mlp.make(variant="simsiam", out_dim=case["dim"], dtype=None).clone(last_bias=True)
    encoder = Toy(width, projector)
    predict = predictor.make(
        variant="simsiam", out_dim=case["dim"], hidden_dim=case["pred_dim"], dtype=None
    )
    encoder_names = _BODY | _sequential(("head",), "fc.", 3, norm=True)
    predictor_names = _sequential((), "", 2, norm=True)
    params = {
        "encoder": _torch_tree(case.group("w.encoder."), encoder_names),
        "predictor": _torch_tree(case.group("w.predictor."), predictor_names),
    }
    fresh = {
        "encoder": _fresh_stats(encoder, case["x1"]),
        "predictor": _fresh_stats(
            predict, jnp.zeros((len(case["x1"]), case["dim"]), case["x1"].dtype)
        ),
    }

    encode, guess = _in_training(encoder), _in_training(predict)

    def loss(params):
        stats, z, p = fresh, {}, {}
        for view in ("1", "2"):
            z[view], new = encode(params["encoder"], stats["encoder"], case[f"x{view}"])
            stats = stats | {"encoder": new}
        for view in ("1", "2"):
            (p[view], _), new = guess(params["predictor"], stats["predictor"], z[view])
            stats = stats | {"predictor": new}
        return no_negatives.simsiam(p["1"], p["2"], z["1"], z["2"]), (z, p, stats)

    (value, (z, p, stats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return {
        "loss": value,
        **{f"z{view}": z[view] for view in z},
        **{f"p{view}": p[view] for view in p},
        **_torch_names(grads["encoder"], encoder_names, "grad_w.encoder."),
        **_torch_names(grads["predictor"], predictor_names, "grad_w.predictor."),
        **_running(stats["encoder"], ("head",), "fc.", 3, "bn_after.encoder."),
        **_running(stats["predictor"], (), "", 2, "bn_after.predictor."),
    }


def _mocov3_step(case, layers, head_name, predictor_variant):
    """EMA between the query and the key forwards; every network in train mode, views apart."""
    from cl_jax.losses.infonce import moco_v3

    width = case["base.body.weight"].shape[0]
    head = mlp.make(
        variant="moco_v3",
        num_layers=layers,
        out_dim=case["dim"],
        hidden_dim=case["mlp_dim"],
        dtype=None,
    )
    encoder = Toy(width, head)
    predict = predictor.make(
        variant=predictor_variant, out_dim=case["dim"], hidden_dim=case["mlp_dim"], dtype=None
    )
    names = _BODY | _sequential(("head",), f"{head_name}.", layers, norm=True)
    predictor_names = _sequential((), "", 2, norm=True)
    params = {
        "base": _torch_tree(case.group("base."), names),
        "pred": _torch_tree(case.group("pred."), predictor_names),
    }
    slow = _moved(params["base"], _torch_tree(case.group("mom."), names), case["m"])
    fresh = _fresh_stats(encoder, case["x1"])

    encode, guess = _in_training(encoder), _in_training(predict)

    def forward(apply, params, stats, inputs):
        outputs = []
        for x in inputs:
            y, stats = apply(params, stats, x)
            outputs.append(y[0] if isinstance(y, tuple) else y)
        return outputs, stats

    keys, slow_stats = forward(encode, slow, fresh, (case["x1"], case["x2"]))

    def loss(params):
        z, base_stats = forward(encode, params["base"], fresh, (case["x1"], case["x2"]))
        q, pred_stats = forward(guess, params["pred"], _fresh_stats(predict, z[0]), z)
        return moco_v3(*q, *keys, temperature=case["temperature"]), (base_stats, pred_stats)

    (value, (base_stats, pred_stats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return {
        "loss": value,
        **_torch_names(grads["base"], names, "grad_base."),
        **_torch_names(grads["pred"], predictor_names, "grad_pred."),
        **_torch_names(slow, names, "mom_after."),
        **_running(base_stats, ("head",), f"{head_name}.", layers, "bn_after_base."),
        **_running(slow_stats, ("head",), f"{head_name}.", layers, "bn_after_mom."),
        **_running(pred_stats, (), "", 2, "bn_after_pred."),
    }


def _byol_update(case):
    """Two updates on R devices: LARS, then the target towards the new weights."""
    names = {"enc": True, "projector": True, "predictor": False, "classifier": True}  # has a bias

    def tree(prefix):
        return {
            name: {
                "dense1": {"kernel": case[f"{prefix}.{name}.w"]}
                | ({"bias": case[f"{prefix}.{name}.b"]} if bias else {})
            }
            for name, bias in names.items()
        }

    def apply(params, name, x):
        width = params[name]["dense1"]["kernel"].shape[1]
        return mlp.MLP((width,), last_bias=names[name]).apply(
            {"params": params[name]}, x, train=True
        )[0]

    def project(params, view):
        h = nn.relu(apply(params, "enc", view))
        return h, apply(params, "projector", h)

    base = optim.scaled_learning_rate(case["base_lr"], case["batch_size"], "linear")
    rate = optim.warmup_cosine(
        base=base, total_steps=case["max_steps"], warmup_steps=case["warmup_steps"]
    )
    decay = optim.warmup_cosine(base=case["base_ema"], final=1.0, total_steps=case["max_steps"])
    start = case["global_step"]
    tx = optim.lars_byol(
        lambda step: rate(step + start),
        weight_decay=case["weight_decay"],
        mask=optim.decay_mask(exclude_ndim=1),
    )
    slow = ema_of_params(lambda step: decay(step + start))
    state = tx.init(tree("online"))

    def one(held, step):
        online, state, target = held

        def loss(params, view1, view2, labels):
            (h, z1), (_, z2) = project(params, view1), project(params, view2)
            p1, p2 = apply(params, "predictor", z1), apply(params, "predictor", z2)
            with_target = [project(target.ema, view)[1] for view in (view1, view2)]
            representation = no_negatives.byol(p1, p2, *with_target, axis_name="devices")
            logits = apply(params, "classifier", jax.lax.stop_gradient(h))
            classification = assignments.cross_entropy(logits, labels, axis_name="devices")
            return representation + classification, (representation, classification)

        def device(view1, view2, labels):
            (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(
                online, view1, view2, labels
            )
            return value, parts, jax.lax.pmean(grads, "devices")

        value, parts, grads = jax.tree.map(
            lambda leaf: leaf[0],
            jax.vmap(device, axis_name="devices")(case["view1"], case["view2"], case["labels"]),
        )
        updates, state = tx.update(grads, state, online)
        online = optax.apply_updates(online, updates)
        _, target = slow.update(online, target)
        outputs = {
            "tau_steps": decay(step + start),
            "learning_rate_steps": rate(step + start),
            "loss_steps": value,
            "repr_loss_steps": parts[0],
            "classif_loss_steps": parts[1],
        }
        for prefix, params in (("online_after", online), ("target_after", target.ema)):
            for name, bias in names.items():
                outputs[f"{prefix}.{name}.w"] = params[name]["dense1"]["kernel"]
                if bias:
                    outputs[f"{prefix}.{name}.b"] = params[name]["dense1"]["bias"]
        return (online, state, target), outputs

    held = tree("online"), state, slow.init(tree("target"))
    _, outputs = jax.lax.scan(one, held, jnp.arange(2))
    return outputs | {"loss": outputs["loss_steps"][0]}


def _posinterp(case):
    return {
        "pos_out": positions.interpolate(
            case["pos_embed"], case["w"], case["h"], patch=case["patch"]
        )
    }


def _posembed(case):
    return {"pos_embed": positions.sincos_2d(case["grid_h"], case["grid_w"], case["embed_dim"])}


TABLE = {
    # TensorFlow's .9 of the running update is a float32 constant.
    "simclr-head": Golden(
        _simclr_head,
        f64=1e-9,
        f32=1e-5,
        bounds={
            f"after.nl_{i}.moving_{name}": (1e-7, 1e-5)
            for i in range(8)
            for name in ("mean", "variance")
        },
    ),
    "simclrv2-skconv": Golden(
        _skconv,
        f64=1e-9,
        f32=1e-4,
        bounds={
            f"after.{bn}.moving_{name}": (1e-7, 1e-4)
            for bn in ("bn", "bn_a")
            for name in ("mean", "variance")
        },
    ),
    "moco-splitbn": Golden(_splitbn, f64=1e-9, f32=2e-6),
    "moco-v1step": Golden(partial(_moco_step, layers=1), f64=1e-9, f32=5e-6),
    "moco-v2step": Golden(partial(_moco_step, layers=2), f64=1e-9, f32=1e-5),
    "moco-shufflebn": Golden(_shufflebn, f64=1e-9, f32=5e-4),
    "moco-cifarstep": Golden(_cifarstep, f64=1e-9, f32=1e-5),
    "simsiam-step": Golden(_simsiam_step, f64=1e-9, f32=5e-5),
    # The authors' warm-up rate is float32.
    "byol-update": Golden(_byol_update, f64=1e-6, f32=2e-6),
    "dino-head": Golden(_dino_head, f64=1e-9, f32=2e-4),
    "dino-posinterp": Golden(_posinterp, f64=1e-9, f32=1e-5),
    "mocov3-resnetstep": Golden(
        partial(_mocov3_step, layers=2, head_name="fc", predictor_variant="moco_v3"),
        f64=1e-9,
        f32=5e-5,
    ),
    "mocov3-vitstep": Golden(
        partial(_mocov3_step, layers=3, head_name="head", predictor_variant="moco_v3_vit"),
        f64=1e-9,
        f32=2e-4,
    ),
    # Float32 in the authors' program.
    "mocov3-posembed": Golden(_posembed, f64=1e-6, f32=None),
}
