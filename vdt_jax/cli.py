"""What the scripts share: flags and configs in, log lines out, one line for an error, exit codes."""

import dataclasses
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_dict, config_flags

from vdt_jax.distributed.processes import SecondCtrlC, listen
from vdt_jax.errors import CANCELLED, INTERRUPTED, USER_ERROR, RunStopped, UserError, printable
from vdt_jax.files import REFUSALS, cache_folder
from vdt_jax.options import Options, kind_of
from vdt_jax.progress import show_log

flags.disclaim_key_flags()  # --help of a script lists the flags that this module defines for it


def run(main: Callable[[Sequence[str]], None]) -> None:
    """app.run, but an error that the user can correct ends in one line on stderr and exit code 2, without a traceback.

    A run that stops before its end exits with the code of `RunStopped`, Ctrl-C with 130; a second one ends at once.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler):
                signal.signal(signal.SIGINT, signal.default_int_handler)  # after `end_at_ctrl_c`
            show_log()
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is not a flag: write --name=value")
            with listen(SecondCtrlC()):
                main(argv)
        except KeyboardInterrupt:
            print("stopped: interrupted", file=sys.stderr)
            sys.exit(CANCELLED)
        except UserError as error:
            _fail(str(error))
        except BrokenPipeError:
            _end_unread()
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            _fail(f"{error.filename or 'a file'} cannot be used ({error.strerror}): free some space, or choose another")
        except RunStopped as stop:
            print("stopped:" if stop.code == INTERRUPTED else "error:", stop, file=sys.stderr)
            sys.exit(stop.code)

    app.run(guarded, flags_parser=_parse_flags)


def quiet_start() -> None:
    """Silences the logs of libraries and caches compiled programs between runs.

    The cache is in a folder of this user alone; JAX_COMPILATION_CACHE_DIR names another one.
    """
    logging.set_verbosity(logging.FATAL)  # errors in a library are raised, too, and end in one line
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # A cache is code that will be run: nobody else may write there.
        try:
            jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
        except OSError as error:
            reason = " ".join(filter(None, [error.filename, error.strerror]))
            print(f"no compilation cache ({reason}): set XDG_CACHE_HOME to a writable folder", file=sys.stderr)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def define_flags(cls: type) -> None:
    """Defines a flag for each field of a dataclass of options: its name, default, help text and allowed values."""
    for field in dataclasses.fields(cls):
        kind, is_tuple, _ = kind_of(cls, field.name)
        help, choices, default = field.metadata["help"], field.metadata["choices"], typing.cast(Any, field.default)
        if choices is not None:
            help = f"{help} One of {', '.join(choices)}."
        if is_tuple:
            flags.DEFINE_list(field.name, default and list(map(str, default)), help)
        else:
            _DEFINE[kind](field.name, default, help)


def options_of_flags(cls: type[Options]) -> Options:
    """The dataclass of options that the flags of `define_flags` give, or UserError."""
    values = {}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        kind, is_tuple, _ = kind_of(cls, field.name)
        value = flags.FLAGS[field.name].value
        values[field.name] = [_parsed(field.name, kind, item) for item in value] if is_tuple and value else value
    return cls(**values)


_DEFINE: dict[Any, Callable[..., Any]] = {
    Any: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def _parsed(name: str, kind: type, text: str) -> Any:
    """An item of a list, which flags keep as text."""
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} must be a list of {'integers' if kind is int else 'numbers'}, got {text!r}") from None


def define_config() -> None:
    """Defines --config, a recipe of configs/, and the flags --config.KEY=VALUE that change it."""
    config_flags.DEFINE_config_file("config", None, "A recipe of configs/.")


def values_of_config() -> dict[str, Any]:
    """The values of --config.

    Where the user names another data source, keys that the recipe sets for its own source alone are dropped.
    UserError: no --config, or one that cannot be loaded.
    """
    if flags.FLAGS.config is None:
        raise UserError("no recipe was named: add --config=configs/moving_digits.py, or another of configs/")
    try:
        config: Any = ConfigDict(flags.FLAGS.config)
    except (OSError, ImportError, TypeError, AttributeError) as error:  # ml_collections keeps errors until it is used
        raise UserError(_not_loaded(config_flags.get_config_filename(flags.FLAGS["config"]), error)) from None
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    if "data.name" in chosen:
        from vdt_jax.data import keys_of  # grain takes a second, and not every script needs it

        for key in set(config.data) - keys_of(config.data.name) - {"name"}:
            if not any(name == f"data.{key}" or name.startswith(f"data.{key}.") for name in chosen):
                config.data[key] = None
    return config.to_dict()


def _not_loaded(path: str, error: object) -> str:
    """The message about a recipe that cannot be loaded; `error`: an exception, or its text."""
    text = str(error).rpartition("earlier failure to load: ")[2].strip()
    reason = text.splitlines()[-1] if text else type(error).__name__
    if lines := re.findall(rf'File "{re.escape(path.partition(":")[0])}", line (\d+)', text):
        reason += f", line {lines[-1]}"
    if of_system := re.search(r"\[Errno \d+\] ([^:]+)", text):
        reason = of_system[1]
    if isinstance(error, SyntaxError) and error.lineno:
        reason = f"{error.msg.partition(' (detected')[0]}, line {error.lineno}"
    if "get_config'" in f"{text}'":
        reason = "it has no function get_config()"
    return f"--config={path} cannot be loaded ({reason}): name a recipe, such as configs/moving_digits.py"


def recipe_name() -> str:
    """The name of the recipe of --config: sky_24gb for configs/sky.py:24gb."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join(filter(None, [Path(file).stem, variant]))


def config_of_options(options: Any) -> ConfigDict:
    """The fields of a dataclass of options, nested ones too, as a config that a recipe changes."""
    config = ConfigDict()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None:
            value = config_dict.placeholder(kind_of(options, field.name)[0])
        config[field.name] = config_of_options(value) if dataclasses.is_dataclass(value) else value
    return config


def _parse_flags(argv: Sequence[str]) -> list[str]:
    asks_for_help = any(argument.lstrip("-").startswith("help") for argument in argv)
    # Of two values of a config key the later counts; ml_collections would concatenate tuples.
    parts = [text.partition("=") for text in argv]
    keys = [name if sign and name.lstrip("-").startswith("config.") else "" for name, sign, _ in parts]
    last = {key: number for number, key in enumerate(keys) if key}
    argv = [text for number, text in enumerate(argv) if last.get(keys[number], number) == number]
    recipe = next((value for name, _, value in reversed(parts) if name.lstrip("-") == "config"), "")
    try:
        return app.parse_flags_with_usage(list(argv)) if asks_for_help else flags.FLAGS(list(argv))
    except BrokenPipeError:
        _end_unread()
    except flags.Error as error:  # of what a recipe raises ml_collections gives the traceback, the reason last
        text = str(error).rpartition("UserError: ")[2]
        _fail(_not_loaded(recipe, text) if "\n" in text else text)
    except (AttributeError, KeyError) as error:  # ml_collections: a key that the config does not have
        if "get_config" in str(error):
            _fail(_not_loaded(recipe, error))
        lines = str(error).strip("'\"").replace("\\n", "\n").replace("\\'", "'").splitlines()
        own = "options of your own data source are set together, --config.data.options=\"{'name': value}\""
        hint = " ".join(lines[1:]) or f"The keys are in vdt_jax/training/config.py; {own}."
        _fail(f"the config has no {lines[0]}. {hint}")
    except (TypeError, ValueError) as error:
        _fail(f"a config value does not fit: {error}")
    except (OSError, ImportError, SyntaxError) as error:
        _fail(_not_loaded(recipe, error))


def _end_unread() -> NoReturn:
    """Ends without a word where nothing reads the output any more, as after `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at its end
    sys.exit(1)


def _fail(message: str) -> NoReturn:
    print("error:", printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(USER_ERROR)
