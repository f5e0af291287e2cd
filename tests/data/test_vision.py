import subprocess
import sys

import pytest
import torch


@pytest.mark.slow
def test_models_and_timm_import_after_vision_in_a_fresh_process() -> None:
    program = "from hpclbfl.core.vision import torchvision; import timm; print(torchvision.models.resnet18.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "resnet18", done.stderr


def test_schemas_stay_declared() -> None:
    import hpclbfl.core.vision  # noqa: F401

    assert "nms(Tensor dets" in str(torch.ops.torchvision.nms.default._schema)
