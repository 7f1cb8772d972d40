import io
import os
import pickle
import shutil
import struct
import sys
import types

import numpy as np
import pytest
import torch

import body
from real.smpl import body_vertices, load_body
from real.smpl_pickle import restricted_load


class Python2(pickle._Pickler):
    """Writes as Python 2 did: text and bytes are one type, and the modules have their old names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)
    dispatch[str] = dispatch[bytes] = save_text


def python2(value, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def posedirs_like(v_template) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(*v_template.shape, 207))


@pytest.fixture
def smpl(monkeypatch):
    """The official file's dict, of the built-in body's arrays; its classes are gone when the test reads it.

    An object of chumpy pickles all that it knows of itself, sets among it; the shapes are some of those of a larger
    object, as in MANO and in older files."""
    modules = {}
    for module, name in (("chumpy.ch", "Ch"), ("chumpy.reordering", "Select"), ("scipy.sparse.csc", "csc_matrix")):
        modules[module] = types.ModuleType(module)
        setattr(modules[module], name, type(name, (), {"__module__": module}))
        modules |= {parent: types.ModuleType(parent) for parent in [module.rpartition(".")[0]] if parent not in modules}
    modules["scipy"] = types.ModuleType("scipy")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def chumpy(kind="ch", name="Ch", **terms):
        made = getattr(modules[f"chumpy.{kind}"], name)()
        made.__dict__.update(_dirty_vars=set(terms), _itr=None, _make_dense=False, _make_sparse=False,
                             _depends_on_deps={"r": {"deps": set(terms), "value": None, "out_of_date": True}}, **terms)
        return made

    def first_shapes(shapedirs):
        chosen = np.arange(np.prod(np.shape(shapedirs) + (2,))).reshape(*shapedirs.shape, 2)[..., 0].ravel()
        whole = np.stack([shapedirs, np.full_like(shapedirs, 9)], -1)
        return chumpy("reordering", "Select", a=chumpy(x=whole), idxs=chosen, preferred_shape=shapedirs.shape)

    def sparse(dense):
        rows, columns = dense.T.nonzero()[::-1]
        made = modules["scipy.sparse.csc"].csc_matrix()
        made.__dict__.update(data=dense[rows, columns], indices=rows.astype(np.int32), maxprint=50, _shape=dense.shape,
                             indptr=np.searchsorted(columns, np.arange(dense.shape[1] + 1)).astype(np.int32))
        return made

    model = load_body()
    parents = np.array([body.PARENTS, range(24)])
    return {"v_template": model.v_template.double().numpy(),
            "shapedirs": first_shapes(model.shapedirs.double().numpy()),
            "posedirs": chumpy(x=np.asfortranarray(posedirs_like(model.v_template))),
            "J_regressor": sparse(model.J_regressor.double().numpy()), "J_regressor_prior": sparse(np.eye(24, 30)),
            "kintree_table": parents.astype(np.uint32), "weights": chumpy(x=model.lbs_weights.double().numpy()),
            "weights_prior": model.lbs_weights.double().numpy(), "f": model.faces_tensor.numpy().astype(np.uint32),
            "J": chumpy(x=np.zeros((24, 3))), "bs_style": "lbs", "bs_type": "lrotmin",
            "vert_sym_idxs": np.arange(9)[::-1].astype(">i4")}


def forget(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("chumpy", "scipy")]:
        monkeypatch.delitem(sys.modules, name)


def write(path, smpl, monkeypatch, protocol=2):
    raw = pickle.dumps(smpl, protocol) if protocol > 2 else python2(smpl, protocol)
    assert b"chumpy.ch" in raw and b"csc_matrix" in raw and b"Select" in raw
    assert protocol > 2 or b"__builtin__\nset\n" in raw
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(raw)
    forget(monkeypatch)


@pytest.mark.parametrize("protocol", [1, 2, 4, 5])
def test_the_official_pickle_is_smpl_without_chumpy_or_scipy(smpl, tmp_path, monkeypatch, protocol):
    write(tmp_path / "SMPL_NEUTRAL.pkl", smpl, monkeypatch, protocol)
    shutil.copy(tmp_path / "SMPL_NEUTRAL.pkl", tmp_path / "NEUTRAL.PKL")  # of whatever name
    loaded, built_in = load_body(str(tmp_path / "NEUTRAL.PKL")), load_body()
    for name in ("v_template", "shapedirs", "J_regressor", "lbs_weights", "faces_tensor", "parents"):
        assert torch.equal(getattr(loaded, name), getattr(built_in, name)), name
    posedirs = torch.from_numpy(posedirs_like(loaded.v_template)).float()
    assert torch.equal(loaded.posedirs.T.reshape(posedirs.shape), posedirs)
    found = restricted_load(tmp_path / "SMPL_NEUTRAL.pkl")
    assert found["bs_type"] == "lrotmin" and np.array_equal(found["vert_sym_idxs"], np.arange(9)[::-1])
    assert np.array_equal(found["J_regressor_prior"], np.eye(24, 30)) and found["kintree_table"][0, 0] == 2 ** 32 - 1
    assert not {"chumpy", "scipy"} & set(sys.modules)


ARCHIVE = "SMPL_python_v.1.1.0/smpl/models/basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"  # as SMPL's archive unpacks


@pytest.mark.parametrize("place", [
    "SMPL_NEUTRAL.pkl", "smpl/SMPL_NEUTRAL.pkl", "SMPL_NEUTRAL.npz", ARCHIVE, ARCHIVE.partition("/")[2],
    ARCHIVE.rpartition("/")[2], "models/basicModel_neutral_lbs_10_207_0_v1.0.0.pkl"])
def test_a_folder_of_the_usual_layout_is_enough(smpl, tmp_path, monkeypatch, place):
    smpl["kintree_table"] = smpl["kintree_table"].astype(np.int32).astype(np.int64)
    write(tmp_path / "folder" / "smpl" / "SMPL_NEUTRAL.pkl", smpl, monkeypatch)
    (tmp_path / "folder" / "smpl" / "SMPL_NEUTRAL.pkl").rename(tmp_path / "folder" / "written")
    (tmp_path / "folder" / place).parent.mkdir(parents=True, exist_ok=True)
    if place.endswith("npz"):
        found = restricted_load(tmp_path / "folder" / "written")
        np.savez(tmp_path / "folder" / place, **{k: v for k, v in found.items() if isinstance(v, np.ndarray)})
    else:
        (tmp_path / "folder" / "written").rename(tmp_path / "folder" / place)
    loaded = load_body(str(tmp_path / "folder"))
    assert torch.equal(loaded.v_template, load_body().v_template) and loaded.parents[0] == -1
    rotmats = body.axis_angle_to_matrix(torch.randn(1, 24, 3, generator=torch.Generator().manual_seed(0)))
    vertices, joints = body_vertices(loaded, torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10))
    assert joints[0, body.JOINT["left_hand"], 0] > .5 and joints[0, body.JOINT["head"], 1] > .5  # left is +x, up is +y
    assert joints[0, body.JOINT["left_foot"], 2] > .05  # toes, as the face, point to +z
    assert torch.isfinite(body_vertices(loaded, rotmats, torch.ones(1, 10))[0]).all()


def test_the_archives_men_and_women_are_given_by_their_file(smpl, tmp_path, monkeypatch):
    """Version 1.0 has no neutral body: its folder says so, and does not choose one."""
    path = tmp_path / "smpl" / "models" / "basicmodel_m_lbs_10_207_0_v1.0.0.pkl"
    write(path, smpl, monkeypatch)
    assert torch.equal(load_body(str(path)).v_template, load_body().v_template)
    with pytest.raises(FileNotFoundError, match="the file of a man's or a woman's body"):
        load_body(str(tmp_path))


@pytest.mark.parametrize("key, value, words", [
    ("v_template", np.zeros((5, 3)), "v_template must be|shapedirs must be"), ("weights", None, "weights must be"),
    ("f", np.full((4, 3), 10 ** 6), "names a vertex"), ("posedirs", np.zeros((3, 3)), "posedirs must be"),
    ("kintree_table", "text", "kintree_table must be"), ("v_template", np.full((9, 3), np.nan), "must be a finite")])
def test_a_pickle_that_is_not_smpl_says_what_it_lacks(smpl, tmp_path, monkeypatch, key, value, words):
    write(tmp_path / "SMPL_NEUTRAL.pkl", smpl | {key: value}, monkeypatch)
    with pytest.raises(ValueError, match=words):
        load_body(str(tmp_path / "SMPL_NEUTRAL.pkl"))


def test_a_folder_or_file_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "SMPL_NEUTRAL.pkl", tmp_path / "smpl.npz"):
        with pytest.raises(FileNotFoundError, match="no such file; give SMPL_NEUTRAL.pkl"):
            load_body(str(path))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="broken.npz cannot be read as an npz"):
        load_body(str(tmp_path / "broken.npz"))


# ---------------------------------------------------------------- pickles that mean harm

class Call:
    """Pickled as a call, which an ordinary unpickler makes."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def ran(*args):  # what a harmful pickle gets to run in these tests, were it run
    ran.calls += 1
    return b""


ran.calls = 0
os_system, builtins = os.system.__module__, "builtins"
GETATTR = b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__reduce__'\ntR."
NESTED = b"\x80\x02}(U\x01xcchumpy.ch\nCh\n)\x81}U\x01x" + b"(cposix\nsystem\nU\x04true\x85Rtsb" + b"u."
HARMFUL = {
    "a call": (pickle.dumps(Call(ran, 1)), "test_smpl_pickle.ran"),
    "os.system": (pickle.dumps(Call(os.system, "touch ran"), 2), f"{os_system}.system"),
    "os.system by its other name": (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
    "builtins.eval": (pickle.dumps(Call(eval, "1 + 1"), 4), "builtins.eval"),
    "Python 2's eval": (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
    "exec": (pickle.dumps(Call(exec, "1"), 0), "exec"),
    "getattr": (GETATTR, "builtins.getattr"),
    "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "numpy.ndarray.dump"),
    "a dotted way to os": (b"\x80\x04\x8c\x07_codecs\x8c\x0bsys.modules\x93.", "_codecs.sys.modules"),
    "numpy.load": (pickle.dumps(Call(np.load, "x.npy", None, True), 2), "numpy.load"),
    "numpy.testing": (b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.", "utils.runstring"),
    "numpy.fromfile": (b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.", "numpy.fromfile"),
    "numpy.memmap": (b"cnumpy\nmemmap\n(S'ran'\ntR.", "numpy.memmap"),
    "subprocess": (b"csubprocess\nPopen\n(S'true'\ntR.", "subprocess.Popen"),
    "an INST opcode": (b"(S'touch ran'\nios\nsystem\n.", "os.system"),
    "an OBJ opcode": (b"(cos\nsystem\nS'touch ran'\no.", "os.system"),
    "inside a dict": (pickle.dumps({"v_template": np.zeros(3), "f": [Call(os.system, "true")]}), "system"),
    "inside a chumpy object": (NESTED, "posix.system"),
    "inside an object array": (pickle.dumps({"x": np.array([Call(os.system, "true")], dtype=object)}), "system"),
    "an object array": (pickle.dumps({"x": np.array([1, "a"], dtype=object)}), "arrays of 'O8'"),
    "a structured array": (pickle.dumps({"x": np.zeros(2, "f4,f4")}), "arrays of 'V8'"),
    "another class of chumpy": (b"cchumpy.ch\nMatVecMult\n.", "chumpy.ch.MatVecMult"),
    "another way to reorder": (b"cchumpy.reordering\ntranspose\n.", "chumpy.reordering.transpose"),
    "a selection of itself": (b"}S'x'\ncchumpy.reordering\nSelect\n)\x81p1\n}(S'a'\ng1\nubs.", "recursion"),
    "a set in place of data": (b"}S'x'\nc__builtin__\nset\n(]tRs.", "bare set"),
    "a buffer of a function": (b"}S'x'\ncnumpy.core.numeric\n_frombuffer\n(S'os'\ncposix\nsystem\nI1\nS'C'\ntRs.",
                               "posix.system"),
    "another codec": (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "text in 'rot13'"),
    "rebuilding another class": (b"ccopy_reg\n_reconstructor\n(I1\nc__builtin__\nobject\nNtR.", "asked to rebuild"),
    "rebuilding by a function": (b"ccopy_reg\n_reconstructor\n(c_codecs\nencode\nc__builtin__\nobject\nNtR.",
                                 "asked to rebuild"),
    "a class in place of data": (b"}S'x'\ncnumpy\nndarray\ns.", "holds a type"),
    "a bare object": (b"}S'x'\nc__builtin__\nobject\n)Rs.", "bare object"),
    "a persistent id": (b"Pos.system\n.", "persistent"),
    "a list within itself": (b"}S'x'\n]p1\ng1\nas.", "nested deeper"),
    "a huge array": (b"}S'x'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
                     b"(L99999999999999L\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
                     b"I00\nS'abcdefgh'\ntbs.", "cannot reshape array of size 1"),
    "not a dict": (pickle.dumps([1, 2]), "must hold a dict, found list"),
    "half a file": (pickle.dumps({"x": np.zeros(100)})[:-40], "refused as a pickle"),
    "an empty file": (b"", "refused as a pickle"), "text": (b"hello\n", "refused as a pickle")}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_pickle_that_means_harm_is_refused_and_nothing_of_it_runs(name, tmp_path, monkeypatch):
    raw, words = HARMFUL[name]
    monkeypatch.chdir(tmp_path)
    for function in ("system", "popen"):
        monkeypatch.setattr(os, function, ran)
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(raw)
    before, ran.calls = {"SMPL_NEUTRAL.pkl"}, 0
    with pytest.raises(ValueError) as caught:
        load_body(str(tmp_path / "SMPL_NEUTRAL.pkl"))
    assert words in str(caught.value) and "SMPL_NEUTRAL.pkl" in str(caught.value) and "\n" not in str(caught.value)
    assert ran.calls == 0 and set(os.listdir(tmp_path)) == before


def test_the_same_pickles_do_harm_to_an_ordinary_unpickler():
    ran.calls = 0
    pickle.loads(HARMFUL["a call"][0])
    assert ran.calls == 1


def test_what_is_shared_a_million_times_over_is_made_once(tmp_path):
    shared = [0.0]
    for _ in range(4):
        shared = [shared] * 1000  # 10^12 items if unfolded
    (tmp_path / "shared.pkl").write_bytes(pickle.dumps({"x": shared}))
    assert len(restricted_load(tmp_path / "shared.pkl")["x"]) == 1000
