"""What a run trains on. A section of the job file; no torch here."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from sparta.models.storage import is_url
from sparta.service.settings import Settings


class DownSampling(Settings):
    """Negatives that were dropped when the data was made; the scores are corrected for them."""

    kept: float = Field(gt=0, le=1)
    """Share of the negatives that was kept."""
    splits: tuple[Literal["train", "valid", "test"], ...] = ("train",)
    """Splits that were down-sampled; metrics of these are left as they are."""

    @model_validator(mode="after")
    def _train_was_sampled(self) -> "DownSampling":
        if "train" not in self.splits:
            raise ValueError(
                "splits must name train: only a model trained on fewer negatives is to be corrected"
            )
        return self


class WatchSettings(Settings):
    """Train on Parquet files as they arrive, each once, in the order of their names, instead of on the train split."""

    folder: str
    """Folder of raw files with the columns of the dataset's spec; its vocabularies encode them."""
    poll_seconds: PositiveFloat = 5.0
    """Between two looks into the folder."""
    idle_seconds: PositiveFloat | None = None
    """Without a new file after which training ends; never if not said."""
    settle_seconds: PositiveFloat = 300.0
    """Without a change after which an unreadable file is bad, and no longer one that is being written."""

    @field_validator("folder")
    @classmethod
    def _folder_is_local(cls, value: str) -> str:
        if is_url(value):
            raise ValueError(f"{value!r} is a URL, and only local folders are watched; mount or copy it")
        return value


class DataSettings(Settings):
    path: str
    """Dataset folder made by `sparta prepare`; ${NAME} is taken from the environment."""
    batch_size: PositiveInt = 4096
    """Samples of a global batch, over all ranks."""
    streams: PositiveInt = 16
    """Independent readers whose rows are mixed in every batch; divides batch_size."""
    prefetch: PositiveInt = 4
    """Batches read ahead in the background."""
    negatives: DownSampling | None = None
    watch: WatchSettings | None = None

    @model_validator(mode="after")
    def _streams_divide(self) -> "DataSettings":
        if self.batch_size % self.streams:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by streams {self.streams}; change one of them"
            )
        return self
