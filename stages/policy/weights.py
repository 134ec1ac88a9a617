"""The weights of a checkpoint folder as they lie on disk: one safetensors file, or several under an index.

They are read with plain reads and not through the library's memory map: mapped pages stay in memory beside the tensors made
from them, and a file that changes while it is mapped ends the process.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.errors import ArtifactError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LONGEST_HEADER = 100 * 2**20  # bytes, the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    file: Path
    offset: int  # bytes from the file's start
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class StoredWeights:
    """A checkpoint's tensors by name. Opening reads the files' headers only."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ArtifactError: no safetensors files, one that the index names is not there, or a broken or cut-off one.
        """
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for file in weight_files(folder):
            self.tensors |= read_header(file)

    @property
    def dtype(self) -> torch.dtype:
        """What most of the weights are stored in."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.numel
        return sizes.most_common(1)[0][0] if sizes else torch.float32

    def nbytes(self, dtype: torch.dtype | None = None) -> int:
        """What all weights take in memory, in `dtype` or as stored."""
        return sum(tensor.numel * (dtype or tensor.dtype).itemsize for tensor in self.tensors.values())

    def in_file_order(self) -> list[str]:
        """The names, so ordered that reading them one by one reads each file once from its start."""
        return sorted(self.tensors, key=lambda name: (self.tensors[name].file, self.tensors[name].offset))

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in the dtype and shape it is stored in.

        Raises:
            ArtifactError: the file has changed since it was opened.
        """
        tensor = self.tensors[name]
        raw = torch.empty(tensor.nbytes, dtype=torch.uint8)
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            if file.readinto(raw.numpy().data) != tensor.nbytes:
                raise ArtifactError(f"{tensor.file} was cut off while it was read; copy the checkpoint again")
        return raw.view(tensor.dtype).view(tensor.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.

    Raises:
        ArtifactError: there are none, or one that the index names is not there.
    """
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise _unreadable(folder, f"it has neither {SINGLE} nor {INDEX}")
    try:
        named = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _unreadable(folder, f"{INDEX} is no index of weights") from None
    for name in sorted(map(str, named)):
        if Path(name).name != name or not (folder / name).is_file():
            raise _unreadable(folder, f"{INDEX} names {name}, which is not there")
    return [folder / name for name in sorted(named)]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name.

    Raises:
        ArtifactError: no safetensors file, a cut-off one, or tensors that are no floating-point numbers.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise ArtifactError(
                    f"{file}: {name} is stored as {entry['dtype']}; expected {', '.join(_DTYPES)}; "
                    "name a checkpoint that is not quantised"
                )
            begin, end = entry["data_offsets"]
            tensor = StoredTensor(file, 8 + length + begin, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            if end - begin != tensor.nbytes:
                raise ValueError
            tensors[name] = tensor
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _unreadable(file.parent, f"{file.name} is no safetensors file") from None
    wanted = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
    found = file.stat().st_size
    if found < wanted:
        raise _unreadable(file.parent, f"{file.name} is cut off: {found} of {wanted} bytes")
    return tensors


def refuse_misfit(path: Path, missing: Iterable[str], left_over: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raises ArtifactError, naming the first few, when weights are missing, left over or of another shape."""
    for what, names in (
        ("lacks weights", missing),
        ("holds weights the model does not have", left_over),
        ("holds weights of another shape", mismatched),
    ):
        first = sorted(names)
        if first:
            more = f" and {len(first) - 3} more" if len(first) > 3 else ""
            raise ArtifactError(
                f"{path} {what}: {', '.join(first[:3])}{more}; its configuration and weights do not belong together"
            )


def _unreadable(folder: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{folder} cannot be read as a checkpoint: {reason}; make or copy it again")
