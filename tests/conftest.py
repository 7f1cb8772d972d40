import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)  # with more, a sum is split as the batch falls, and what is equal is so only to rounding
