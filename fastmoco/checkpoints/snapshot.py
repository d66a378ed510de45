"""A copy of a run's state that is written while the steps go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


class Snapshot:
    """Copies of states into host memory that is used again, as new memory costs more than the copy.

    On a GPU the copies run on a stream of their own, into pinned memory; the host does not wait for them. Not run on
    a GPU yet.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def of(self, state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        """Copy a state.

        Args:
            state: tensors and plain values, in dictionaries, lists and tuples.

        Returns:
            The copy, which holds until the next one is made, and a function that waits until it is complete. Later
            work on the current streams does not change the copy.
        """
        unused, used, copies = iter(self._buffers), list[torch.Tensor](), dict[int, torch.Tensor]()

        def copied(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if id(value) not in copies:  # a tensor that occurs twice is written once
                    copies[id(value)] = self._copied(value.detach(), unused)
                    used.append(copies[id(value)])
                return copies[id(value)]
            if isinstance(value, dict):
                return {key: copied(part) for key, part in value.items()}
            return type(value)(copied(part) for part in value) if isinstance(value, list | tuple) else value

        result = copied(state)
        self._buffers = used
        events = [self._rejoined(device, stream) for device, stream in self._streams.items()]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return result, wait

    def _copied(self, tensor: torch.Tensor, unused: Iterator[torch.Tensor]) -> torch.Tensor:
        # a run's states have the same tensors in the same order
        buffer = next(unused, None)
        if buffer is None or _form(buffer) != _form(tensor):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if not tensor.is_cuda:
            return buffer.copy_(tensor)
        stream = self._streams.get(tensor.device)
        if stream is None:
            stream = self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))  # which may still compute the tensor
        with torch.cuda.stream(stream):
            return buffer.copy_(tensor, non_blocking=True)

    def _rejoined(self, device: torch.device, stream: torch.cuda.Stream) -> torch.cuda.Event:
        # the next step writes the tensors: on the device it waits for the copies, the host does not
        event = torch.cuda.Event()
        event.record(stream)
        torch.cuda.current_stream(device).wait_event(event)
        return event


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()
