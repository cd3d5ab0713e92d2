"""Rulers of test.py and visual.py: many photos, against one at a time; and how much of the time is the model's.

`test` times test.py's pass over the photos beside the course project's loop; `cam` times visual.py's beside
pytorch-grad-cam on one photo after the other, and the maps alone on equal inputs.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

INSIDE_BAR = 0.9  # of the pass that is to be spent inside the model
MAPS = 8  # images, on which maps alone are timed
TRAIN, VAL = 48, 16  # drawn photos for a checkpoint, where none is given


def add_flags(parser) -> None:
    """These rulers' own flags."""
    from tools.bench.peers import add_size_flag

    add_size_flag(parser)
    parser.add_argument("--data-path", metavar="FOLDER", help="prepared data set (default: drawn photos)")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"], help="of it (default test)")
    parser.add_argument("--photos", type=int, default=600, metavar="N", help="photos of a pass (default 600)")
    parser.add_argument("--cfg", default="configs/sample.yaml", metavar="FILE", help="model, with fresh weights")
    parser.add_argument("--resume", metavar="FILE", help="checkpoint to use instead")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default 32)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="loader processes or threads (default 2)")


def measure(args) -> list:
    """Rows of the pass and of the model's share of it; of `cam`, of the maps alone as well."""
    import torch

    from configs.load import load
    from tools.bench.commands import prepare_sample, train_briefly
    from tools.bench.peers import device
    from tools.evaluate.predictor import load_predictor
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()  # as test.py and visual.py do; the peer, in the same process, has the good of it too
    torch.manual_seed(0)
    words = ["DATA.BATCH_SIZE", str(args.batch_size), "DATA.NUM_WORKERS", str(args.workers)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = Path(args.data_path or prepare_sample(folder, TRAIN, VAL, args.photos))
        path = Path(args.resume or train_briefly(folder, dataset, args.cfg))
        ensemble = load_predictor([path], device(), tta="none")  # the peer has one view of a photo
        split = first_photos(dataset, args, ensemble.classes)
        if args.ruler == "test":
            return scoring_rows(args, ensemble, split, load(None, words).config)
        return [*visual_rows(args, ensemble.members[0], split, folder), *map_rows(args)]


def first_photos(dataset: Path, args, classes: tuple[str, ...]):
    """The first `--photos` photos of the split."""
    from data.loading.split import scan_split
    from tools.base.errors import UsageError

    split = scan_split(dataset, args.split, False, classes)
    if not 1 <= args.photos <= len(split.photos):
        raise UsageError(f"--photos {args.photos}: {split.where} holds {len(split.photos)}")
    del split.photos[args.photos :]
    return split


def scoring_rows(args, ensemble, split, config) -> list:
    """test.py's pass, against one photo at a time with gradients on."""
    from tools.evaluate.predictor import predict_split
    from tools.runtime.distributed import Ranks

    (predictor,) = ensemble.members
    device = next(predictor.model.parameters()).device
    peer = f"test, {args.photos} photos: batch 1, gradients on, Pillow, one after the other"
    ours = f"test, {args.photos} photos: test.py's pass, {args.workers} workers"

    def singly() -> None:
        transform = predictor.preprocess.transform()
        for photo in split.photos:
            predictor.model(transform(opened(split, photo))[None].to(device)).argmax().item()

    return with_share(
        args,
        {peer: singly, ours: lambda: predict_split(ensemble, split, config.DATA, config.AMP, Ranks(), device)},
        (predictor.model, "forward"),
    )


def visual_rows(args, predictor, split, folder: Path) -> list:
    """visual.py's pass with its three pictures a photo, against pytorch-grad-cam's way with one picture."""
    import cv2
    import numpy as np
    from pytorch_grad_cam.utils.image import show_cam_on_image

    from tools.base.threads import in_threads
    from tools.explain import photos
    from tools.explain.cam import classic_recipe
    from tools.explain.photos import Column, explain_photos, split_photos
    from tools.render.album import Album

    model, labels = predictor.model, predictor.labels
    album, recipe = Album(folder / "ours", labels), classic_recipe(model)
    columns = [Column("", model, recipe, predictor.rule.probabilities)]
    subjects = list(split_photos([split], len(labels)))
    (folder / "theirs").mkdir()

    def singly() -> None:
        transform, geometry = predictor.preprocess.transform(), predictor.preprocess.geometry()
        for photo in split.photos:
            image = opened(split, photo)
            (heat,) = library_maps(model, transform(image)[None].to(next(model.parameters()).device))
            seen = np.asarray(geometry(image), np.float32) / 255
            drawn = show_cam_on_image(seen, heat, use_rgb=True)
            cv2.imwrite(str(folder / "theirs" / f"{Path(photo.name).stem}.png"), drawn[:, :, ::-1])

    def ours() -> None:
        pairs = explain_photos(subjects, predictor.preprocess, columns, args.batch_size, args.workers)
        deque(in_threads(write, pairs, args.workers, args.batch_size), maxlen=0)

    def write(pair: tuple) -> None:
        leaf, (row,) = pair
        album.write_pair(leaf, row, columns[0])

    peer = f"cam, {args.photos} photos: pytorch-grad-cam, one after the other, one picture each"
    name = f"cam, {args.photos} photos: visual.py's pass, three pictures each, {args.workers} threads"
    return with_share(args, {peer: singly, name: ours}, (photos, "explain"))


def map_rows(args) -> list:
    """Maps of equal inputs: Grad-CAM's at the last block, and visual.py's default ones, whose layers lie earlier."""
    import numpy as np
    import torch

    from tools.bench import peers
    from tools.bench.rounds import compare, interleave
    from tools.explain.cam import classic_recipe, default_recipe, explain

    model = peers.build("ours", args.size).to(peers.device()).eval()
    images, _ = peers.random_batch(args.size, MAPS)
    classes = [index % peers.NUM_CLASSES for index in range(MAPS)]
    singly, together = [slice(i, i + 1) for i in range(MAPS)], [slice(MAPS)]
    maps = {}

    def way(make: Callable, parts: list[slice], name: str) -> Callable[[], None]:
        def run() -> None:
            maps[name] = np.concatenate([make(images[part], classes[part]) for part in parts])

        return run

    def by(recipe) -> Callable:
        return lambda part, wanted: explain(model, part, [recipe], wanted).maps[0]

    library, classic = (lambda part, wanted: library_maps(model, part, wanted)), by(classic_recipe(model))
    kinds = {
        "pytorch-grad-cam, one at a time": (library, singly),
        "pytorch-grad-cam, in a batch": (library, together),
        "ours, one at a time": (classic, singly),
        "ours, in a batch": (classic, together),
        "ours, in a batch, default maps": (by(default_recipe(model)), together),
    }
    names = [f"{MAPS} maps, {args.size}: {kind}" for kind in kinds]
    ways = {name: way(*kind, name) for name, kind in zip(names, kinds.values(), strict=True)}
    with torch.enable_grad():
        taken = interleave(ways, args.rounds)
    apart = max(np.abs(maps[name] - maps[names[0]]).max() for name in names[1:4])
    notes = {name: f"the same maps within {apart:.0e}" for name in names[1:4]}
    return compare(taken, names[0], notes=notes)


def library_maps(model, images, classes: list[int] | None = None):
    """pytorch-grad-cam's own pass at the last block; None explains the most probable class. `[B, S, S]`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from tools.explain.cam import classic_recipe, find_layer, map_geometry

    (path,) = classic_recipe(model).layers
    targets = None if classes is None else [ClassifierOutputTarget(index) for index in classes]
    with GradCAM(
        model, [find_layer(model, path)], lambda output: map_geometry(model, output, len(images))(output)
    ) as cam:
        return cam(images, targets)


def with_share(args, ways: dict, inner: tuple[object, str]) -> list:
    """The rows of (peer, ours), then what share of ours passes inside the function `inner` = (owner, name)."""
    from tools.bench.rounds import Row, compare, interleave

    (peer, singly), (name, ours) = ways.items()
    shares = []

    def watched() -> None:
        with inside(*inner) as spent:
            started = time.perf_counter()
            ours()
        shares.append(sum(spent) / (time.perf_counter() - started))

    taken = interleave({peer: singly, name: watched}, args.rounds)
    notes = {way: f"{args.photos / statistics.median(times):.0f} photos a second" for way, times in taken.items()}
    share = shares[-args.rounds :]  # the first was for warming up
    note = "share of the pass inside the model"
    row = Row(f"{name}: the model", None, statistics.median(share), min(share), max(share), note, INSIDE_BAR)
    return [*compare(taken, peer, notes=notes), row]


@contextlib.contextmanager
def inside(owner: object, name: str) -> Iterator[list[float]]:
    """Inside, `owner.name` is a function that also notes how many seconds each of its calls takes."""
    import torch

    original, spent = getattr(owner, name), []

    def timed(*args, **kwargs):
        started = time.perf_counter()
        result = original(*args, **kwargs)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
        return result

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, original)


def opened(split, photo):
    """The photo as Pillow decodes it, RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(split.source.read(photo.file))) as image:
        return image.convert("RGB")
