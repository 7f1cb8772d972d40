"""SMPL's arrays without chumpy: the official pickles, and those of 3DPW, read without running anything in them.

A pickle is a program: it names functions, and the reader calls them. Here a name either means one of the few inert
records below, which keep what they are given, or the file is refused. What the records of an array, a number or a
sparse matrix kept becomes numpy afterwards. So neither chumpy, which today's numpy cannot load, nor scipy is needed.
talk.py reads PoseEmbroider's pickles so too.
Read next: smpl.py, whose load_body makes SMPL of these arrays.
"""

import pickle
import re
from pathlib import Path

import numpy as np


class _Record:
    """What a pickle says of one object, kept and never run: `args` of the call, then `state`."""

    args, state = (), ()

    def value(self):
        raise ValueError(f"it holds a bare {type(self).__name__.strip('_').lower()}")

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state

    def of_state(self, key: str, kind: type | tuple[type, ...]):
        value = self.state.get(key) if isinstance(self.state, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"a {type(self).__name__.strip('_')} without its `{key}`")
        return value


class _Dtype(_Record):
    def value(self) -> np.dtype:
        name, order = self.args[0], self.state[1] if self.state else "="
        if not re.fullmatch(r"[fiub][1248]|[SU]\d{1,4}", name) or order not in ("<", ">", "=", "|"):
            raise ValueError(f"arrays of {name!r} are not read")
        return np.dtype(name).newbyteorder(order)


class _Array(_Record):
    def value(self) -> np.ndarray:
        _, shape, dtype, fortran, raw = self.state
        array = np.frombuffer(_bytes(raw), dtype.value())
        return array.reshape(shape, order="F" if fortran else "C").copy()


class _Scalar(_Record):
    def value(self) -> np.generic:
        return np.frombuffer(_bytes(self.args[1]), self.args[0].value())[0]


class _Chumpy(_Record):
    """chumpy.ch.Ch: an array to be differentiated, under `x`."""

    def value(self) -> np.ndarray:
        return self.of_state("x", _Array).value()


class _Select(_Chumpy):
    """chumpy.reordering.Select: the numbers `idxs` of another object's, laid out flat, in the shape they prefer."""

    def value(self) -> np.ndarray:
        whole, chosen = self.of_state("a", (_Array, _Chumpy)).value(), self.of_state("idxs", _Array).value()
        shape = _plain(self.state.get("preferred_shape"))
        return whole.ravel()[chosen] if shape is None else whole.ravel()[chosen].reshape(shape)


class _Sparse(_Record):
    """scipy's csc_matrix: column j holds data[k] in row indices[k], for k from indptr[j] to indptr[j + 1]."""

    def value(self) -> np.ndarray:
        data, indices, indptr = (self.of_state(key, _Array).value() for key in ("data", "indices", "indptr"))
        shape = tuple(int(_plain(n)) for n in self.of_state("_shape", tuple))
        dense = np.zeros(shape, data.dtype)
        np.add.at(dense, (indices, np.repeat(np.arange(shape[1]), np.diff(indptr))), data)
        return dense


class _Object(_Record):
    """`object` itself, which older pickles name as the base of what they rebuild."""


class _Set(_Record):
    """A set, in which chumpy notes what has changed of an object. Nobody asks for it."""


def _bytes(raw: str | bytes) -> bytes:
    return raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 had one type for both


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple, order: str, *axes) -> _Array:
    """An array as pickle's protocol 5 has it."""
    if order not in ("C", "F"):
        raise ValueError(f"an array in the order {order!r}")
    array = _Array()
    array.state = (1, shape, dtype, order == "F", raw)
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how Python 3 writes bytes into an older pickle
        raise ValueError(f"text in {encoding!r}")
    return text.encode(encoding)


def _rebuild(kind: type, base: type, state: object) -> _Record:
    if not (isinstance(kind, type) and issubclass(kind, _Record)):
        raise ValueError("copyreg is asked to rebuild what is not an object of numpy, scipy or chumpy")
    return kind()


_KNOWN = {("chumpy.ch", "Ch"): _Chumpy, ("chumpy.reordering", "Select"): _Select, ("_codecs", "encode"): _encode,
          ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
_KNOWN |= {(f"numpy.{core}.{module}", name): kind for core in ("core", "_core")
           for module, name, kind in (("multiarray", "_reconstruct", _Array), ("multiarray", "scalar", _Scalar),
                                      ("numeric", "_frombuffer", _from_buffer))}
_KNOWN |= {(f"scipy.sparse.{module}", "csc_matrix"): _Sparse for module in ("csc", "_csc")}
_KNOWN |= {(module, "_reconstructor"): _rebuild for module in ("copy_reg", "copyreg")}
_KNOWN |= {(module, name): kind for module in ("__builtin__", "builtins")
           for name, kind in (("object", _Object), ("set", _Set))}

# Where a folder has the neutral body: as smplx's users lay it out, or as SMPL's own archive (and SMPLify's) unpacks.
PLACES = (".", "smpl", "models", "smpl/models", "*/smpl/models")
NAMES = ("SMPL_NEUTRAL.npz", "SMPL_NEUTRAL.pkl", "basic[mM]odel_neutral_lbs_10_207_0_v1.*.pkl")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _KNOWN:
            raise ValueError(f"it asks for {module}.{name}, which no such data needs, and was read no further")
        return _KNOWN[module, name]


def _plain(value, depth: int = 0, done: dict[int, object] | None = None):
    """The value with numpy in place of records. What it holds many times over is made once, and a loop has no end."""
    done = {} if done is None else done
    if depth > 6:
        raise ValueError("it is nested deeper than such data is")
    if id(value) not in done:
        if isinstance(value, dict):
            made = {key: _plain(item, depth + 1, done) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            made = type(value)(_plain(item, depth + 1, done) for item in value)
        elif isinstance(value, _Record):
            made = value.value()
        elif isinstance(value, (str, bytes, int, float, type(None))):
            made = value
        else:
            raise ValueError(f"it holds a {type(value).__name__}")
        done[id(value)] = made
    return done[id(value)]


def restricted_load(path: str | Path) -> dict:
    """The dict in a pickle of SMPL, 3DPW or PoseEmbroider, of Python 2 or 3: numbers, text, lists, dense numpy arrays.

    Nothing in the file is run. Raises FileNotFoundError, or ValueError with one sentence for whatever else is wrong.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            found = _plain(_Unpickler(file, encoding="latin1").load())
    except Exception as error:  # a broken pickle raises whatever its broken bytes ask for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is refused as a pickle: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a dict, found {type(found).__name__}")
    return found


def read_smpl(path: str | Path) -> dict[str, np.ndarray]:
    """SMPL's arrays, checked: v_template (V, 3), shapedirs (V, 3, 10 or more), posedirs (V, 3, 207), J_regressor
    (24, V), kintree_table (2, 24), weights (V, 24), f (F, 3).

    path: an .npz of them, the official pickle, of whatever name, or a folder that has the neutral body in one of PLACES
    under one of NAMES. Raises FileNotFoundError, or ValueError for any other file."""
    path = Path(path)
    if path.is_dir():
        found = (file for place in PLACES for name in NAMES for file in sorted(path.glob(f"{place}/{name}"))[::-1])
        path = next(filter(Path.is_file, found), path / "SMPL_NEUTRAL.pkl")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give SMPL_NEUTRAL.pkl from smpl.is.tue.mpg.de, an .npz of its "
                                "arrays, the folder of either, the folder that SMPL's archive unpacks to, the file of "
                                "a man's or a woman's body, or no path for the built-in body")
    if path.suffix.lower() != ".npz":
        found = restricted_load(path)
    else:
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                found = dict(file)
        except Exception as error:  # zipfile, zlib and numpy each raise their own
            raise ValueError(f"{path} cannot be read as an npz file: {error}") from None
    V, F = (len(found[name]) if np.ndim(found.get(name)) else 0 for name in ("v_template", "f"))
    arrays = {}
    for name, shape in {"v_template": (V, 3), "shapedirs": (V, 3, 10), "posedirs": (V, 3, 207), "f": (F, 3),
                        "J_regressor": (24, V), "weights": (V, 24), "kintree_table": (2, 24)}.items():
        array = np.asarray(found.get(name, ()))
        array = array[..., :10] if name == "shapedirs" and array.ndim else array
        sound = array.shape == shape and array.dtype.kind in "fiu" and array.size and (np.abs(array) < 1e10).all()
        if not sound:  # NaN is not less than anything
            raise ValueError(f"{path}: {name} must be a finite array {shape}, found {array.dtype} {array.shape}; "
                             "is this SMPL?")
        arrays[name] = array
    if arrays["f"].min() < 0 or arrays["f"].max() >= V:
        raise ValueError(f"{path}: f names a vertex that is not among the {V}; is this SMPL?")
    return arrays
