"""One training or one judgement in a process of its own: `python -m lenslib.bench_training_worker NAME`, in a folder
that holds job.json and images.npz. What it measures is left there as result.json."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from lenslib.dataset import prepare
from lenslib.errors import InputError
from lenslib.metrics import macro_auc
from lenslib.models import create_model, load_weights, model_info
from lenslib.provenance import peak_memory_mb


def _work(name: str) -> None:
    job = json.loads(Path("job.json").read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    work = _lenslib if name.startswith("lenslib") else _loop if "workers" in job else _judge
    try:
        result = work(job, name)
    except InputError as error:
        result = {"refused": str(error)}
    Path("result.json").write_text(json.dumps(result | {"peak_memory_mb": peak_memory_mb("cpu")}))


def _images(job: dict):
    """Training and validation images, as the network sees them, and their labels."""
    with np.load("images.npz") as arrays:
        images, labels = prepare(arrays["images"], job["size"]), torch.from_numpy(arrays["labels"])
    first = job["count"]
    return (images[:first], labels[:first]), (images[first:], labels[first:])


def _network(job: dict, stock: bool = False):
    """The network untrained; with `stock`, the layers of a steerable one compute as e2cnn's own."""
    network = create_model(job["model"], job["classes"], job["size"])
    if stock and model_info(job["model"]).family == "equivariant":
        from lenslib.models.steerable import Blur

        for layer in network.modules():
            if isinstance(layer, Blur):
                layer.__class__ = Blur.__base__
    return network


def _lenslib(job: dict, name: str) -> dict:
    """This library with the settings it has by default, but for checkpoints, which the loop does not write either."""
    from safetensors.torch import save_file

    from lenslib.settings import Settings
    from lenslib.training import train

    training, validation = _images(job)
    info, compile = model_info(job["model"]), job.get("compile", False)
    settings = Settings(epochs=job["repeats"] + 1, batch_size=job["batch_size"], compile=compile)
    facts = "cpu", info.channels_last, info.precision
    trained = train(_network(job), training, validation, settings, macro_auc, *facts)
    save_file({key: value.contiguous() for key, value in trained.model.state_dict().items()}, "weights.safetensors")
    return {"images": job["count"], "seconds": np.diff([row["seconds"] for row in trained.history]).tolist()}


class _Files(Dataset):
    """Images of one .npy file each, and their labels."""

    def __init__(self, folder: Path, images, labels):
        folder.mkdir(exist_ok=True)
        self.paths, self.labels = [folder / f"{i}.npy" for i in range(len(images))], labels.tolist()
        for path, image in zip(self.paths, images.numpy(), strict=True):
            np.save(path, image)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int):
        return torch.from_numpy(np.load(self.paths[i])), self.labels[i]


def _loop(job: dict, name: str) -> dict:
    """Training as notebooks have it: a DataLoader over files, Adam, float32."""
    parts = [_Files(Path(part), *data) for part, data in zip(("train", "val"), _images(job), strict=True)]
    options = {"batch_size": job["batch_size"], "num_workers": job["workers"], "persistent_workers": job["workers"] > 0}
    training, validation = DataLoader(parts[0], shuffle=True, **options), DataLoader(parts[1], **options)
    network, seconds = _network(job, stock=True), []
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(job["repeats"] + 1):
        start = time.perf_counter()
        network.train()
        for images, labels in training:
            optimizer.zero_grad()
            loss = cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            outputs = torch.cat([network(images) for images, _ in validation])
        macro_auc(np.array(parts[1].labels), outputs.softmax(1).numpy())
        seconds.append(time.perf_counter() - start)
    return {"images": job["count"], "seconds": seconds[1:]}


@torch.inference_mode()
def _judge(job: dict, name: str) -> dict:
    """All images through the network that `_lenslib` left behind, in e2cnn or without it."""
    from lenslib.compilation import compiled
    from lenslib.models.steerable import as_convolutions

    training, (images, labels) = _images(job)
    network = _network(job, stock=True)
    load_weights(network, "weights.safetensors")
    network.eval()
    if name != "e2cnn":
        network = as_convolutions(network)
    if name == "convolutions_bf16":
        network, training = network.to(torch.bfloat16), [part.to(torch.bfloat16) for part in training[:1]]
        network = compiled(network)
    # whole batches alone: for another size, torch would compile again
    batches = training[0].split(job["batch_size"])
    batches = [batch for batch in batches if len(batch) == job["batch_size"]] or list(batches)
    seconds = []
    for _ in range(job["repeats"] + 1):
        start = time.perf_counter()
        for batch in batches:
            network(batch)
        seconds.append(time.perf_counter() - start)
    outputs = torch.cat([network(part.to(batches[0].dtype)).float() for part in images.split(job["batch_size"])])
    found = {"images": sum(map(len, batches)), "seconds": seconds[1:]}
    found["macro_auc"] = float(macro_auc(labels.numpy(), outputs.softmax(1).numpy()))
    if name == "e2cnn":
        np.save("outputs.npy", outputs.numpy())
        return found
    theirs = np.load("outputs.npy")
    return found | {"largest_difference": float(np.abs(outputs.numpy() - theirs).max() / np.abs(theirs).max())}


if __name__ == "__main__":
    _work(sys.argv[1])
