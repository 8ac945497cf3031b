"""``ltbench export``: a finished run as one file that runs without ltbench.

The file is an ONNX model, a program of ``torch.export``, or weights in safetensors. Normalisation
and softmax are part of the first two: pixels in, probabilities out. Class names and the rest of the
preprocessing lie inside, as JSON. Nothing is written that does not agree with torch.
"""

import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from typing_extensions import override

from ltbench import __version__, records
from ltbench.data.sources.folder import image_files
from ltbench.errors import UserError
from ltbench.methods.optimised import OptimisedModule
from ltbench.records.files import plain
from ltbench.runs.arguments import Arguments
from ltbench.runs.finished import FinishedRun, open_run
from ltbench.runs.notices import quiet

METADATA = "ltbench"
"""Key of the JSON in a file's metadata."""

TOLERANCE = 1e-3
"""Largest difference of a probability from torch's."""

EXAMPLES = 64
"""Images that a file is compared on."""


class Classifier(nn.Module):
    """A trained method as one function: uint8 images (N, C, S, S) -> probabilities (N, K).

    Args:
        run: A finished run.

    Raises:
        UserError: The run does not classify images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, run: FinishedRun) -> None:
        super().__init__()
        run.require_images()
        model = run.model
        assert isinstance(model, OptimisedModule)
        self.network = model.net.to(memory_format=torch.contiguous_format)  # exporters ask for it
        self.logits_of = model.forward  # a bound method: what else the method holds stays behind
        for name, values in zip(("mean", "std"), run.input_statistics, strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1))
        self.eval()

    @override
    def forward(self, images: Tensor) -> Tensor:
        standardised = (images.float() - self.mean) / self.std
        return self.logits_of(standardised).float().softmax(1)


def metadata(run: FinishedRun, licence: str | None = None) -> dict[str, Any]:
    """Return what someone who serves the model needs to know, as plain data."""
    record, how = run.record, run.decoding
    return {
        "ltbench": __version__,
        "name": record["name"],
        "method": record["method"],
        "dataset": record["dataset"],
        "job_id": record["job_id"],
        "selection": run.selection,
        "weights": record["weights"],
        "class_names": run.class_names,
        "input": {
            "pixels": "uint8, RGB" if run.channels == 3 else "uint8, grey",
            "shape": ["N", run.channels, run.image_size, run.image_size],
            "resize_shorter_side": how.resize or run.image_size,
            "interpolation": how.interpolation,
            "crop": "centre",
        },
        "normalisation": dict(zip(("mean", "std"), run.input_statistics, strict=True)),
        "output": "probabilities (N, classes)",
        "network": run.checkpoint["ltbench_network"],
        "lineage": record["lineage"],
        "license": licence,
    }


def to_onnx(model: Classifier, example: Tensor, notes: str) -> bytes:
    """Return an ONNX model with an input ``images`` and an output ``probabilities``."""
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = notes
    return bytes(program.model_proto.SerializeToString())


def of_onnx(content: bytes, model: Classifier, images: Tensor) -> Tensor:
    """Return the probabilities of an ONNX model, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])


def to_program(model: Classifier, example: Tensor, notes: str) -> bytes:
    """Return a program of ``torch.export``; the metadata is one of its extra files."""
    shapes = ({0: torch.export.Dim("N")},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={METADATA: notes})
    return stream.getvalue()


def of_program(content: bytes, model: Classifier, images: Tensor) -> Tensor:
    """Return the probabilities of a program of ``torch.export``."""
    probabilities: Tensor = torch.export.load(io.BytesIO(content)).module()(images)
    return probabilities


def to_safetensors(model: Classifier, example: Tensor, notes: str) -> bytes:
    """Return the weights of the network alone, by their names in it."""
    weights = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    return safetensors.torch.save(weights, {METADATA: notes})


def of_safetensors(content: bytes, model: Classifier, images: Tensor) -> Tensor:
    """Return the probabilities of the model with the weights of the file."""
    weights = safetensors.torch.load(content)
    if weights.keys() != model.network.state_dict().keys():
        raise UserError("some weights are shared and would be lost in safetensors: use .pt2.")
    state = {f"network.{name}": tensor for name, tensor in weights.items()}
    probabilities: Tensor = torch.func.functional_call(model, state, (images,))
    return probabilities


FORMATS = {
    ".onnx": (to_onnx, of_onnx),
    ".pt2": (to_program, of_program),
    ".safetensors": (to_safetensors, of_safetensors),
}
"""Ending of a file -> what writes its content, and what computes with it."""


def export(
    run: FinishedRun, output: Path, images: Tensor, licence: str | None = None
) -> dict[str, float]:
    """Write a finished run as one file, if it computes on images what torch does.

    Args:
        run: The run, on the CPU.
        output: The file; its ending is one of :data:`FORMATS`.
        images: At least two uint8 images (N, C, S, S), to compare on.
        licence: Under which the weights may be used, as an SPDX identifier.

    Returns:
        ``images``, ``largest_difference`` of a probability, and ``bytes``.

    Raises:
        UserError: The run does not classify images, a package is missing, or results differ.
    """
    write, compute = FORMATS[output.suffix]
    model = Classifier(run)
    notes = json.dumps(plain(metadata(run, licence)))
    with torch.inference_mode():
        expected = model(images)
    with quiet(), torch.no_grad():
        content = write(model, images[:2], notes)
        computed = compute(content, model, images)
    difference = float((computed - expected).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"{output} was not written: its probabilities differ from torch's by up to "
            f"{difference:.2g}. Try another format."
        )
    records.write_whole(output, lambda file: file.write(content))
    return {"images": len(images), "largest_difference": difference, "bytes": len(content)}


def export_command(args: Sequence[str]) -> None:
    """Run ``ltbench export``.

    Raises:
        UserError: See :func:`export`; or there is no such run.
    """
    parser = Arguments("ltbench export", "Write a finished run as one file that runs anywhere.")
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of the finished run")
    add("--output", type=Path, required=True, help=f"file to write: {', '.join(FORMATS)}")
    add("--selection", choices=("last", "best"), default="last", help="which weights")
    add("--images", type=Path, help="images to compare on; default: the run's own")
    add("--license", help="of the weights, an SPDX identifier such as CC-BY-4.0")
    options = parser.parse_args(args)
    output: Path = options.output
    if output.suffix not in FORMATS:
        raise UserError(f"--output {output}: the file has to end in {', '.join(FORMATS)}.")
    if output.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(package) is None:
                raise UserError(
                    f"ONNX needs the package {package}: pip install 'ltbench[export]', or write "
                    ".pt2 or .safetensors."
                )
    records.require_place(output)
    run = open_run(options.run, options.selection, "cpu")
    run.require_images()
    images, origin = _examples(run, options.images)
    result = export(run, output, images, options.license)
    print(
        f"{output}: {result['bytes'] / 1e6:.1f} MB, {len(run.class_names)} classes, "
        f"{run.channels} x {run.image_size} x {run.image_size} pixels\n"
        f"Agrees with torch on {len(images)} {origin}: probabilities differ by at most "
        f"{result['largest_difference']:.1g}."
    )


def _examples(run: FinishedRun, folder: Path | None) -> tuple[Tensor, str]:
    """Return images to compare on, and what they are."""
    if folder is not None:
        files = image_files(folder) if folder.is_dir() else [folder]
        images = run.squares(files[:EXAMPLES])
        return torch.cat([images, images])[: max(2, len(images))], f"images of {folder}"
    try:
        data = run.data
        split = next(name for name in ("test", "val", "train") if name in data.splits)
        rows = np.linspace(0, len(data.splits[split].indices) - 1, EXAMPLES).astype(int)
        chosen = data.splits[split]
        return data.source.images(chosen.part, chosen.indices[rows]), f"{split} images"
    except UserError:  # the data lies elsewhere
        generator = torch.Generator().manual_seed(0)
        shape = (EXAMPLES, run.channels, run.image_size, run.image_size)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return noise, "images of noise (its own images are not here; --images names others)"
