"""OpenAI's torch modules trained by the same recipe, as a worker's task."""

import math
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

from benchmarks import machine, peers

torch: Any = None  # loaded by prepare, which says if it is missing


def _in_16_bits(self: Any, x: Any) -> Any:
    """OpenAI's ``Conv2d.forward`` on a GPU with bfloat16 in place of float16."""
    dtype = torch.bfloat16 if self.use_float16 else torch.float32
    padding = (self.kw - 1) // 2
    return torch.nn.functional.conv2d(
        x.to(dtype), self.w.to(dtype), self.b.to(dtype), padding=padding
    )


def _in_float32(self: Any, x: Any) -> Any:
    """The same in float32, where OpenAI's would take float16 on a GPU."""
    return torch.nn.functional.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class Task:
    """Both modules, AdamW, the average of the parameters, and one batch.

    The step is what ours is: map the pixels, encode, relax with fresh Gumbel noise, decode, the
    logit-Laplace loss, the KL, AdamW, the average, the norm of the gradients.
    """

    def __init__(self, arguments: dict[str, Any], dall_e: dict[str, Any]):
        self._device = peers.torch_device(torch.cuda.is_available())
        cuda = self._device.type == "cuda"
        sizes = {
            "n_hid": arguments["n_hid"],
            "n_blk_per_group": arguments["blocks"],
            "vocab_size": arguments["vocab"],
            "device": self._device,
        }
        halves = {half: dall_e[half](**sizes) for half in ("encoder", "decoder")}
        self._model = torch.nn.ModuleDict(halves)
        folder = Path(arguments["folder"])
        with np.load(folder / "parameters.npz") as saved:
            self._model.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved})
        if arguments["precision"] == "bfloat16" or cuda:
            forward = _in_16_bits if arguments["precision"] == "bfloat16" else _in_float32
            for module in self._model.modules():
                if isinstance(module, dall_e["Conv2d"]):
                    module.forward = MethodType(forward, module)
        self._parameters = list(self._model.parameters())
        self._average = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, fused=True
        )
        self._pixels, noise = (self._tensor(folder / f"{name}.npy") for name in ("pixels", "noise"))
        self._shape = noise.shape
        self._objective, self._draw = self.objective, self.draw
        if arguments["compiled"]:
            self._objective = torch.compile(self.objective)
            self._draw = torch.compile(self.draw)
        self._nll = peers.torch_formula()
        loss, kl, norm = self._advance(noise)
        self.facts: dict[str, Any] = {"loss": float(loss), "kl": float(kl)}
        self.facts |= {"grad_norm": float(norm), "platform": "gpu" if cuda else "cpu"}
        del noise
        self._advance()  # with noise of its own
        self.call = peers.torch_timed(self._advance, self._device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self._counts = cuda or machine.restart_peak()

    def _tensor(self, path: Path) -> Any:
        channels_first = np.load(path).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(channels_first)).to(self._device)

    def draw(self) -> Any:
        """Standard Gumbel noise."""
        return -torch.empty(self._shape, device=self._device).exponential_().log()

    def objective(self, pixels: Any, noise: Any) -> tuple[Any, Any]:
        """The negative ELBO in nats per value (with β = τ = 1), and the KL in nats per token."""
        x = 0.1 + 0.8 / 255.0 * pixels.float()
        logits = self._model["encoder"](x)
        log_p = torch.log_softmax(logits, dim=1)
        kl = (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum(1).mean()
        codes = torch.softmax(logits + noise, dim=1)
        loc, log_scale = self._model["decoder"](codes).float().chunk(2, dim=1)
        tokens_per_value = logits.shape[2] * logits.shape[3] / pixels[0].numel()
        return self._nll(x, loc, log_scale).mean() + tokens_per_value * kl, kl

    def _advance(self, noise: Any = None) -> tuple[Any, Any, Any]:
        self._optimizer.zero_grad(set_to_none=True)
        loss, kl = self._objective(self._pixels, self._draw() if noise is None else noise)
        loss.backward()
        with torch.no_grad():
            grads = [p.grad for p in self._parameters]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            self._optimizer.step()
            torch._foreach_lerp_(self._average, self._parameters, 0.001)
        return loss.detach(), kl.detach(), norm

    def finish(self) -> dict[str, Any]:
        """Peak memory of the steps: None where the system cannot count anew."""
        if self._device.type == "cuda":
            return {"step_bytes": int(torch.cuda.max_memory_allocated())}
        return {"step_bytes": machine.peak_bytes() if self._counts else None}


def prepare(**arguments: Any) -> Task:
    """The task of a section.

    Raises:
      Missing: torch or OpenAI's package DALL-E is not installed.
    """
    global torch
    torch = peers.load("torch")
    dall_e = {
        "encoder": peers.load("dall_e.encoder").Encoder,
        "decoder": peers.load("dall_e.decoder").Decoder,
        "Conv2d": peers.load("dall_e.utils").Conv2d,
    }
    return Task(arguments, dall_e)
