"""SMPL from a file poses as the built-in body does, and other files are refused."""

import numpy as np
import pytest
import smplx
import torch

import body as bd
from real.smpl import body_vertices, load_body
from test_body import EYE, random_pose


@pytest.fixture(scope="module")
def body():
    return load_body()


def test_body_vertices_refuses_wrong_shapes(body):
    with pytest.raises(ValueError, match="betas"):
        body_vertices(body, EYE, torch.zeros(1, 16))


def test_a_body_that_is_moved_to_a_device_leaves_the_others_where_they_are():
    """A file is read once, but pictures are drawn on the CPU while measures are taken on a GPU."""
    moved = load_body().to("meta")  # stands for a GPU
    assert moved.v_template.device.type == "meta" and load_body().v_template.device.type == "cpu"
    assert body_vertices(load_body(), EYE, torch.zeros(1, 10))[0].isfinite().all()


def test_load_body_from_a_file(body, tmp_path, capsys):
    arrays = {"v_template": body.v_template, "shapedirs": body.shapedirs, "weights": body.lbs_weights,
              "posedirs": body.posedirs.T.reshape(-1, 3, 207), "J_regressor": body.J_regressor, "f": body.faces_tensor,
              "kintree_table": torch.tensor([bd.PARENTS, range(24)])}
    arrays = {name: array.numpy() for name, array in arrays.items()}
    np.savez(tmp_path / "smpl.npz", **arrays)
    loaded = load_body(str(tmp_path / "smpl.npz"))
    assert isinstance(loaded, smplx.SMPL) and capsys.readouterr().out == ""
    rotmats, betas = random_pose(2), torch.ones(2, 10)
    assert torch.equal(body_vertices(loaded, rotmats, betas)[0], body_vertices(body, rotmats, betas)[0])

    with pytest.raises(FileNotFoundError, match="npz"):
        load_body(str(tmp_path / "absent.npz"))
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="v_template"):
        load_body(str(tmp_path / "SMPL_NEUTRAL.pkl"))
    np.savez(tmp_path / "bad.npz", **arrays | {"weights": arrays["weights"][:, :22]})
    with pytest.raises(ValueError, match="weights"):
        load_body(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "bad2.npz", **{k: v for k, v in arrays.items() if k != "J_regressor"})
    with pytest.raises(ValueError, match="J_regressor"):
        load_body(str(tmp_path / "bad2.npz"))
