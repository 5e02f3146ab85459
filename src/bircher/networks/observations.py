"""Observations of several arrays: an encoder for each of them, and an MLP that joins their features.

Which encoder an array has follows from its shape and type, or from `model.encoders`, which names it by the keys and
positions that lead to it: `image`, `sensors.camera`, `0`.  An observation of one array has a torso of
`networks/encoders.py`, unless `model.encoders` names it, as `observation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree, Shaped
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bircher import spaces
from bircher.errors import ConfigError, near, short_text
from bircher.networks.conv import Convolution, positions
from bircher.networks.encoders import (
    GRIDS,
    IMAGE,
    LEAST,
    FlatTorso,
    Torso,
    TorsoConfig,
    flatten_image,
    layout_without_encoding,
    make_picture_torso,
    make_torso,
)
from bircher.networks.layers import MLP, Encoder, Linear
from bircher.networks.token_grid import TokenGrid, TokenLayout
from bircher.types import SINGLE, EnvSpec, Key, ObservationPart, part_names

PICTURES = ("small_cnn", "dqn_cnn", "nature_cnn", "spatial_softmax", "impala")
"""Torsos that can encode one part of an observation."""
ONE_HOT = 1024
"""Up to this length the one-hot vectors of a part are concatenated; above it rows of a table are looked up."""
FEW_ROWS = 2**14
"""A MultiDiscrete part whose one-hot vectors would be longer is taken as numbers."""
SYMBOLS = 32
"""A grid of whole numbers with at most this many values, and more than two, is taken as one of symbols."""
FEW_CELLS = 64
"""A part that is a picture of at most this many numbers is taken as a vector: a convolution has little to share there,
and an update takes 1.2 times as long with it."""
WINDOW = 5
"""Successive bytes of a text that are read together."""


class EncoderConfig(BaseModel):
    """Settings of the encoder of one array of an observation, `model.encoders.PART`, in place of the automatic choice.

    `model.encoders.PART=KIND` sets the kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal[
        "auto", "vector", "index", "small_cnn", "dqn_cnn", "nature_cnn", "spatial_softmax", "impala", "symbols",
        "tokens", "token_grid", "text", "ignore",
    ] = "auto"  # fmt: skip
    """`vector` takes numbers as they are, `index` whole numbers that are only names. `small_cnn`, `dqn_cnn`,
    `nature_cnn`, `spatial_softmax` and `impala` are the torsos for pictures. `symbols` is for grids of whole numbers
    that are only names: a learned row for each value, and the convolution of `small_cnn`. `tokens` is for rows [N, F]
    without an order: each row through an MLP, then mean and maximum over the rows. `token_grid` is for mettagrid's rows
    of position, feature and value: a grid with a number for each feature, and a layer over all of it. `text` is for
    bytes that are text. `ignore` leaves the array out. `auto` chooses by shape and type."""
    values: int | None = Field(None, ge=1, le=2**16)
    """Number of values of each whole number, counted from the least, for `index`, `symbols` and `tokens`; larger ones
    are taken as the last. Null: as the environment's space says. For `token_grid`: of the features that are names
    (null: 8)."""
    width: int | None = Field(None, gt=0, le=2**16)
    """Length of the learned rows of `symbols` (null: 16), or number of features that `tokens`, `token_grid` and `text`
    give (null: 64)."""
    padding: int | None = None
    """The number that fills rows of `tokens` that are not there. Null: every row is there. The bytes of a `text` end
    with 0 if it is null."""
    features: int = Field(32, ge=1, le=256)
    """Number of features of a `token_grid`; larger ones are taken as the last."""
    names: tuple[int, ...] = ()
    """Features of a `token_grid` whose values are only names."""
    side: int = Field(15, ge=1, le=15)
    """Height and width of a `token_grid`; tokens at other positions are left out."""
    cell_features: tuple[int, ...] | None = None
    """Features of a `token_grid` that each cell has a number for, besides `names`; tokens of other features count for
    the agent as a whole only. Null: all."""

    @model_validator(mode="after")
    def _cell_features_exist(self) -> EncoderConfig:
        own = self.cell_features or ()
        if len({*own}) < len(own) or any(not 0 <= number < self.features or number in self.names for number in own):
            raise ValueError(
                f"cell_features must be different numbers of features from 0 to {self.features - 1} that are not in "
                f"names={list(self.names)}, not {list(own)}"
            )
        return self


AUTOMATIC = EncoderConfig.model_validate({})


class RepresentationConfig(TorsoConfig):
    """Settings of the network from an observation to the latent."""

    encoders: dict[str, EncoderConfig] = {}
    """Encoders of single arrays of an observation of several, by name: the keys and positions that lead to an array,
    such as `image` or `sensors.camera`, and `observation` where it is one array. Others are chosen by shape and
    type."""


class Numbers(Encoder):
    """The numbers themselves.  Bytes of a picture are scaled to [0, 1]."""

    num_features: int = eqx.field(static=True)
    axes: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...]):
        self.num_features, self.axes = math.prod(shape), len(shape)

    def __call__(self, x: Shaped[Array, "*B_part"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        x = scale_bytes(x) if self.axes == 3 else x
        return x.astype(dtype).reshape(*_lead(x, self.axes), -1)


class Table(eqx.Module):
    """Learned rows of whole numbers: a table for each column, and the sum over the columns."""

    weight: Float[Array, "rows width"]
    num_values: int = eqx.field(static=True)
    start: int = eqx.field(static=True)

    def __init__(self, columns: int, num_values: int, start: int, width: int, key: Key):
        # The sums have variance 1.
        self.weight = jax.random.normal(key, (columns * num_values, width)) / math.sqrt(columns)
        self.num_values, self.start = num_values, start

    def __call__(self, x: Integer[Array, "*B columns"], dtype: jnp.dtype) -> Float[Array, "*B width"]:
        index = in_range(x, self.start, self.num_values) + self.num_values * jnp.arange(x.shape[-1])
        return self.weight[index].astype(dtype).sum(-2)


def in_range(x: Integer[Array, "*B"], start: int, num_values: int) -> Integer[Array, "*B"]:
    """Return whole numbers counted from `start`, with those beyond the last value as the last."""
    return jnp.clip(x.astype(jnp.int32) - start, 0, num_values - 1)


class Index(Encoder):
    """One-hot vectors of whole numbers that are only names, or the sum of learned rows where they would be long."""

    table: Table | None
    num_features: int = eqx.field(static=True)
    axes: int = eqx.field(static=True)
    count: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)
    start: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], num_values: int, start: int, width: int, key: Key):
        self.axes, self.count, self.num_values, self.start = len(shape), math.prod(shape), num_values, start
        one_hot = self.count * num_values <= ONE_HOT
        self.table = None if one_hot else Table(self.count, num_values, start, width, key)
        self.num_features = self.count * num_values if one_hot else width

    @property
    def num_inputs(self) -> int:
        """Return the number of entries that are 1."""
        return self.num_features if self.table else self.count

    def __call__(self, x: Integer[Array, "*B_part"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        x = x.reshape(*_lead(x, self.axes), -1)
        if self.table is not None:
            return self.table(x, dtype)
        one_hot = jax.nn.one_hot(in_range(x, self.start, self.num_values), self.num_values, dtype=dtype)
        return one_hot.reshape(*x.shape[:-1], -1)


class Picture(Encoder):
    """The convolutions and the dense layer of a torso for pictures."""

    torso: FlatTorso
    num_features: int = eqx.field(static=True)

    def __init__(self, name: str, shape: tuple[int, ...], config: TorsoConfig, key: Key):
        config = config.model_copy(update={"torso_widths": ()})  # the layers after features are joined
        torso = make_picture_torso(config, name, shape, 1, key)
        self.num_features = torso.num_features
        # The last layer of a torso is its projection to the latent, for which the MLP of the joined features stands.
        self.torso = eqx.tree_at(lambda torso: torso.mlp.layers, torso, torso.mlp.layers[:-1])

    def __call__(self, x: Shaped[Array, "*B H W C"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        features = self.torso.flat(scale_bytes(x).astype(dtype))
        for layer in self.torso.mlp.layers:
            features = jax.nn.relu(layer(features))
        return features


class Symbols(Encoder):
    """A grid whose numbers are only names, such as object, color and state of a cell.

    A cell is the sum of a learned row for the value of each of its channels, as in the bag of words of the baselines
    of BabyAI (Hui et al. 2020, https://arxiv.org/abs/2007.12770).  A convolution and a ReLU follow.
    """

    table: Table
    convolution: Convolution
    num_features: int = eqx.field(static=True)
    axes: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], num_values: int, start: int, width: int, config: TorsoConfig, key: Key):
        table_key, convolution_key = jax.random.split(key)
        height, wide, channels = shape if len(shape) == 3 else (*shape, 1)
        self.table = Table(channels, num_values, start, width, table_key)
        self.convolution = Convolution(width, config.channels, config.kernel, convolution_key)
        cells = positions(height, config.kernel, 1, False) * positions(wide, config.kernel, 1, False)
        self.num_features, self.axes = cells * config.channels, len(shape)

    def __call__(self, x: Integer[Array, "*B_part"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        x = x if self.axes == 3 else x[..., None]
        return flatten_image(jax.nn.relu(self.convolution(self.table(x, dtype))))


class Tokens(Encoder):
    """Rows of numbers without an order: an MLP for each row, then mean and maximum over the rows that are there.

    The columns of a row of whole numbers are only names, and have a table each.  "Deep Sets" by Zaheer et al. 2017
    (https://arxiv.org/abs/1703.06114).
    """

    table: Table | Linear
    hidden: Linear
    num_features: int = eqx.field(static=True)
    axes: int = eqx.field(static=True)
    padding: int | None = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], num_values: int, start: int, width: int, padding: int | None, key: Key):
        table_key, hidden_key = jax.random.split(key)
        columns = shape[1] if len(shape) == 2 else 1
        table = Table(columns, num_values, start, width, table_key) if num_values else None
        self.table = table or Linear(columns, width, table_key, scale=2.0)
        self.hidden = Linear(width, width, hidden_key, scale=2.0)
        self.num_features, self.axes, self.padding = 2 * width + (padding is not None), len(shape), padding

    def __call__(self, x: Shaped[Array, "*B_part"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        x = x if self.axes == 2 else x[..., None]
        rows = self.table(x, dtype) if isinstance(self.table, Table) else self.table(x.astype(dtype))
        rows = jax.nn.relu(self.hidden(jax.nn.relu(rows)))
        if self.padding is None:
            return jnp.concatenate([rows.mean(-2), rows.max(-2)], axis=-1)
        number = x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x
        is_there = (number != self.padding).any(-1)
        share = is_there.astype(dtype).mean(-1, keepdims=True)
        return jnp.concatenate([pooled(rows, is_there), share], axis=-1)


class Text(Encoder):
    """Bytes that are text: a layer over every window of successive bytes, then mean and maximum over the windows."""

    table: Table
    hidden: Linear
    num_features: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)

    def __init__(self, length: int, num_values: int, start: int, width: int, padding: int | None, key: Key):
        table_key, hidden_key = jax.random.split(key)
        self.window, self.num_features, self.padding = min(WINDOW, length), 2 * width, padding or 0
        self.table = Table(1, num_values, start, 16, table_key)
        self.hidden = Linear(16 * self.window, width, hidden_key, scale=2.0)

    def __call__(self, x: Integer[Array, "*B length"], dtype: jnp.dtype) -> Float[Array, "*B features"]:
        rows, count = self.table(x[..., None], dtype), x.shape[-1] - self.window + 1
        windows = jnp.concatenate([rows[..., i : i + count, :] for i in range(self.window)], axis=-1)
        return pooled(jax.nn.relu(self.hidden(windows)), x[..., :count].astype(jnp.int32) != self.padding)


def pooled(rows: Float[Array, "*B N width"], is_there: Shaped[Array, "*B N"]) -> Float[Array, "*B features"]:
    """Return mean and maximum of the rows that are there, which are at least 0, or zeros where none is there."""
    rows = rows * is_there[..., None]
    count = jnp.maximum(is_there.sum(-1), 1)[..., None].astype(rows.dtype)
    return jnp.concatenate([rows.sum(-2) / count, rows.max(-2)], axis=-1)


def scale_bytes(x: Shaped[Array, "*B H W C"]) -> Shaped[Array, "*B H W C"]:
    """Return a picture's bytes scaled to [0, 1], and any other picture unchanged."""
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x


def _lead(x: Array, axes: int) -> tuple[int, ...]:
    return x.shape[: x.ndim - axes]


class JoinedTorso(FlatTorso):
    """An encoder for each part of an observation, and an MLP over their concatenated features."""

    encoders: tuple[Encoder, ...]
    mlp: MLP
    names: tuple[str, ...] = eqx.field(static=True)
    """The part of the observation that each encoder reads."""
    grid: None = eqx.field(static=True)

    def __init__(self, encoders: Mapping[str, Encoder], widths: tuple[int, ...], latent_width: int, key: Key):
        self.names, self.encoders, self.grid = tuple(encoders), tuple(encoders.values()), None
        total = sum(encoder.num_features for encoder in self.encoders)
        mlp = MLP(total, (*widths, latent_width), key)
        scale = jnp.asarray(_first_scale(self.encoders, total), jnp.float32)[:, None]
        self.mlp = eqx.tree_at(lambda mlp: mlp.layers[0].weight, mlp, scale * mlp.layers[0].weight)

    def flat(self, observation: PyTree[Array], dtype: jnp.dtype | None = None) -> Float[Array, "*B flat"]:
        """Return the features of all parts, concatenated."""
        parts, dtype = parts_of(observation), dtype or jnp.dtype(jnp.float32)
        features = [encoder(parts[name], dtype) for name, encoder in zip(self.names, self.encoders, strict=True)]
        return jnp.concatenate(features, axis=-1)

    def encode(self, observation: PyTree[Array], dtype: jnp.dtype | None = None) -> Float[Array, "*B features"]:
        """Return the observation's features, computed in `dtype`, by default float32."""
        return self.mlp.hidden(self.flat(observation, dtype))

    def numbers(self, observation: PyTree[Array]) -> list[Array]:
        """Return the parts whose numbers the network takes as they are, so that their scale matters."""
        parts = parts_of(observation)
        return [
            parts[name] for name, encoder in zip(self.names, self.encoders, strict=True) if isinstance(encoder, Numbers)
        ]


def parts_of(observation: PyTree[Array]) -> dict[str, Array]:
    """Return the arrays of an observation by name."""
    return dict(zip(part_names(observation), jax.tree.leaves(observation), strict=True))


def _first_scale(encoders: tuple[Encoder, ...], total: int) -> np.ndarray:
    """Return factors of the first layer's weights by which parts contribute equally, whatever the length of features.

    Numbers and one-hot vectors are one part, because each of their entries counts as much as any other.
    """
    plain = [isinstance(encoder, Numbers) or (isinstance(encoder, Index) and not encoder.table) for encoder in encoders]
    together = sum(encoder.num_inputs for encoder, is_plain in zip(encoders, plain, strict=True) if is_plain)
    blocks = len(encoders) - sum(plain) + any(plain)
    inputs = [together if is_plain else encoder.num_inputs for encoder, is_plain in zip(encoders, plain, strict=True)]
    scale = [math.sqrt(total / (blocks * count)) for count in inputs]
    return np.repeat(scale, [encoder.num_features for encoder in encoders])


def make_representation(config: RepresentationConfig, spec: EnvSpec, key: Key, latent_width: int) -> Torso:
    """Return the network from an observation to a latent: a torso for one array, or a joined one for several.

    Raises:
      ConfigError: `model.encoders` names no part, or an encoder or the torso does not fit the observation.
    """
    parts = spec.parts
    for name in config.encoders:
        if name not in parts:
            known = f"it has {', '.join(parts)}" if len(parts) <= 20 else f"it has {len(parts)} parts"
            raise ConfigError(
                f"model.encoders.{short_text(name)} is not a part of the observation of {spec.id}: "
                f"{known}{near(name, parts)}"
            )
    if list(parts) == [SINGLE] and config.encoders.get(SINGLE, AUTOMATIC).kind == "auto":
        return make_torso(config, spec, key, latent_width)
    if list(parts) == [SINGLE]:
        part = parts[SINGLE]
        shape = spaces.channels_last_shape(part.shape, layout_without_encoding(spec))
        parts = {SINGLE: part._replace(shape=shape)}
    if config.torso in GRIDS:
        raise ConfigError(
            f"model.torso={config.torso} needs an observation of one array, and that of {spec.id} has the parts "
            f"{', '.join(parts)}: set model.torso=auto"
        )
    encoders = {}
    for number, (name, part) in enumerate(parts.items()):
        encoder = make_encoder(config, name, part, jax.random.fold_in(key, number))
        if encoder is not None:
            encoders[name] = encoder
    if config.torso in PICTURES and not any(isinstance(encoder, Picture) for encoder in encoders.values()):
        raise ConfigError(
            f"model.torso={config.torso} is for pictures, and no part of the observation of {spec.id} is a picture "
            "that it can read: set model.torso=auto"
        )
    if not encoders:
        raise ConfigError(f"nothing of the observation of {spec.id} is left to learn from: change model.encoders")
    return JoinedTorso(encoders, config.torso_widths, latent_width, jax.random.fold_in(key, len(parts)))


def make_encoder(config: RepresentationConfig, name: str, part: ObservationPart, key: Key) -> Encoder | None:
    """Return the encoder of one part, or None for a part that is ignored or empty.

    Raises:
      ConfigError: the configured encoder does not fit the part.
    """
    chosen = config.encoders.get(name, AUTOMATIC)
    kind = automatic_kind(config, part) if chosen.kind == "auto" else chosen.kind
    if kind == "ignore" or not math.prod(part.shape):
        return None
    _require_fit(config, name, kind, part)
    if kind == "vector":
        return Numbers(part.shape)
    if kind == "token_grid":
        layout = TokenLayout(chosen.side, chosen.features, chosen.names, chosen.values or 8, chosen.cell_features)
        return TokenGrid(part.shape[0], layout, chosen.width or 64, key)
    if kind in PICTURES:
        return Picture(kind, part.shape, config, key)
    num_values, start = _values_of(name, kind, chosen, part)
    if kind == "index":
        return Index(part.shape, num_values, start, (*config.torso_widths, 128)[0], key)
    if kind == "symbols":
        return Symbols(part.shape, num_values, start, chosen.width or 16, config, key)
    if kind == "tokens":
        return Tokens(part.shape, num_values, start, chosen.width or 64, chosen.padding, key)
    return Text(part.shape[0], num_values, start, chosen.width or 64, chosen.padding, key)


def automatic_kind(config: TorsoConfig, part: ObservationPart) -> str:
    """Return the kind of encoder for a part, by its shape and type."""
    shape, encoding = part.shape, part.encoding
    if encoding is not None and encoding.kind == "index":
        return "index"
    if encoding is not None and encoding.names:
        return "index" if math.prod(shape) * encoding.num_values <= FEW_ROWS else "vector"
    if len(shape) != 3 or min(shape[:2]) < config.kernel or config.torso == "mlp":
        return "vector"
    if encoding is not None and 2 < encoding.num_values <= SYMBOLS:
        return "symbols"
    if config.torso in PICTURES and min(shape[:2]) >= LEAST.get(config.torso, config.kernel):
        return config.torso
    if math.prod(shape) <= FEW_CELLS:
        return "vector"
    return "impala" if min(shape[:2]) >= IMAGE else "small_cnn"


def _require_fit(config: TorsoConfig, name: str, kind: str, part: ObservationPart) -> None:
    """Raise ConfigError if an array has not the axes or the type that an encoder needs."""
    shape, whole = part.shape, np.dtype(part.dtype).kind in "iu"
    least = LEAST.get(kind, config.kernel)
    needs = None
    if kind in PICTURES and (len(shape) != 3 or min(shape[:2]) < least):
        needs = f"height, width and channels, at least {least} × {least}"
    elif kind == "symbols" and (len(shape) not in (2, 3) or min(shape[:2]) < least or not whole):
        needs = f"a grid of whole numbers, at least {least} × {least}"
    elif kind == "tokens" and len(shape) not in (1, 2):
        needs = "rows of numbers, [N, F] or [N]"
    elif kind == "token_grid" and (part.shape[1:] != (3,) or part.dtype != np.uint8):
        needs = "rows of three bytes, [N, 3]"
    elif kind == "text" and (len(shape) != 1 or not whole):
        needs = "one axis of whole numbers"
    elif kind == "index" and not whole:
        needs = "whole numbers"
    if needs:
        raise ConfigError(f"model.encoders.{name}.kind={kind} needs {needs}, and {name} is {part.dtype} {shape}")


def _values_of(name: str, kind: str, chosen: EncoderConfig, part: ObservationPart) -> tuple[int, int]:
    """Return number and start of the values of a part's whole numbers; (0, 0) for other tokens.

    Raises:
      ConfigError: neither the space nor the settings say how many values there are.
    """
    if np.dtype(part.dtype).kind not in "iu":
        return 0, 0
    start, count = 0, 256 if part.dtype == np.uint8 else 0
    if part.encoding is not None and part.encoding.num_values:
        # The environment's adapter has subtracted the start of a Discrete space, and of no other.
        start, count = part.encoding.start if part.encoding.kind == "array" else 0, part.encoding.num_values
    count = chosen.values or count
    if not count:
        raise ConfigError(
            f"model.encoders.{name}.kind={kind} needs the number of values, which the space of {name} does not say: "
            f"set model.encoders.{name}.values"
        )
    if count > FEW_ROWS and kind != "index":
        raise ConfigError(
            f"model.encoders.{name}.kind={kind} would have a table of {count:,} values: "
            f"set model.encoders.{name}.values"
        )
    return count, start
