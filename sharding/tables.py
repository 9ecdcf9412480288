"""Where a model keeps its tables: every EmbeddingBagCollection in it, and the logical tables inside."""

from collections.abc import Iterator

from torch import nn
from torchrec import EmbeddingBagCollection

from sparta.models.embedding import Embeddings, Table, table_name
from sparta.models.errors import ConfigError


def collections_of(model: nn.Module) -> Iterator[tuple[str, EmbeddingBagCollection]]:
    """Each unsharded EmbeddingBagCollection of a model with its path."""
    for path, module in model.named_modules():
        if type(module) is EmbeddingBagCollection:
            yield path, module


def tables_of(model: nn.Module) -> list[Table]:
    """The logical tables of a model, unpadded where they come from `Embeddings`.

    Raises:
        ConfigError: two tables of one name, or a width FBGEMM cannot hold.
    """
    logical = {
        table.name: table
        for module in model.modules()
        if isinstance(module, Embeddings)
        for table in module.specs
    }
    tables: dict[str, Table] = {}
    for path, collection in collections_of(model):
        for config in collection.embedding_bag_configs():
            name = table_name(config.name)
            if name in tables:
                raise ConfigError(
                    f"{path}: a second table {name!r}; names must differ within a model, "
                    "so put all features of a table into one Embeddings module"
                )
            if config.embedding_dim % 4:
                raise ConfigError(
                    f"{path}: table {name!r} is {config.embedding_dim} wide, and FBGEMM wants a multiple of 4; "
                    "use sparta.models.Embeddings, which pads"
                )
            plain = Table(name, config.feature_names[0], config.num_embeddings, config.embedding_dim)
            tables[name] = logical.get(name, plain)
    return list(tables.values())
