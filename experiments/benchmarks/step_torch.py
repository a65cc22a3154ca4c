"""OpenAI's torch modules trained by the same recipe, as a worker's task."""

import math
import time
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
from _bench import machine, memory, peers

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

    def __init__(self, arguments: dict[str, Any], dall_e: dict[str, Any], imported: int):
        started = time.perf_counter()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(machine.cores())
        sizes = {
            "n_hid": arguments["n_hid"],
            "n_blk_per_group": arguments["blocks"],
            "vocab_size": arguments["vocab"],
            "device": self._device,
        }
        self._model = torch.nn.ModuleDict(
            {half: dall_e[half](**sizes) for half in ("encoder", "decoder")}
        )
        with np.load(Path(arguments["folder"], "parameters.npz")) as saved:
            self._model.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved})
        if arguments["precision"] == "bfloat16" or self._device.type == "cuda":
            forward = _in_16_bits if arguments["precision"] == "bfloat16" else _in_float32
            for module in self._model.modules():
                if isinstance(module, dall_e["Conv2d"]):
                    module.forward = MethodType(forward, module)
        self._format = torch.contiguous_format
        if arguments["channels_last"]:
            self._format = torch.channels_last
            self._model.to(memory_format=torch.channels_last)
        self._parameters = list(self._model.parameters())
        self._average = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, fused=True
        )
        pixels = np.load(Path(arguments["folder"], "pixels.npy")).transpose(0, 3, 1, 2)
        self._pixels = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)
        noise = np.load(Path(arguments["folder"], "noise.npy")).transpose(0, 3, 1, 2)
        first_noise = torch.from_numpy(np.ascontiguousarray(noise)).to(self._device)
        del noise
        self._objective, self._draw = self.objective, self.draw
        if arguments["compiled"]:
            self._objective = torch.compile(self.objective)
            self._draw = torch.compile(self.draw)
        self._shape = first_noise.shape
        loss, kl, norm = self._advance(first_noise)
        facts = {"loss": float(loss), "kl": float(kl), "grad_norm": float(norm)}
        del first_noise
        self.call(1)  # with noise of its own
        self.facts: dict[str, Any] = {
            **facts,
            "platform": "gpu" if self._device.type == "cuda" else "cpu",
            "ready_seconds": time.perf_counter() - started,
            "import_bytes": imported,
            "ready_bytes": self._peak(),
        }
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._counts = self._device.type == "cuda" or memory.restart()

    def draw(self) -> Any:
        """Standard Gumbel noise."""
        return -torch.empty(self._shape, device=self._device).exponential_().log()

    def objective(self, pixels: Any, noise: Any) -> tuple[Any, Any]:
        """The negative ELBO in nats a value (with β = τ = 1), and the KL in nats a token."""
        x = (0.1 + 0.8 / 255.0 * pixels.float()).contiguous(memory_format=self._format)
        logits = self._model["encoder"](x)
        log_p = torch.log_softmax(logits, dim=1)
        kl = (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum(1).mean()
        codes = torch.softmax(logits + noise, dim=1)
        loc, log_scale = self._model["decoder"](codes).float().chunk(2, dim=1)
        log_x, log_1mx = torch.log(x), torch.log1p(-x)
        distance = torch.abs(log_x - log_1mx - loc)
        nll = distance * torch.exp(-log_scale) + log_scale + math.log(2.0) + log_x + log_1mx
        tokens_per_value = logits.shape[2] * logits.shape[3] / pixels[0].numel()
        return nll.mean() + tokens_per_value * kl, kl

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

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return memory.peak_bytes()

    def call(self, count: int) -> float:
        """Trains ``count`` steps."""
        started = time.perf_counter()
        for _ in range(count):
            self._advance()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def finish(self) -> dict[str, Any]:
        """Peak memory of the steps: None where the system cannot count anew."""
        return {"step_bytes": self._peak() if self._counts else None}


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
    imported = 0 if torch.cuda.is_available() else memory.peak_bytes()
    return Task(arguments, dall_e, imported)
