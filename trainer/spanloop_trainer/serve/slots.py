"""Keys and values of the running rows: one slot a row, so that rows join and leave a batch without padding."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

MIN_CAPACITY = 128  # positions; the buffers double from here, so short answers never pay for a long context


class SlotLayer(DynamicLayer):
    """One attention layer's buffers; `update` writes each row's new position and returns views of the rows in use."""

    def __init__(self, slots: SlotCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Allocate for `slots.rows` rows, with the heads and widths of `keys` and `values` (N, heads, P, width)."""
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.slots = slots
        self.keys: torch.Tensor = keys.new_zeros((slots.rows, keys.shape[1], slots.capacity, keys.shape[3]))
        self.values: torch.Tensor = values.new_zeros(
            (slots.rows, values.shape[1], slots.capacity, values.shape[3])
        )
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: object,  # noqa: ARG002  # the cache protocol's signature
        **kwargs: object,  # noqa: ARG002  # as above
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (B, heads, 1, width) at each row's own length; return (B, heads, longest, width)."""
        index, lengths, longest = self.slots.index, self.slots.active_lengths, self.slots.longest
        self.keys[index, :, lengths] = key_states[:, :, 0]
        self.values[index, :, lengths] = value_states[:, :, 0]
        batch = key_states.shape[0]
        return self.keys[:batch, :, :longest], self.values[:batch, :, :longest]

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions a row."""
        self.keys, self.values = _longer(self.keys, capacity), _longer(self.values, capacity)


def _filled(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (N, heads, P, width) of a prefill's layer."""
    assert isinstance(layer, DynamicLayer), "models.load lets only attention models in"
    assert layer.keys is not None, "a forward pass fills every layer"
    assert layer.values is not None, "a forward pass fills every layer"
    return layer.keys, layer.values


def _longer(old: torch.Tensor, capacity: int) -> torch.Tensor:
    new = old.new_zeros((old.shape[0], old.shape[1], capacity, old.shape[3]))
    new[:, :, : old.shape[2]] = old
    return new


class SlotCache(Cache):
    """Rows 0 … active-1 are in use; `lengths[i]` positions of row i are filled.

    Slots are kept dense: when a row leaves, the last row moves into its place, so a step reads plain views.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.buffers: list[SlotLayer] = []  # what `layers` holds, with its type
        self.active = 0
        self.capacity = MIN_CAPACITY
        self.lengths = torch.zeros(rows, dtype=torch.long)  # (rows,) positions filled
        self.index = torch.arange(0)  # (B,) the rows of the step under way
        self.active_lengths = torch.zeros(0, dtype=torch.long)  # (B,) where that step writes
        self.longest = 0  # positions that the step attends over

    def admit(self, prefilled: DynamicCache, sources: list[int], lengths: list[int]) -> None:
        """Append one row for each entry of `sources`: row `sources[i]` of a prefill, `lengths[i]` positions of it."""
        filled = [_filled(layer) for layer in prefilled.layers]
        if not self.buffers:
            self.buffers = [SlotLayer(self, keys, values) for keys, values in filled]
            self.layers = list(self.buffers)
        self._reserve(max(lengths))
        first, source = self.active, torch.tensor(sources)
        span = max(lengths)
        for layer, (keys, values) in zip(self.buffers, filled, strict=True):
            layer.keys[first : first + len(sources), :, :span] = keys[source, :, :span]
            layer.values[first : first + len(sources), :, :span] = values[source, :, :span]
        self.lengths[first : first + len(sources)] = torch.tensor(lengths)
        self.active += len(sources)

    def release(self, row: int) -> None:
        """Free `row`; the last row in use takes its number."""
        last = self.active - 1
        if row != last:
            filled = int(self.lengths[last])
            for layer in self.buffers:
                layer.keys[row, :, :filled] = layer.keys[last, :, :filled]
                layer.values[row, :, :filled] = layer.values[last, :, :filled]
            self.lengths[row] = self.lengths[last]
        self.active = last

    def begin_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare one decoding step.

        Returns:
            positions (B, 1) and an additive mask (B, 1, 1, longest), 0 where a row may look and -inf-like elsewhere.
        """
        self.index = torch.arange(self.active)
        self.active_lengths = self.lengths[: self.active].clone()
        self.longest = int(self.active_lengths.max()) + 1
        self._reserve(self.longest)
        visible = torch.arange(self.longest)[None, :] <= self.active_lengths[:, None]  # (B, longest)
        dtype = self.buffers[0].keys.dtype
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return self.active_lengths[:, None], mask[:, None, None, :]

    def end_step(self) -> None:
        """Count the position that the step wrote."""
        self.lengths[: self.active] += 1

    def clear(self) -> None:
        """Forget every row, after a failed step."""
        self.active = 0

    def _reserve(self, positions: int) -> None:
        if positions <= self.capacity:
            return
        while self.capacity < positions:
            self.capacity *= 2
        for layer in self.buffers:
            layer.grow(self.capacity)
