"""Shows where on the leaf a trained model looked: a heat map over the photo, and the photo beside it."""

import sys

from configs.load import load
from tools import cli
from tools.errors import UsageError

EPILOG = """
examples
  python visual.py --image photo.jpg                          the predicted label, newest run
  python visual.py --image a.jpg b.jpg --target rust --layer layers[-2].blocks[-1].norm1
  python visual.py --examples 6                               six photos of dataset/test, every label in turn
"""
FLAGS = ("--data-path", "--zip", "--resume", "--output", "--tag")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, makes the maps, writes the pictures."""
    parser = cli.Parser(prog="visual.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", metavar="FILE", help="use the run of this config (and --tag)")
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="FILE", help="photos to explain")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="explain N photos of --split instead")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"], help="of --examples")
    parser.add_argument(
        "--target",
        default="predicted",
        metavar="LABEL",
        help="what to explain: a label, its code, or predicted (the most probable label)",
    )
    parser.add_argument("--layer", metavar="PATH", help="e.g. layers[-1].blocks[-1].norm1 (the default of a Swin)")
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a last.pth with both")
    parser.add_argument(
        "--to", metavar="FOLDER", help="where pictures go (default: <folder of the checkpoint>/heatmaps)"
    )
    cli.add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, None, cli.overrides(args))
    run = loaded.named_run(args.cfg)
    if bool(args.image) == bool(args.examples) or args.examples < 0:
        raise UsageError("give photos with --image FILE ..., or a number of them with --examples N")
    return explain(loaded.config, args, run)


def explain(config, args, run) -> int:
    """Explains each photo and writes `<photo>_<label>_cam.png` and `<photo>_original.png`.

    All photos are decoded before the first picture is written; `run` is the folder that was named, or None.
    """
    from pathlib import Path

    import numpy as np

    from data.labels import label_name
    from tools import cam
    from tools.allocator import keep_freed_memory
    from tools.assemble import find_checkpoints, load_predictor
    from tools.distributed import choose_device, ranks_from_environment
    from tools.files import write_picture

    keep_freed_memory()
    device = choose_device(ranks_from_environment())
    resume = [config.MODEL.RESUME] if config.MODEL.RESUME else []
    (path,), why = find_checkpoints(resume, config.OUTPUT, run)
    predictor = load_predictor(path, device, args.weights)
    wanted = None if args.target == "predicted" else predictor.class_index(args.target)
    recipe = cam.default_recipe(predictor.model)
    if args.layer is not None:
        recipe = cam.Recipe.parse(recipe.method, args.layer)
    for layer in recipe.layers:
        cam.find_layer(predictor.model, layer)
    folder = Path(args.to) if args.to else path.parent / "heatmaps"
    geometry, transform = predictor.preprocess.geometry(), predictor.preprocess.transform()
    leaves = [(name, np.asarray(geometry(photo)), transform(photo)) for name, photo in photos(config, args, predictor)]
    stems = distinct(Path(name).stem for name, _, _ in leaves)
    print(why)
    for (name, seen, image), stem in zip(leaves, stems, strict=True):  # `seen`: the input before normalisation
        images = image[None].to(device)
        choose = lambda logits: logits.argmax(axis=1) if wanted is None else [wanted]  # noqa: E731
        explained = cam.explain(predictor.model, images, [recipe], choose)
        (index,), heat = explained.classes, explained.maps[0][0]
        label = label_name(predictor.classes[index])
        write_picture(folder / f"{stem}_{label}_cam.png", cam.overlay(seen, heat))
        write_picture(folder / f"{stem}_original.png", seen)
        probability = predictor.rule.probabilities(explained.logits)[0, index]
        print(f"{name}: {label} {100 * probability:.1f}% at {recipe.where} -> {folder / f'{stem}_{label}_cam.png'}")
        if not heat.any():
            print(f"warning: {name}: nothing at {recipe.where} speaks for {label}; the map is zero everywhere")
    return 0


def distinct(stems):
    """The stems in turn, numbered where one comes again, so that no photo's pictures replace another's."""
    taken = set()
    for stem in stems:
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        yield name


def photos(config, args, predictor):
    """(name, decoded photo) of those to explain, one at a time."""
    from pathlib import Path

    from data.datasets import scan_split
    from data.images import decode, read_image

    if args.image:
        yield from ((name, read_image(Path(name))) for name in args.image)
        return
    classes = predictor.classes
    split = scan_split(config.DATA.DATA_PATH, args.split, config.DATA.ZIP_MODE, classes)
    by_class = [[photo for photo in split.photos if c in photo.classes] for c in range(len(classes))]
    rounds = max(map(len, by_class))
    in_turn = [group[i] for i in range(rounds) for group in by_class if i < len(group)]
    chosen = list(dict.fromkeys(in_turn))[: args.examples]
    for photo in chosen:
        where = split.source.locate(photo.file)
        yield where, decode(split.source.read(photo.file), where)


if __name__ == "__main__":
    sys.exit(main())
