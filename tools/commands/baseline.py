"""Scores two baselines on the same photos: an untrained model, and colour histograms alone."""

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli

NUM_BINS = 8  # per colour channel


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, fits and scores both baselines."""
    parser = cli.Parser(prog="python -m tools baseline", description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="config of the untrained model")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="photos to score")
    add_config_flags(parser, ("--data-path", "--zip"))
    args = parser.parse_args(argv)
    loaded = load(args.cfg, None, overrides(args))

    import torch

    from data.build import batches_of, build_eval_loader, build_preprocess, build_split
    from data.loading.seeds import INIT, seed_of
    from models.build import build_model, normalization
    from tools.evaluate.inference import predict
    from tools.evaluate.rule import DecisionRule
    from tools.runtime.precision import NativePrecision
    from tools.train.run import validation_scores

    train = build_split(loaded.config.DATA, "train")
    config = loaded.resolve(train).config
    data, device = config.DATA, torch.device("cpu")
    split = build_split(data, args.split, train.labels)
    num_classes = len(train.labels.names)
    torch.manual_seed(seed_of(config.SEED, INIT))
    model = build_model(config.MODEL, data.IMG_SIZE, num_classes, test_size=config.TEST.IMG_SIZE)
    preprocess = build_preprocess(data, config.TEST, *normalization(config.MODEL))
    loader = build_eval_loader(data, split, preprocess)
    logits, truth = predict(model, batches_of(loader, device), device, NativePrecision("cpu", None), num_classes)
    combinations = [photo.classes for photo in train.photos]
    rule = DecisionRule.unfitted(data.TARGETS, config.TEST.DECIDE_BY, combinations, num_classes, train.labels.exclusive)
    untrained, histogram = (validation_scores(rule, z, truth) for z in (logits, fit_histograms(train, split)))
    for name, scores in (("untrained model", untrained), ("colour histogram", histogram)):
        print(
            f"{name:<18} hit@1 {100 * scores['hit1']:5.1f}%  exact match {100 * scores['exact']:5.1f}%  "
            f"macro-F1 {scores['macro_f1']:.3f}  copies {100 * scores['accuracy']:5.1f}%"
        )
    return 0


def fit_histograms(train, split):
    """Logits `[n, num_classes]` for `split` from one logistic regression per class on the colours of `train`."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from data.images import decode

    def histogram(split, photo):
        pixels = np.asarray(decode(split.source.read(photo.file), photo.name)).reshape(-1, 3)
        counts, _ = np.histogramdd(pixels, bins=NUM_BINS, range=[(0, 256)] * 3)
        return np.sqrt(counts.ravel() / len(pixels))

    features, wanted = (np.stack([histogram(s, p) for p in s.photos]) for s in (train, split))
    logits = np.zeros((len(wanted), len(train.labels.names)))
    for index in range(len(train.labels.names)):
        truth = [index in photo.classes for photo in train.photos]
        if len(set(truth)) == 1:  # no photo, or every photo, has the label
            logits[:, index] = 20 if truth[0] else -20
            continue
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        logits[:, index] = classifier.fit(features, truth).decision_function(wanted)
    return logits
