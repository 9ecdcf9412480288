"""The sharder: TorchRec's own, but for the engine that runs the tables and the kinds of sharding it allows."""

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

from sparta.sharding.engines import Engine


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's own refuses row_wise and table_row_wise on CPU, though they work there."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(fused_params=dict(engine.fused_params))
        self._engine = engine

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(self._engine.sharding_types)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        # Replicas have a kernel of their own in TorchRec.
        return ["dense"] if sharding_type == "data_parallel" else list(self._engine.kernels)
