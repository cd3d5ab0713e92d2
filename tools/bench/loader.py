"""Ruler: prepared photos of 256 pixels to augmented, normalised batches of 224, against torchvision's ImageFolder."""

import itertools
import shutil
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
PEER = "torchvision ImageFolder, timm's transform"
MODES = {
    "--cache-mode no": ["DATA.CACHE_MODE", "no"],
    "--cache-mode part": ["DATA.CACHE_MODE", "part"],
    "--cache-mode full": ["DATA.CACHE_MODE", "full"],
    "--zip": ["DATA.ZIP_MODE", "True"],
}
BARS = {"--cache-mode no": 1.3, "--cache-mode full": 1.8}


def add_flags(parser) -> None:
    """This ruler's own flags."""
    parser.add_argument("--data-path", metavar="FOLDER", help="prepared data set (default: drawn photos)")
    parser.add_argument("--photos", type=int, default=256, metavar="N", help="training photos a round takes (256)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="loader processes (0 2)")


def measure(args) -> list:
    """Rows of an epoch by the peer and by each of our modes, for each number of workers; 0 is the figure per core."""
    import torch

    from tools.bench.rounds import compare, interleave
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()  # as main.py does; the peer, in the same process, has the good of it too
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _lay_out(root, args)
        for workers in args.workers:
            ways = {_named(PEER, workers): _theirs(root, workers, args)}
            ways |= {_named(mode, workers): _ours(root, workers, args, opts) for mode, opts in MODES.items()}
            taken = interleave(ways, args.rounds)
            photos = max(args.photos // BATCH * BATCH, min(BATCH, args.photos))
            notes = {name: f"{photos / statistics.median(times):.0f} photos a second" for name, times in taken.items()}
            bars = {_named(mode, 0): bar for mode, bar in BARS.items()}
            rows += compare(taken, _named(PEER, workers), bars, notes)
    return rows


def _named(mode: str, workers: int) -> str:
    return f"{mode}, {f'{workers} workers' if workers else 'one core'}"


def _lay_out(root: Path, args) -> None:
    """Copies or draws the photos as `root`/train/CODE/ID.jpg, and packs them into `root`/train.zip as well."""
    from tools.base.errors import UsageError
    from tools.bench.drawn import CODES, write_photos

    if args.data_path:
        found = sorted(Path(args.data_path).glob("train/*/*.jpg"))
        paths = found[:: max(1, len(found) // args.photos)][: args.photos]
        if len(paths) < args.photos:
            raise UsageError(f"--data-path {args.data_path} holds {len(paths)} training photos; lower --photos")
        codes = [path.parent.name for path in paths]
    else:
        paths = write_photos(root / "drawn", args.photos, 256, 256, 92)
        codes = [CODES[number % len(CODES)] for number in range(args.photos)]
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for path, code in zip(paths, codes, strict=True):
            place = root / "train" / code / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            archive.write(place, place.relative_to(root / "train"))


def _theirs(root: Path, workers: int, args) -> Callable[[], object]:
    """An epoch of the seed's loader: the same policy and parameters, Pillow all the way, float32 from the workers."""
    from timm.data import create_transform
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from data.loading.transforms import keep_one_bit, ops_of

    config = _config(workers, args)
    data, aug = config.DATA, config.AUG
    transform = create_transform(
        data.IMG_SIZE,
        is_training=True,
        interpolation=data.INTERPOLATION,
        mean=MEAN,
        std=STD,
        scale=tuple(aug.SCALE),
        ratio=tuple(aug.RATIO),
        hflip=aug.HFLIP,
        vflip=aug.VFLIP,
        color_jitter=aug.COLOR_JITTER,
        auto_augment=aug.AUTO_AUGMENT,
        re_prob=aug.REPROB,
        re_mode=aug.REMODE,
        re_count=aug.RECOUNT,
    )
    keep_one_bit(ops_of(transform))  # without it some photos end the epoch
    loader = DataLoader(
        ImageFolder(str(root / "train"), transform),
        data.BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: _count(loader)


def _ours(root: Path, workers: int, args, opts: list[str]) -> Callable[[], object]:
    """An epoch of ours; another epoch, with other draws, at each call."""
    from data.build import build_preprocess, build_split, build_train_loader, resume_batches

    config = _config(workers, args, ["DATA.DATA_PATH", str(root), *opts])
    preprocess = build_preprocess(config.DATA, config.TEST, MEAN, STD)
    split = build_split(config.DATA, "train")
    loader = build_train_loader(config.DATA, config.AUG, split, preprocess, seed=0)
    epochs = itertools.count()
    return lambda: _count(resume_batches(loader, next(epochs), 0))


def _config(workers: int, args, opts: Sequence[str] = ()):
    from configs.load import load

    batch = min(BATCH, args.photos)
    return load(None, ["DATA.NUM_WORKERS", str(workers), "DATA.BATCH_SIZE", str(batch), *opts]).config


def _count(batches: Iterable) -> int:
    return sum(len(images) for images, _ in batches)
