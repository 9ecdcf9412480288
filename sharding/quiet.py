"""Silences what TorchRec, FBGEMM and torch's distributed parts say about themselves; `-v` leaves them be.

They log through their own loggers, through the root logger, and through warnings; errors still come out.
"""

import logging
import warnings

_LOGGERS = ("torchrec", "fbgemm_gpu", "torch.distributed", "torch.fx")
_ROOT_MESSAGES = ("Could not determine LOCAL_", "TORCHREC_RESOLVED_POD_SIZE", "[Connection]", "[TBE")
_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # the CPU build of fbgemm-gpu comes without its SSD lookups and says so when it is imported
    (r"(?s).*Failed to import. fbgemm_gpu", DeprecationWarning),
    # TorchRec 1.8 imports FBGEMM's lookup by its former name
    (r"(?s).*split_table_batched_embeddings_ops is now DEPRECATED", DeprecationWarning),
    # TorchRec 1.8 wraps the dense part with an option that torch 2.13 renamed
    (r"`broadcast_buffers` is deprecated", FutureWarning),
    # TorchRec 1.8 calls collectives by the names they had before torch 2.13
    (r"`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated", FutureWarning),
    # torchmetrics 1.0.3 compares versions with setuptools' copy of distutils when it is imported
    (r"distutils Version classes are deprecated", DeprecationWarning),
)


def silence() -> None:
    """Call it before torchrec is imported; it needs no torch itself."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().addFilter(_own_or_serious)
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


def _own_or_serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not record.getMessage().startswith(_ROOT_MESSAGES)
