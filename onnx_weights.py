"""The weights of a network in an ONNX file, put back where they can be trained: `train.py --init FILE.onnx`.

`export.py` folds each BatchNorm into the convolution before it, and may round the weights. Training wants the two apart.

    python train.py --recipe fernet_votes --init weights/fernet_votes.onnx.gz --lr 0.01      # goes on with a shipped network
"""

import os

import numpy as np
import torch
from torch import Tensor, nn

from models import Checkpoint, ExpressionNet, ModelError, build_model
from onnx_network import OnnxNetwork, contents_of

MIN_AGREEMENT = 0.9  # of the pictures that a network put back must take for the same class; rounding costs some


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of an ONNX file of export.py by their names in the network, float32; what of a BatchNorm is left beside
    the weight of its convolution is called `….weight_bias`. Raises ModelError without the package onnx."""
    try:
        from onnx import load_model_from_string, numpy_helper
    except ModuleNotFoundError as error:
        raise ModelError(f"to train on {path}, onnx must read it – run: pip install -r requirements-export.txt") from error
    graph = load_model_from_string(contents_of(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: values for name, values in stored.items() if values.dtype == np.float32}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:  # of half precision
            weights[node.output[0]] = stored[node.input[0]].astype(np.float32)
        elif node.op_type == "DequantizeLinear" and node.input[0] in stored:
            values, scale, zero = (stored[name].astype(np.float32) for name in node.input)
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            by_channel = [-1 if place == axis and scale.ndim else 1 for place in range(values.ndim)]
            values = (values - zero.reshape(by_channel)) * scale.reshape(by_channel)
            weights[node.input[0].removesuffix("_quantized")] = values
    return {name.removeprefix("model."): values for name, values in weights.items()}


def put_back(model: ExpressionNet, weights: dict[str, np.ndarray], pictures: Tensor) -> None:
    """Fill a fresh network with `read_weights` of its ONNX file, while it looks at `pictures` (N, C, H, W): each BatchNorm
    takes mean and variance of what comes to it there, and the scale and shift with which it only adds what the file has
    beside the convolution's weight. Raises KeyError for a tensor that the file lacks, ValueError for one of another shape.
    """
    names = {module: name for name, module in model.named_modules()}
    convolution = ""  # the last one

    def tensor(name: str, like: Tensor) -> Tensor:
        if weights[name].shape != like.shape:
            raise ValueError(name)
        return torch.tensor(weights[name])

    def fill(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal convolution
        if isinstance(module, nn.BatchNorm2d):
            variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
            module.running_mean, module.running_var = mean, variance
            module.weight.copy_((variance + module.eps).sqrt())
            module.bias.copy_(mean + tensor(f"{convolution}.weight_bias", like=mean))
            return
        for key, parameter in module.named_parameters(recurse=False):
            parameter.copy_(tensor(f"{names[module]}.{key}", like=parameter))
        if isinstance(module, nn.Conv2d):
            convolution = names[module]

    filling = [module.register_forward_pre_hook(fill) for module in names if [*module.parameters(recurse=False)]]
    with torch.no_grad():
        model.eval()(pictures)
    for hook in filling:
        hook.remove()


def trainable(path: str | os.PathLike[str], pictures: Tensor) -> Checkpoint:
    """The network of an ONNX file of export.py as a checkpoint that can be trained on, its BatchNorm measured on `pictures`
    (N, C, H, W). Raises ModelError where its weights cannot be put back, as with networks of another kind than ours, light
    CNN and ResNet with linear heads.
    """
    network = OnnxNetwork(path)
    info, labels = network.info, network.heads["logits"]
    advice = "give the checkpoint that it is made of"
    if "model_args" not in info:
        raise ModelError(f"--init {path} does not say how its network is built – {advice}")
    model = build_model(info["model"], classes=len(labels), preprocess=network.preprocess, **info["model_args"])
    try:
        put_back(model, read_weights(path), pictures)
    except (KeyError, ValueError) as error:
        raise ModelError(f"--init {path} cannot be trained on, for its {error.args[0]} – {advice}") from error
    with torch.no_grad():
        same = model(pictures).logits.argmax(1).numpy() == network(pictures.numpy())["logits"].argmax(1)
    if same.mean() < MIN_AGREEMENT:
        raise ModelError(f"--init {path} cannot be trained on: put back, it answers otherwise – {advice}")
    return Checkpoint(model, labels, network.preprocess, info)
