# SPDX-License-Identifier: Apache-2.0
"""Data by name: a text file, a folder of a Hugging Face dataset, or something in the user's own Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.trials.data import of_text
from bsmodel.workloads import Source, Workload, attribute, library


def data_named(name: str, source: Source, workload: Workload) -> tuple[Any, Any]:
    """Samples to train on and to validate with, or None for these, and a sentence on what they are where that is not their own matter.

    A text becomes pieces of as many tokens as a sample of the workload has: by the tokenizer in the workload's own folder, else a token for each byte.
    Raises `InvalidInputError` for a file that cannot be read, or what is no data.
    """
    if ":" in name and not Path(name).exists():
        found = attribute(name)
        found = found() if callable(found) and not hasattr(found, "__getitem__") else found
        return found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    path = Path(name)
    if path.is_dir():
        return _of_folder(path)
    return of_text(path, workload.tokens_per_sample, tokenizer_of(source)), None


def _of_folder(path: Path) -> tuple[Any, Any]:
    """A dataset that `save_to_disk` of Hugging Face's datasets wrote, with its train and validation splits where it has such."""
    load = library("datasets", f"data {str(path)!r}").load_from_disk  # that it is missing is not the folder's fault
    try:
        found = load(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise InvalidInputError(f"data {str(path)!r} is no folder of a dataset: {str(error).splitlines()[0]}") from None
    if not hasattr(found, "keys"):
        return found.with_format("torch"), None
    splits = list(found)
    if "train" not in splits:
        raise InvalidInputError(f"data {str(path)!r} has the splits {', '.join(splits)}; expected one called train")
    held = next((name for name in ("validation", "valid", "dev", "test") if name in splits), None)
    return found["train"].with_format("torch"), None if held is None else found[held].with_format("torch")


def tokenizer_of(source: Source) -> Any:
    """The tokenizer in the folder of a model's configuration; None where there is none."""
    folder = Path(source.name) if Path(source.name).is_dir() else Path(source.name).parent
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return None
    return library("transformers", "its tokenizer").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
