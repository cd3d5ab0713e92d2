"""Benchmarks of test.py (`test`) and visual.py (`cam`): a whole pass against one photo at a time.

Each also measures the share of the time that is spent in the model.
"""

import io
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

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
from tools.bench.commands import ONE_EPOCH, prepare_sample, run
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
    dataset = Path(args.data_path or prepare_sample(args.folder, NUM_TRAIN, NUM_VAL, args.photos))
    path = args.resume
    if not path:
        run("main.py", "--cfg", args.cfg, "--data-path", dataset, "--output", args.folder / "output", *ONE_EPOCH)
        (path,) = (args.folder / "output").glob("*/*/best.pth")
    ensemble = load_predictor([Path(path)], peers.DEVICE, tta="none")  # the peer has one view per photo
    split = scan_split(dataset, args.split, False, ensemble.classes)
    if not 1 <= args.photos <= len(split.photos):
        raise UsageError(f"--photos {args.photos}: {split.where} holds {len(split.photos)}")
    del split.photos[args.photos :]
    if args.benchmark == "test":
        return measure_test(args, ensemble, split)
    return [*measure_cam(args, ensemble, split), *measure_maps(args)]


def measure_test(args, ensemble: Predictor, split: Split) -> list[Row]:
    """test.py's pass, against one photo at a time with gradients on."""
    (predictor,) = ensemble.members
    config = load(None, ["DATA.BATCH_SIZE", str(args.batch_size), "DATA.NUM_WORKERS", str(args.workers)]).config
    transform = predictor.preprocess.transform()

    def score_singly() -> None:
        for photo in split.photos:
            predictor.model(transform(open_photo(split, photo))[None].to(peers.DEVICE)).argmax().item()

    peer = "batch 1, gradients on, Pillow, one after the other"
    ours = f"test.py's pass, {args.workers} workers"
    score = partial(predict_split, ensemble, split, config.DATA, config.AMP, Ranks(), peers.DEVICE)
    return compare_with_share(args, {peer: score_singly, ours: score}, predictor.model, "forward")


def measure_cam(args, ensemble: Predictor, split: Split) -> list[Row]:
    """visual.py's pass with its three pictures per photo, against pytorch-grad-cam's with one picture."""
    (predictor,) = ensemble.members
    model, labels, theirs = predictor.model, predictor.labels, args.folder / "theirs"
    recipe, amp = CamRecipe("gradcam", choose_classic_layer(model)), load().config.AMP
    sources = photos.list_split_photos([split])
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
        seen, label = np.asarray(geometry(image)), labels[row.class_index]
        caption = f"{label} {100 * row.probabilities[0]:.1f}%"
        stem = str(args.folder / "ours" / source.stem)
        write_picture(Path(f"{stem}_{label}_cam.png"), overlay(seen, row.maps[0]))
        write_picture(Path(f"{stem}_original.png"), seen)
        figure = draw_figure(source.stem, seen, [("original", [(caption, row.maps[0])])])
        write_picture(Path(f"{stem}_{label}_pair.png"), figure)

    peer = "pytorch-grad-cam, one after the other, one picture each"
    ours = f"visual.py's pass, three pictures each, {args.workers} threads"
    return compare_with_share(args, {peer: run_library_cam, ours: explain_all}, photos, "compute_heat_maps")


def measure_maps(args) -> list[Row]:
    """Maps of equal inputs: Grad-CAM's at the last block, and visual.py's default ones, of earlier layers."""
    model = peers.build_swin("ours", args.size).eval()
    images, _ = peers.random_batch(args.size, NUM_MAPS)
    classes = [index % peers.NUM_CLASSES for index in range(NUM_MAPS)]

    def in_parts(make: Callable, size: int) -> Callable[[], np.ndarray]:
        starts = range(0, NUM_MAPS, size)
        return lambda: np.concatenate([make(images[i : i + size], classes[i : i + size]) for i in starts])

    def explain_by(method: str, layer: str) -> Callable:
        return lambda part, wanted: compute_heat_maps(model, part, [CamRecipe(method, layer)], wanted).maps[0]

    theirs, classic = partial(library_maps, model), explain_by("gradcam", choose_classic_layer(model))
    default = explain_by("layercam", choose_default_layer(model, "layercam"))
    kinds = {
        "pytorch-grad-cam, one at a time": in_parts(theirs, 1),
        "pytorch-grad-cam, in a batch": in_parts(theirs, NUM_MAPS),
        "ours, one at a time": in_parts(classic, 1),
        "ours, in a batch": in_parts(classic, NUM_MAPS),
        "ours, in a batch, default maps": in_parts(default, NUM_MAPS),
    }
    kinds = {f"{NUM_MAPS} maps, {args.size}: {kind}": make for kind, make in kinds.items()}
    peer, *same = list(kinds)[:4]
    wanted = kinds[peer]()
    difference = max(np.abs(kinds[name]() - wanted).max() for name in same)
    taken = interleave(kinds, args.rounds)
    return compare(taken, notes=dict.fromkeys(same, f"the same maps within {difference:.0e}"))


def library_maps(model: torch.nn.Module, images: Tensor, classes: list[int] | None = None) -> np.ndarray:
    """pytorch-grad-cam's maps `[B, S, S]` at the last block; None explains the most probable class."""
    path = choose_classic_layer(model)
    targets = None if classes is None else [ClassifierOutputTarget(index) for index in classes]
    layers = [find_layer(model, path)]
    with GradCAM(model, layers, lambda output: find_map_layout(model, output, len(images))(output)) as cam:
        return cam(images, targets)


def compare_with_share(args, functions: dict[str, Callable], owner: object, name: str) -> list[Row]:
    """The rows of (peer, ours), then the share of our time inside the function `owner.name`."""
    run_peer, run_ours = functions.values()
    peer, ours = (f"{args.benchmark}, {args.photos} photos: {kind}" for kind in functions)
    inner, shares = getattr(owner, name), []

    def run_watched() -> None:
        seconds: list[float] = []
        results: list[object] = []

        def timed(*words, **options):
            seconds.append(time_call(lambda: results.append(inner(*words, **options))))
            return results.pop()

        with mock.patch.object(owner, name, timed):
            whole = time_call(run_ours)
        shares.append(sum(seconds) / whole)

    rows = compare(interleave({peer: run_peer, ours: run_watched}, args.rounds), num_photos=args.photos)
    counted = shares[-args.rounds :]  # not the warm-up
    return [*rows, make_row(f"{ours}: the model", (), counted, "share of the pass inside the model", SHARE_BAR)]


def open_photo(split: Split, photo: Photo) -> Image.Image:
    """The photo as Pillow decodes it, RGB."""
    with Image.open(io.BytesIO(split.source.read(photo.file))) as image:
        return image.convert("RGB")
