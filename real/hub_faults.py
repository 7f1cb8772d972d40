"""Why a model cannot be loaded: what the hub, the network, the disk or transformers said, in one sentence that says
what to do.

transformers wrap the fault that happened in guesses of their own ("make sure you don't have a local directory with the
same name"), so it is looked for among the errors behind the one that they raise.
Read next: hub.py, which loads models.
"""

import errno
import fnmatch
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import transformers
from huggingface_hub import constants, errors, list_repo_files
from huggingface_hub.utils import httpx
from safetensors import SafetensorError

from engine.runtime import is_out_of_memory

TORCHVISION = "pip install torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"  # of the pinned torch
AGAIN = "call the same command again: what was fetched whole is kept"


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything, with the next one where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2 if lines[0].endswith(":") else 1])


def why(name: str, auto: str, error: Exception, weights: bool = False) -> str:
    """Why the class `auto` of transformers could not load `name`, a folder or a name on the hub, and what to do.
    weights: whether weights were asked for, of which only those in safetensors are read."""
    is_folder = Path(name).is_dir()
    if weights and not _has(name, "*.safetensors"):  # first: transformers ask others to convert them, which fails, too
        return ("it holds no *.safetensors, and weights in other formats, which may run code, are not read; convert "
                "them: https://huggingface.co/docs/safetensors/convert-weights")
    return (next(filter(None, (_of_hub(name, e, is_folder) or _of_machine(e, is_folder) for e in _behind(error))), None)
            or _of_files(name, auto, error))


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it; what happened first comes last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _has(name: str, pattern: str) -> bool:
    """Whether a folder, or a model on the hub, holds a file so called; yes where that cannot be told."""
    try:
        files = os.listdir(name) if Path(name).is_dir() else list_repo_files(name)
    except Exception:  # what the hub says here it has said before
        return True
    return bool(fnmatch.filter(files, pattern))


def _of_hub(name: str, error: BaseException, is_folder: bool) -> str | None:
    """What the hub answered, or what kept it from answering; None where the error is of another kind."""
    if isinstance(error, errors.HFValidationError) and not is_folder:
        return "no such folder, nor a name that a model on the hub can have (OWNER/NAME)"
    if constants.HF_HUB_OFFLINE and isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return ("no such folder, and not among the models kept on this machine; HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE "
                "forbids to ask the hub: unset it, or give a folder")
    if isinstance(error, httpx.TimeoutException):
        return f"the hub did not answer in time; {AGAIN}, and HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer"
    if isinstance(error, (httpx.ConnectError, httpx.ProxyError)):
        return (f"no such folder, and the hub cannot be reached ({first_line(error)}); give a folder with the model's "
                "files, or go online")
    if isinstance(error, httpx.TransportError):
        return f"the download broke off ({first_line(error)}); {AGAIN}"
    if not isinstance(error, errors.HfHubHTTPError) or isinstance(error, errors.EntryNotFoundError):
        return None
    status = error.response.status_code
    said = " ".join(f"{status}, {error.server_message or error.response.reason_phrase}".split())
    if isinstance(error, errors.GatedRepoError):
        return (f"the hub gives it only to those who accepted its terms ({said}); accept them at "
                f"https://huggingface.co/{name} and log in with `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return (f"no such folder, and the hub shows you no such model ({said}); look at the spelling or, if the model "
                "is private, log in with `hf auth login`")
    advice = {401: "log in anew with `hf auth login`, or unset HF_TOKEN", 429: f"wait, then {AGAIN}",
              403: "see on the model's page who may have it, and whether your token has the right to read it",
              404: "see on the model's page what it holds"}
    return f"the hub answered: {said}; {advice.get(status, f'if that is a fault of its own, wait, then {AGAIN}')}"


def _of_machine(error: BaseException, is_folder: bool) -> str | None:
    """What this machine lacks: disk, rights, memory; None where the error is of another kind."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (f"the disk is full, where models of the hub are kept ({constants.HF_HUB_CACHE}); make room, or set "
                "HF_HOME to a folder on another disk")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or (constants.HF_HUB_CACHE if not is_folder else "a file in it")
        return f"{error.strerror}: {where}; change its rights" + (
            "" if is_folder else ", or set HF_HOME to a folder of yours")
    if is_out_of_memory(error):
        return "there is not enough memory to load it; take a smaller model, or a machine with more memory"
    if isinstance(error, SafetensorError):
        return (f"a file of its weights is cut or damaged ({first_line(error)}); fetch or copy it again: in a clone "
                "`git lfs pull`, from the hub `hf download --force-download`")
    return None


def _of_files(name: str, auto: str, error: Exception) -> str:
    """What is wrong with the model's own files, or is lacking to read them."""
    message = first_line(error)
    told = message.replace(name, "")  # which may hold any of the words below
    needs_video = "video processor" in told and not find_spec("torchvision")
    if needs_video or isinstance(error, ImportError) and "orchvision" in told:
        return f"its processor insists on torchvision, for videos; {TORCHVISION}"
    if isinstance(error, ImportError):
        return f"a package that it needs is not installed: {message}"
    if unknown := re.search(r"model type `(.+?)` but Transformers does not recognize", told):
        return (f"transformers {transformers.__version__} do not know its architecture, {unknown[1]}; if it is a newer "
                "one, try a newer version in an environment of its own")
    if "Should have a `model_type` key" in told:
        lack = "its config.json names no model_type" if _has(name, "config.json") else "it holds no config.json"
        return f"{lack}; give a model in the layout of transformers, which GGUF files or an adapter alone are not"
    if "custom code" in told:
        return "it brings Python code of its own, which is never run here; give a model that transformers have code for"
    if "backend tokenizer" in told and not _has(name, "tokenizer.json"):
        return "it holds no tokenizer.json; if it holds a tokenizer.model, pip install sentencepiece reads it"
    if "image processor" in told and not _has(name, "*processor_config.json"):  # nor preprocessor_config.json
        return "no image processor (preprocessor_config.json or processor_config.json)"
    return f"{auto} cannot read {'this folder' if Path(name).is_dir() else 'what the hub holds'}: {message}"
