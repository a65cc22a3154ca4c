"""Checkpoints of a run, by Orbax: written atomically, the last few kept.

The one module that knows Orbax's API, whose next major version moves it.
"""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from logit_laplace_jax.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; one clear line."""


def _arrays(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "ema_params": state.ema_params,
        "opt_state": state.opt_state,
    }


class Checkpoints:
    """The ``checkpoints/`` folder of a run. Use as a context manager: leaving waits for writes.

    Args:
      folder: where they stand.
      keep: how many of the latest checkpoints stay; None: all.
      create: make the folder if it does not exist.

    Raises:
      CheckpointError: the folder does not exist and is not to be made.
    """

    def __init__(self, folder: Path, keep: int | None = None, create: bool = True):
        if not create and not folder.is_dir():
            raise CheckpointError(f"no complete checkpoint yet: {folder} does not exist")
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save
        self.folder = folder.resolve()
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the last complete checkpoint; None without one."""
        step = self._manager.latest_step()
        return None if step is None else int(step)

    def save(self, state: TrainState, iterator_state: dict[str, Any]) -> None:
        """Writes a checkpoint in the background, unless that step has one already.

        Args:
          state: one copy of the state (not replicated).
          iterator_state: the data iterator's state, plain JSON types.
        """
        step = int(state.step)
        if step == self.latest:
            return
        # A copy on the host: the next step donates, and so overwrites, the state's buffers.
        arrays = jax.tree.map(np.array, _arrays(state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), data=ocp.args.JsonSave(iterator_state)
            ),
        )

    def wait(self) -> None:
        """Blocks until what was saved is on disk."""
        self._manager.wait_until_finished()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """Reads a checkpoint.

        Args:
          like: a state of the same configuration, for structure, shapes and dtypes.
          step: which; the latest by default.

        Returns:
          The state (one copy, on the first local device) and the data iterator's state.

        Raises:
          CheckpointError: there is none, it is damaged, or its shapes are of another model.
        """
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f"no complete checkpoint in {self.folder}")
        where = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), _arrays(like)
        )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax raises many types for a damaged folder
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} cannot be read ({reason[:200]}); "
                "delete its folder to go on from the one before"
            ) from error
        return like.replace(**restored["state"]), restored["data"]
