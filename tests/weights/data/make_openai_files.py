"""Makes the files beside it, with torch and OpenAI's package, the way the published ones were made.

python tests/weights/data/make_openai_files.py

Made with torch 2.13.0 and DALL-E 0.1. A dVAE of two groups and 1,392 parameters, random biases:

- ``encoder.pkl``, ``decoder.pkl``: ``torch.save(module)``, whole modules in a zip archive;
- ``encoder_legacy.pkl``, ``decoder_legacy.pkl``: the same in the container of torch before 1.6,
  which names every class by a persistent id with its source (shortened here);
- ``encoder.pt``, ``decoder.pt``: ``torch.save(module.state_dict())``;
- ``expected.npz``: mapped pixels ``x``, the encoder's ``logits``, their argmax ``tokens``, and the
  decoder's ``maps`` of those tokens, by torch; all NHWC.

The tests of the readers import this module too; torch is needed only inside the functions.
"""

import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np

from logit_laplace_jax.models.config import DVAEConfig

CONFIG = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)


def modules(config, seed=0):
    """OpenAI's encoder and decoder of any size, with random weights and biases."""
    import attr
    import torch
    from dall_e.decoder import Decoder, DecoderBlock
    from dall_e.encoder import Encoder, EncoderBlock

    shared = {
        "n_hid": config.n_hid,
        "n_blk_per_group": config.n_blk_per_group,
        "vocab_size": config.vocab_size,
    }
    # OpenAI's validators refuse small sizes, for which the code works all the same.
    with attr.validators.disabled():
        encoder = Encoder(input_channels=config.channels, **shared)
        decoder = Decoder(output_channels=config.channels, n_init=config.n_init, **shared)
        if config.group_count != 4:  # their classes always make four groups
            widths = list(config.group_widths)
            pool = torch.nn.MaxPool2d(kernel_size=2)
            double = torch.nn.Upsample(scale_factor=2, mode="nearest")
            _regroup(config, encoder.blocks, EncoderBlock, config.n_hid, widths, "pool", pool)
            encoder.blocks.output.conv = _conv(widths[-1], config.vocab_size)
            args = (config.n_init, widths[::-1], "upsample", double)
            _regroup(config, decoder.blocks, DecoderBlock, *args)
            decoder.blocks.output.conv = _conv(config.n_hid, 2 * config.channels)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (encoder, decoder):
            for name, parameter in module.named_parameters():
                scale = 0.3 if name.endswith(".b") else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return encoder, decoder


def _conv(n_in, n_out):
    from dall_e.utils import Conv2d

    return Conv2d(n_in, n_out, 1, use_float16=False)


def _regroup(config, blocks, block, n_in, widths, resize_name, resize):
    import torch

    children = OrderedDict(input=blocks.input)
    for i, width in enumerate(widths, start=1):
        group = OrderedDict()
        for j in range(1, config.n_blk_per_group + 1):
            group[f"block_{j}"] = block(n_in, width, config.blocks)
            n_in = width
        if i < len(widths):
            group[resize_name] = resize
        children[f"group_{i}"] = torch.nn.Sequential(group)
    children["output"] = blocks.output
    blocks._modules = children


def expected(config, encoder, decoder, x):
    """What torch makes of mapped pixels [B, H, W, C]: logits, tokens and maps, NHWC."""
    import torch

    with torch.no_grad():
        logits = encoder(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
        tokens = logits.argmax(dim=1)
        codes = torch.nn.functional.one_hot(tokens, config.vocab_size).permute(0, 3, 1, 2)
        maps = decoder(codes.float())
    return {
        "logits": logits.numpy().transpose(0, 2, 3, 1),
        "tokens": tokens.numpy().astype(np.int32),
        "maps": maps.numpy().transpose(0, 2, 3, 1),
    }


def save_legacy(module, path):
    """``torch.save`` before 1.6, with a short source text instead of each class's own."""
    import inspect
    from unittest import mock

    import torch

    with (
        mock.patch.object(inspect, "getsourcelines", return_value=(["class ...\n"], 0)),
        mock.patch.object(inspect, "getsourcefile", lambda kind: f"{kind.__module__}.py"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.save(module, path, _use_new_zipfile_serialization=False)


def main():
    """Writes the files."""
    import torch

    folder = Path(__file__).parent
    encoder, decoder = modules(CONFIG)
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        torch.save(module, folder / f"{name}.pkl")
        save_legacy(module, folder / f"{name}_legacy.pkl")
        torch.save(module.state_dict(), folder / f"{name}.pt")
    x = np.random.default_rng(0).uniform(0.1, 0.9, (2, 8, 12, 3)).astype(np.float32)
    np.savez_compressed(folder / "expected.npz", x=x, **expected(CONFIG, encoder, decoder, x))


if __name__ == "__main__":
    main()
