"""What only a GPU can show; skipped without one. `tools/gpu_check.sh` runs them on a machine without a network."""

import pytest
import torch

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
