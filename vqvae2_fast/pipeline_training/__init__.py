"""From images to a pipeline that draws them, with its report, in a given time.

`plan.py` decides what is trained and for how long, `training.py` does it, and `result.py` measures
and shows what came out.
"""

from vqvae2_fast.pipeline_training.result import finish, measured
from vqvae2_fast.pipeline_training.training import train

__all__ = ["finish", "measured", "train"]
