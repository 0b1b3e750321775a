"""ONNX files of anyone's making, read by onnxruntime and nothing else."""

from pathlib import Path
from typing import Any

from lenslib.errors import InputError

INSTALL = "install what it needs: pip install 'lenslib[demo]'"


def open_session(path: str | Path, threads: int = 0) -> tuple[Any, Any]:
    """An ONNX file as a session of onnxruntime on the processor, on so many threads (0: all), and its program.

    InputError when it is none. A file that keeps its weights in another one is refused, since that could be any file.
    """
    try:
        import onnx
        import onnxruntime
        from onnx.external_data_helper import _get_all_tensors, uses_external_data
    except ImportError:
        raise InputError(f"'{path}' cannot be run here: {INSTALL}") from None
    if not Path(path).is_file():
        raise InputError(f"no file '{path}'")
    content = Path(path).read_bytes()
    try:
        program = onnx.load_model_from_string(content)
        onnx.checker.check_model(program)
    except Exception:  # protobuf's and the checker's own, of many kinds
        raise InputError(f"'{path}' is not a whole ONNX file: export the network again") from None
    if any(map(uses_external_data, _get_all_tensors(program))):
        raise InputError(f"'{path}' keeps its weights in another file: export the network again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:
        raise InputError(f"'{path}' cannot be run by onnxruntime {onnxruntime.__version__}: export it again") from None
    return session, program
