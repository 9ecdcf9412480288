"""The short way of one rank: ids and pooled rows are where they should be.

TorchRec sends nothing either, but prepares to: it cuts ids into pieces for every rank, sorts those of row-wise tables
into buckets, permutes feature after feature and waits for what has arrived. That is a tenth of a step of some
thousand samples.
"""

from typing import Any

import torch
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.types import ShardingType


def is_alone(collection: Any) -> bool:
    """Whether a ShardedEmbeddingBagCollection may take it.

    Not if its pooled rows change on their way: pieces of split columns are put together, means divided.
    """
    return bool(
        collection._env.world_size == 1
        and ShardingType.COLUMN_WISE.value not in collection._sharding_types
        and not collection._has_mean_pooling_callback
        and not collection.qcomm_codecs_registry
    )


def at_home(collection: Any, sparse: KeyedJaggedTensor) -> KJTList:
    """What input_dist gives."""
    if collection._has_uninitialized_input_dist:
        collection.input_dist(
            collection.create_context(), sparse
        )  # checks the features, and puts them in order
    with torch.no_grad():
        order, keys = collection._features_order, len(sparse.keys())
        if collection._has_features_permute:
            if order == list(range(keys)) * (len(order) // keys) and not sparse.variable_stride_per_key():
                sparse = repeated(sparse, len(order) // keys)
            else:
                sparse = sparse.permute(order, collection._features_order_tensor)
        return KJTList(sparse.split(collection._feature_splits))


def repeated(sparse: KeyedJaggedTensor, times: int) -> KeyedJaggedTensor:
    """All features, and all of them again: deep tables, then wide ones.

    Of offsets, which are what the kernels want; lengths would be made, and summed up, for nobody.
    """
    values, weights, offsets = sparse.values(), sparse.weights_or_none(), sparse.offsets().long()
    later = [offsets[1:] + n * len(values) for n in range(1, times)]
    return KeyedJaggedTensor(
        keys=list(sparse.keys()) * times,
        values=values.repeat(times),
        weights=None if weights is None else weights.repeat(times),
        offsets=torch.cat([offsets, *later]),
        stride=sparse.stride(),
        length_per_key=sparse.length_per_key() * times,
    )
