"""The keys and values of answers that are being sampled side by side, each in a slot of its own.

A slot holds its prompt and answer from column 0 on, so rows of any length lie side by side, a new one takes the place
of a finished one, and nothing is ever shifted. What a mask hides beyond a row's length is left from earlier rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from worker.errors import BadSpec

# Columns are added in steps of this many, or of a half more than there were, so that few steps copy.
_COLUMNS = 64


def check_cache(model: PreTrainedModel, longest: int) -> None:
    """Raises BadSpec unless the model's memory of a text is the keys and values of each of its tokens, and only that.

    `longest` is the most tokens of a prompt with its answer: a window of attention at least as long leaves none out.
    """
    config: PreTrainedConfig = model.config
    kind = config.model_type
    if config.is_encoder_decoder or getattr(type(model), "_is_stateful", False):
        raise BadSpec(f"{kind} models carry a state along the text; answers can be sampled of full attention alone")
    try:
        layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    except (KeyError, TypeError, ValueError):
        layers = []
    for layer in layers:
        if type(layer) is DynamicSlidingWindowLayer and layer.sliding_window < longest:
            raise BadSpec(
                f"this {kind} model attends to its last {layer.sliding_window} tokens, and a prompt with its answer "
                f"may have {longest}; lower stage.max_length to that, or take a model of full attention"
            )
    if not layers or not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise BadSpec(f"{kind} models keep more than keys and values; answers can be sampled of full attention alone")


class Slots(Cache):
    """The keys and values of the rows that live: row `i` has `lengths[i]` tokens. Rows are dense, 0 to `len(lengths)`.

    Passed to a model for one token more of every row, after `open`; the mask for it is `mask`.
    """

    def __init__(self, slots: int, longest: int, device: torch.device):
        """Room for `slots` rows, of `longest` tokens at most. Memory is taken as rows grow."""
        super().__init__(layers=[])
        self._own: list[_Layer] = []  # the same as `layers`, known by what they are
        self.lengths: list[int] = []
        self._slots, self._longest = slots, longest
        self._device = device

    def append(self, prefilled: DynamicCache, lengths: Sequence[int]) -> None:
        """Takes the rows of a left-padded forward pass, whose last `lengths[i]` columns are row i's."""
        read = [_filled(layer) for layer in prefilled.layers]
        if not self._own:
            self._own = [_Layer(keys, values, self._slots) for keys, values in read]
            self.layers = list(self._own)
        first = len(self.lengths)
        self.lengths += lengths
        self._make_room(max(self.lengths))
        for layer, (keys, values) in zip(self._own, read, strict=True):
            for row, length in enumerate(lengths):
                layer.keys[first + row, :, :length] = keys[row, :, -length:]
                layer.values[first + row, :, :length] = values[row, :, -length:]

    def drop(self, row: int) -> None:
        """Frees a row's slot; the last row moves into it."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row == last:
            return
        self.lengths[row] = length
        for layer in self._own:
            layer.keys[row, :, :length] = layer.keys[last, :, :length]
            layer.values[row, :, :length] = layer.values[last, :, :length]

    def open(self) -> tuple[Tensor, Tensor]:
        """Opens a column after each row's last. Gives the tokens' positions, [rows, 1], and the mask, [rows, columns].

        The model's forward pass that follows, of one token a row, fills it.
        """
        columns = torch.tensor(self.lengths, device=self._device)
        width = max(self.lengths) + 1
        self._make_room(width)
        rows = torch.arange(len(self.lengths), device=self._device)
        for layer in self._own:
            layer.open(rows, columns, width)
        self.lengths = [length + 1 for length in self.lengths]
        mask = torch.arange(width, device=self._device) <= columns[:, None]
        return columns[:, None], mask.long()

    def _make_room(self, width: int) -> None:
        if width > self._own[0].columns:
            wanted = max(width, self._own[0].columns * 3 // 2)
            wanted = min(max(self._longest, width), -(-wanted // _COLUMNS) * _COLUMNS)
            for layer in self._own:
                layer.widen(wanted)


def _filled(layer: object) -> tuple[Tensor, Tensor]:
    """A layer's keys and values after a forward pass."""
    assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    return layer.keys, layer.values


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, [slots, heads, columns, size of a head]."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, slots: int):
        """Room for the like of these keys and values."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys = keys.new_zeros(slots, keys.shape[1], 0, keys.shape[3])
        self.values = values.new_zeros(slots, values.shape[1], 0, values.shape[3])
        self._width = 0

    @property
    def columns(self) -> int:
        return self.keys.shape[2]

    def widen(self, columns: int) -> None:
        # With zeros, not what happens to lie there: a mask hides by a weight of 0, and 0 x NaN is NaN.
        more = columns - self.columns
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, more))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, more))

    def open(self, rows: Tensor, columns: Tensor, width: int) -> None:
        self._rows, self._columns, self._width = rows, columns, width

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Puts one token a row, [rows, heads, 1, size], into the open columns. Gives the rows up to the widest."""
        self.keys[self._rows, :, self._columns] = key_states[:, :, 0]
        self.values[self._rows, :, self._columns] = value_states[:, :, 0]
        rows = len(self._rows)
        return self.keys[:rows, :, : self._width], self.values[:rows, :, : self._width]

    def get_seq_length(self) -> int:
        """Columns before the open one of the longest row: what a causal mask takes for the query's own place.

        That mask then hides nothing, and the mask given to the model hides what is beyond each row.
        """
        return max(0, self._width - 1)
