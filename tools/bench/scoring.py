"""Benchmarks of test.py (`test`) and visual.py (`cam`): a whole pass against one photo at a time.

Each also measures the share of the time that is spent in the model.
"""

import contextlib
import io
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from configs.load import load
from data.loading.split import Photo, Split, scan_split
from tools.base.errors import UsageError
from tools.base.threads import in_threads
from tools.bench import peers
from tools.bench.commands import prepare_sample, train_briefly
from tools.bench.rounds import Row, compare, interleave, make_row, time_call
from tools.evaluate.predictor import Predictor, load_predictor, predict_split
from tools.explain import photos
from tools.explain.cam import CamRecipe, compute_heat_maps
from tools.explain.layers import choose_classic_layer, choose_default_layer, find_layer, find_map_layout
from tools.render.maps import draw_figure, overlay, write_picture
from tools.runtime.distributed import Ranks
from tools.runtime.memory import keep_freed_memory

SHARE_BAR = 0.9  # the share of the pass that we want inside the model
NUM_MAPS = 8  # images of which the maps alone are timed
NUM_TRAIN, NUM_VAL = 48, 16  # drawn photos for a checkpoint where none is given


def measure(args) -> list[Row]:
    """Rows of the pass and of the model's share of it; for `cam`, of the maps alone as well."""
    keep_freed_memory()  # as test.py and visual.py do; the peer, in the same process, profits too
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = Path(args.data_path or prepare_sample(folder, NUM_TRAIN, NUM_VAL, args.photos))
        path = Path(args.resume or train_briefly(folder, dataset, args.cfg))
        ensemble = load_predictor([path], peers.DEVICE, tta="none")  # the peer has one view per photo
        split = scan_split(dataset, args.split, False, ensemble.classes)
        if not 1 <= args.photos <= len(split.photos):
            raise UsageError(f"--photos {args.photos}: {split.where} holds {len(split.photos)}")
        del split.photos[args.photos :]
        if args.benchmark == "test":
            return measure_test(args, ensemble, split)
        return [*measure_cam(args, ensemble, split, folder), *measure_maps(args)]


def measure_test(args, ensemble: Predictor, split: Split) -> list[Row]:
    """test.py's pass, against one photo at a time with gradients on."""
    (predictor,) = ensemble.members
    words = ["DATA.BATCH_SIZE", str(args.batch_size), "DATA.NUM_WORKERS", str(args.workers)]
    config = load(None, words).config

    def score_singly() -> None:
        transform = predictor.preprocess.transform()
        for photo in split.photos:
            predictor.model(transform(open_photo(split, photo))[None].to(peers.DEVICE)).argmax().item()

    peer = f"test, {args.photos} photos: batch 1, gradients on, Pillow, one after the other"
    ours = f"test, {args.photos} photos: test.py's pass, {args.workers} workers"
    score = partial(predict_split, ensemble, split, config.DATA, config.AMP, Ranks(), peers.DEVICE)
    return compare_with_share(args, {peer: score_singly, ours: score}, (predictor.model, "forward"))


def measure_cam(args, ensemble: Predictor, split: Split, folder: Path) -> list[Row]:
    """visual.py's pass with its three pictures per photo, against pytorch-grad-cam's with one picture."""
    (predictor,) = ensemble.members
    model, labels, theirs = predictor.model, predictor.labels, folder / "theirs"
    recipe = CamRecipe("gradcam", choose_classic_layer(model))
    amp = load().config.AMP
    sources = photos.list_split_photos([split], len(labels))
    transform, geometry = predictor.preprocess.transform(), predictor.preprocess.geometry()
    theirs.mkdir()

    def run_library_cam() -> None:
        for photo in split.photos:
            image = open_photo(split, photo)
            (heat,) = library_maps(model, transform(image)[None].to(peers.DEVICE))
            drawn = show_cam_on_image(np.asarray(geometry(image), np.float32) / 255, heat, use_rgb=True)
            cv2.imwrite(str(theirs / f"{Path(photo.name).stem}.png"), drawn[:, :, ::-1])

    def explain_all() -> None:
        deque(in_threads(write, explain_sources(), args.workers, args.batch_size), maxlen=0)

    def explain_sources() -> Iterator[tuple]:
        for loaded, images, inputs in photos.load_batches(sources, predictor.preprocess, args.batch_size, args.workers):
            shares = ensemble.answer([inputs], [source.name for source in loaded], amp).probability
            top = [[int(row.argmax())] for row in shares]
            yield from zip(loaded, images, photos.explain_batch(inputs, [model], [recipe], top, [shares]), strict=True)

    def write(explained: tuple) -> None:
        source, image, (row,) = explained
        seen, stem, label = np.asarray(geometry(image)), source.stem, labels[row.class_index]
        caption = f"{label} {100 * row.probabilities[0]:.1f}%"
        write_picture(folder / "ours" / f"{stem}_{label}_cam.png", overlay(seen, row.maps[0]))
        write_picture(folder / "ours" / f"{stem}_original.png", seen)
        figure = draw_figure(stem, seen, [("original", [(caption, row.maps[0])])])
        write_picture(folder / "ours" / f"{stem}_{label}_pair.png", figure)

    peer = f"cam, {args.photos} photos: pytorch-grad-cam, one after the other, one picture each"
    ours = f"cam, {args.photos} photos: visual.py's pass, three pictures each, {args.workers} threads"
    return compare_with_share(args, {peer: run_library_cam, ours: explain_all}, (photos, "compute_heat_maps"))


def measure_maps(args) -> list[Row]:
    """Maps of equal inputs: Grad-CAM's at the last block, and visual.py's default ones, of earlier layers."""
    model = peers.build_swin("ours", args.size).eval()
    images, _ = peers.random_batch(args.size, NUM_MAPS)
    classes = [index % peers.NUM_CLASSES for index in range(NUM_MAPS)]
    maps = {}

    def explain_by(recipe: CamRecipe) -> Callable:
        return lambda part, wanted: compute_heat_maps(model, part, [recipe], wanted).maps[0]

    def make_maps(name: str, make: Callable, size: int) -> None:
        starts = range(0, NUM_MAPS, size)
        maps[name] = np.concatenate([make(images[i : i + size], classes[i : i + size]) for i in starts])

    classic = CamRecipe("gradcam", choose_classic_layer(model))
    default = CamRecipe("layercam", choose_default_layer(model, "layercam"))
    kinds: dict[str, tuple[Callable, int]] = {
        "pytorch-grad-cam, one at a time": (partial(library_maps, model), 1),
        "pytorch-grad-cam, in a batch": (partial(library_maps, model), NUM_MAPS),
        "ours, one at a time": (explain_by(classic), 1),
        "ours, in a batch": (explain_by(classic), NUM_MAPS),
        "ours, in a batch, default maps": (explain_by(default), NUM_MAPS),
    }
    kinds = {f"{NUM_MAPS} maps, {args.size}: {kind}": how for kind, how in kinds.items()}
    with torch.enable_grad():
        taken = interleave({name: partial(make_maps, name, *how) for name, how in kinds.items()}, args.rounds)
    peer, *same = list(kinds)[:4]
    difference = max(np.abs(maps[name] - maps[peer]).max() for name in same)
    return compare(taken, notes=dict.fromkeys(same, f"the same maps within {difference:.0e}"))


def library_maps(model: torch.nn.Module, images: Tensor, classes: list[int] | None = None) -> np.ndarray:
    """pytorch-grad-cam's maps `[B, S, S]` at the last block; None explains the most probable class."""
    path = choose_classic_layer(model)
    targets = None if classes is None else [ClassifierOutputTarget(index) for index in classes]
    layers = [find_layer(model, path)]
    with GradCAM(model, layers, lambda output: find_map_layout(model, output, len(images))(output)) as cam:
        return cam(images, targets)


def compare_with_share(args, functions: dict[str, Callable], inner: tuple[object, str]) -> list[Row]:
    """The rows of (peer, ours), then the share of our time inside the function `inner` = (owner, name)."""
    (peer, run_peer), (ours, run_ours) = functions.items()
    shares = []

    def run_watched() -> None:
        with seconds_inside(*inner) as spent:
            whole = time_call(run_ours)
        shares.append(sum(spent) / whole)

    rows = compare(interleave({peer: run_peer, ours: run_watched}, args.rounds), num_photos=args.photos)
    counted = shares[-args.rounds :]  # not the warm-up
    return [*rows, make_row(f"{ours}: the model", (), counted, "share of the pass inside the model", SHARE_BAR)]


@contextlib.contextmanager
def seconds_inside(owner: object, name: str) -> Iterator[list[float]]:
    """Inside, every call of `owner.name` appends its seconds to the list that this yields."""
    original, spent = getattr(owner, name), []

    def timed(*args, **kwargs):
        results = []
        spent.append(time_call(lambda: results.append(original(*args, **kwargs))))
        return results[0]

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, original)


def open_photo(split: Split, photo: Photo) -> Image.Image:
    """The photo as Pillow decodes it, RGB."""
    with Image.open(io.BytesIO(split.source.read(photo.file))) as image:
        return image.convert("RGB")
