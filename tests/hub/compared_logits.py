"""What a model says of some tokens, as we compute it and as transformers does."""

from typing import Any

import jax
import numpy as np
from small_gguf import TOKENS

from llm.hub.pretrained import Pretrained
from llm.models.binding import bind
from llm.models.parameter import parameters

IDS_BT = np.random.default_rng(0).integers(0, len(TOKENS), (2, 40))


def load(pretrained: Pretrained) -> Any:
    """The weights, fp32, on one device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: parameters(pretrained.spec.build(jax.random.key(0))))
    return pretrained.weights(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=here), shapes)
    )


def logits(pretrained: Pretrained, ids_BT: np.ndarray = IDS_BT) -> np.ndarray:
    @jax.jit
    def forward(params: Any, ids_BT: Any) -> Any:
        model = bind(pretrained.spec, params)
        return model.logits(model(ids_BT)[0])

    return np.asarray(forward(load(pretrained), ids_BT))


def their_logits(model: Any, ids_BT: np.ndarray = IDS_BT) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids_BT)).logits.numpy()
