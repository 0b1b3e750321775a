"""Run a notebook with parameters that are checked before it starts.

papermill alone only warns about an unknown name, and ignores the annotations of the parameters cell.
"""

import argparse
import ast
import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lenslib.errors import InputError, unknown
from lenslib.seals import SEAL, check_seal, seal
from lenslib.untrusted import parse_yaml

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from lenslib.records import Run

_TYPES = {"int": int, "float": Annotated[float, Field(allow_inf_nan=False)], "bool": bool, "str": str}
_POSITIVE = ("epochs", "batch_size", "image_size", "crop", "learning_rate", "count")  # and names that end in _count


class NotebookError(RuntimeError):
    """A notebook stopped with an error; the message is one line and says where its traceback lies."""


@dataclass(frozen=True)
class Parameter:
    """One line `name: annotation = default` of a notebook's parameters cell."""

    name: str
    annotation: str
    type: Any
    default: Any


def inspect(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, by name, read from its cell tagged `parameters` without running it.

    Types are int, float, bool, str, list[...] and Literal[...]; InputError for anything else.
    """
    cells = [cell for cell in read(notebook).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{notebook}: has {len(cells)} cells tagged 'parameters'; it needs exactly one")
    parameters = {}
    for line in _lines(notebook, cells[0].source):
        if isinstance(line, ast.Import | ast.ImportFrom):
            continue
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            raise InputError(
                f"{notebook}: '{ast.unparse(line)}' must read 'name: type = default' in its parameters cell"
            )
        name, annotation = line.target.id, ast.unparse(line.annotation)
        try:
            parameters[name] = Parameter(name, annotation, _type(line.annotation), ast.literal_eval(line.value))
        except ValueError:
            raise InputError(
                f"{notebook}: parameter '{name}: {annotation}': its type must be made of int, float, bool, str, "
                "list[...] and Literal[...], its default a plain value"
            ) from None
    return parameters


def read(notebook: str | Path) -> "NotebookNode":
    """A notebook as nbformat's node; InputError if the file is missing or no notebook."""
    return _read(notebook, 4)


def _read(notebook: str | Path, version: int) -> "NotebookNode":
    import nbformat  # two seconds, which the other commands need not wait for

    try:
        return nbformat.read(notebook, as_version=version)
    except FileNotFoundError:
        raise InputError(f"{notebook}: no such notebook") from None
    except Exception as error:  # nbformat raises several unrelated types
        raise InputError(f"{notebook}: not a notebook ({str(error).splitlines()[0]})") from None


def read_whole(notebook: str | Path) -> "NotebookNode":
    """As `read`, of an executed notebook; InputError as well if it was altered since."""
    import nbformat

    content = _read(notebook, nbformat.NO_CONVERT)  # from an earlier version it would come without its cells
    if content.get("nbformat") != 4:
        raise InputError(f"{notebook}: not of version 4, as the workflow writes them; run again what wrote it")
    if not isinstance(content.metadata.get("lenslib", {}), Mapping):
        raise InputError(f"{notebook}: not as it was written, its metadata 'lenslib' is no mapping; run it again")
    check_seal(_sealed(content), notebook)
    return content


def _sealed(notebook: "NotebookNode") -> dict[str, Any]:
    """What the seal of an executed notebook is of, and that seal if it has one."""
    told = dict(notebook.metadata)
    ours = told.pop("lenslib", {})
    # the seal alone: what else stands there must not stand for the cells
    kept = {SEAL: ours[SEAL]} if SEAL in ours else {}
    return {"cells": notebook.cells, "metadata": told, **kept}


def verify_run(folder: str | Path) -> "Run":
    """A run of whose files every byte was checked, its executed notebook among them.

    Raises InputError, which names it, for a file that is missing, torn or altered.
    """
    from lenslib.records import load_run

    run = load_run(folder)
    for name in run.record.get("files", {}):
        run.path(name)
    if (run.folder / "notebook.ipynb").is_file():
        read_whole(run.folder / "notebook.ipynb")
    return run


def check(notebook: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the notebook will see them; InputError for an unknown name, a wrong type or a bad choice."""
    parameters = inspect(notebook)
    checked = {}
    for name, value in values.items():
        if name not in parameters:
            raise unknown(f"parameter of {notebook}", name, parameters)
        parameter = parameters[name]
        try:
            checked[name] = TypeAdapter(parameter.type).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(
                f"{notebook}: parameter '{name}' must be {parameter.annotation}, not {value!r} "
                f"({type(value).__name__}): {reason}"
            ) from None
        _check_meaning(notebook, name, checked[name])
    return checked


def execute(
    notebook: str | Path, output: str | Path, parameters: Mapping[str, Any], log: str | Path | None = None
) -> None:
    """Run `notebook` with `parameters` in the present folder and write the executed notebook to `output`.

    `output` appears only when every cell has run. Until then, and after an error, the notebook with what it printed
    and its traceback is `log` (default `logs/<name of the notebook>`).

    Raises InputError before the start for a bad parameter, and for one that a cell raised; NotebookError otherwise.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    notebook, output = Path(notebook), Path(output)
    log = Path(log) if log else Path("logs") / notebook.name
    values = check(notebook, parameters)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        execute_notebook(
            str(notebook),
            str(log),
            values,
            kernel_name="python3",
            progress_bar=sys.stderr.isatty(),
            log_output=True,
            start_timeout=300,  # a busy laptop, or eight kernels at once
        )
    except PapermillExecutionError as error:
        kind = InputError if error.ename == "InputError" else NotebookError
        reason = (str(error.evalue).splitlines() or [""])[0]
        raise kind(f"{notebook}, cell {error.exec_count}: {error.ename}: {reason}; its traceback is in {log}") from None
    except DeadKernelError:
        _enter_death(log)
        raise NotebookError(f"{notebook}: its process died, perhaps for want of memory; see {log}") from None
    except OSError as error:
        raise InputError(f"'{log}' cannot be written ({error.strerror or error}): make room there") from None
    keep(read(log), output)
    log.unlink()


def _enter_death(log: Path) -> None:
    """Let the log say that the kernel died: by itself it holds no error then, and looks as of a run at work."""
    import nbformat

    from lenslib.records import write_whole

    said = "the kernel died (killed, or out of memory?)"
    # on a full disk the terminal alone is told
    with suppress(OSError, InputError):
        notebook = read(log)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        begun = [cell for cell in cells if cell.metadata.papermill.start_time]
        error = nbformat.v4.new_output("error", ename="DeadKernelError", evalue=said, traceback=[said])
        # of those that ran, the last is where it died
        for cell in begun[-1:] or cells[:1]:
            cell.outputs.append(error)
        write_whole(log, nbformat.writes(notebook).encode())


def keep(notebook: "NotebookNode", path: Path) -> None:
    """Write an executed notebook whole, and sealed. InputError where it cannot be written."""
    import nbformat

    from lenslib.records import write_whole

    notebook.metadata["lenslib"] = {SEAL: seal(_sealed(notebook))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, nbformat.writes(notebook).encode())
    except OSError as error:
        raise InputError(f"'{path}' cannot be written ({error.strerror}): make room there") from None


def from_text(notebook: str | Path, texts: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters given as text (`-p name value`, YAML files) as values: YAML, but text where a `str` is expected."""
    parameters = inspect(notebook)
    values = {}
    for name, text in texts.items():
        value = text
        if isinstance(text, str) and name in parameters and parameters[name].type is not str:
            try:
                value = parse_yaml(text)
            except ValueError:
                pass
            if parameters[name].annotation == "float" and isinstance(value, str):
                try:
                    value = float(value)  # YAML 1.1 reads 1e-3 as text
                except ValueError:
                    pass
        values[name] = value
    return values


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Add `lenslib run`; its `handler` default takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser("run", help="run a notebook with checked parameters")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed notebook goes once every cell has run")
    parser.add_argument("-p", dest="pairs", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--parameters", type=Path, metavar="FILE", help="YAML file of parameters; -p overrides it")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the notebook while it runs, and after an error")
    parser.set_defaults(handler=run_command)
    return parser


def run_command(arguments: argparse.Namespace) -> int:
    """`lenslib run`: 0, or 1 after one line on standard error if a cell failed (InputError is the caller's)."""
    texts: dict[str, Any] = {}
    if arguments.parameters:
        texts |= _read_yaml(arguments.parameters)
    texts |= dict(arguments.pairs)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"[{arguments.notebook.stem}] %(message)s")
    try:
        execute(arguments.notebook, arguments.output, from_text(arguments.notebook, texts), arguments.log)
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), aliases=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: must map parameter names to values")
    return content


def _lines(notebook: str | Path, source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{notebook}: its parameters cell is not Python: {error}") from None


def _type(node: ast.expr) -> Any:
    """The type that an annotation spells; ValueError if it is not one of ours."""
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "list":
            return list[_type(node.slice)]
        if node.value.id == "Literal":
            choices = ast.literal_eval(node.slice)
            return Literal[choices if isinstance(choices, tuple) else (choices,)]
    raise ValueError(ast.unparse(node))


def _check_meaning(notebook: str | Path, name: str, value: Any) -> None:
    """InputError for a count or seed out of range, a recipe or a model that is not there."""
    if name in _POSITIVE or name.endswith("_count"):
        if value <= 0:
            raise InputError(f"{notebook}: parameter '{name}' must be greater than 0, not {value}")
    elif name == "seed" or name == "seeds":
        if min(_as_list(value), default=0) < 0:
            raise InputError(f"{notebook}: parameter '{name}' must not be negative, not {value}")
    elif name in ("recipe", "recipes"):
        import lenslib

        _check_choices("recipe", [text for text in _as_list(value) if not Path(text).is_file()], lenslib.list_recipes())
    elif name in ("model", "models"):
        import lenslib

        _check_choices("model", _as_list(value), lenslib.list_models())


def _check_choices(kind: str, names: Iterable[str], choices: Iterable[str]) -> None:
    choices = list(choices)
    for name in names:
        # a set that changes lines of a recipe, or holds what fits leave, has a name that begins with the recipe's
        changed = kind == "recipe" and any(name.startswith(f"{choice}_") for choice in choices)
        if name not in choices and not changed:
            raise unknown(kind, name, choices)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
